"""README, deploy/ and --help say what the code does."""

import json
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from ingest import settings
from ingest.broker.rabbitmq.management import definitions
from ingest.cli import app
from ingest.domain.errors import ConfigurationError, Reason
from ingest.shim import openapi_document
from ingest.telemetry.logs import redact
from tests.support.settings_table import markdown

ROOT = Path(__file__).parents[2]
SETTINGS = (ROOT / "deploy/settings.md").read_text()
PRODUCERS = (ROOT / "deploy/producers.md").read_text()


def test_every_setting_is_in_the_settings_page_and_in_help() -> None:
    """To mend the page, replace its table with the output of `python -m tests.support.settings_table`."""
    shown = CliRunner().invoke(app, ["--help"]).output
    assert markdown() in SETTINGS
    for name, _, _ in settings.described():
        assert name in shown


def test_every_reason_is_explained() -> None:
    """A producer can look each code up."""
    assert [str(reason) for reason in Reason if f"| `{reason}` |" not in PRODUCERS] == []


def test_deployed_definitions_are_the_topology() -> None:
    """deploy/ has exactly what `ingest topology export` prints."""
    assert json.loads((ROOT / "deploy/rabbitmq/definitions.json").read_text()) == definitions()


def test_every_command_has_help() -> None:
    """`--help` of each command exits 0 and says what it does."""
    runner = CliRunner()
    groups = {"": get_command(app)}
    for name, command in list(getattr(groups[""], "commands").items()):  # noqa: B009 - typer's group is not typed
        shown = runner.invoke(app, [name, "--help"])
        assert shown.exit_code == 0
        assert command.help
        for sub in getattr(command, "commands", {}):
            assert runner.invoke(app, [name, sub, "--help"]).exit_code == 0


def test_openapi_names_every_status_once_and_resolves() -> None:
    """Each $ref of the document points at something."""
    document = openapi_document()
    text = json.dumps(document)
    for reference in set(_references(document)):
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    assert "$defs" not in text
    assert set(document["paths"]["/v1/tasks"]["post"]["responses"]) >= {"200", "202", "400", "401", "403", "503"}


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("key asg_live_abcDEF123 was sent", "abcDEF123"),
        ("amqp://user:pass-word@host/", "pass-word"),
        ("Authorization: Bearer some.token", "some.token"),
    ],
)
def test_secrets_are_taken_out_of_logs(text: str, secret: str) -> None:
    """API keys, passwords in URLs, bearer tokens."""
    assert secret in text
    assert secret not in redact(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 70000}, "INGEST_PORT"),
        ({"lease": 15, "request_deadline": 20}, "INGEST_LEASE must be at least"),
        ({"log_level": "loud"}, "INGEST_LOG_LEVEL"),
    ],
)
def test_wrong_settings_name_the_variable(changes: dict[str, object], message: str) -> None:
    """One sentence, with the variable to change."""
    with pytest.raises(ConfigurationError, match=message):
        settings.load(**changes)


def _references(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [each for value in node.values() for each in _references(value)]
    return [each for value in node for each in _references(value)] if isinstance(node, list) else []
