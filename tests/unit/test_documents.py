"""README, deploy/ and --help agree with the code."""

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
from ingest.shim.http.body import DEFAULT_MEMORY, SMALL
from ingest.shim.http.protocol import BODY_MAX_LAG, BODY_MIN_RATE, BODY_TIMEOUT
from tests.support.settings_table import markdown

ROOT = Path(__file__).parents[2]
SETTINGS = (ROOT / "deploy/settings.md").read_text()
PRODUCERS = (ROOT / "deploy/producers.md").read_text()


def test_every_setting_is_in_the_settings_page() -> None:
    """If it fails, replace the table in the page with the output of `python -m tests.support.settings_table`."""
    assert markdown() in SETTINGS


def test_help_is_short_and_lists_the_commands_before_the_options() -> None:
    output = CliRunner().invoke(app, ["--help"]).output
    assert len(output.splitlines()) <= 30
    assert output.index("ingest settings") < output.index("Commands:") < output.index("Options:")
    assert output.count("Commands:") == 1
    assert "INGEST_" not in output


def test_every_dead_letter_reason_is_in_the_producers_page() -> None:
    assert [str(reason) for reason in Reason if f"| `{reason}` |" not in PRODUCERS] == []


def test_sizing_page_names_the_limits_of_bodies() -> None:
    page = " ".join((ROOT / "deploy/sizing.md").read_text().split())
    assert f"at most {DEFAULT_MEMORY // 2**20} MiB of request bodies" in page
    assert f"at most {SMALL // 1024} KiB" in page
    assert (
        f"at {BODY_MIN_RATE // 1024} KiB/s (it may be {BODY_MAX_LAG:g} s behind) and within {BODY_TIMEOUT:g} s" in page
    )


def test_deployed_definitions_match_the_topology() -> None:
    """deploy/ has exactly what `ingest topology export` prints."""
    assert json.loads((ROOT / "deploy/rabbitmq/definitions.json").read_text()) == definitions()


def test_every_command_has_help() -> None:
    runner = CliRunner()
    commands = getattr(get_command(app), "commands")  # noqa: B009 - typer's group is not typed
    assert commands
    for name, command in commands.items():
        assert command.help, name
        assert runner.invoke(app, [name, "--help"]).exit_code == 0
        for subcommand_name, subcommand in getattr(command, "commands", {}).items():
            assert subcommand.help, f"{name} {subcommand_name}"
            assert runner.invoke(app, [name, subcommand_name, "--help"]).exit_code == 0


def test_openapi_references_resolve_and_task_statuses_are_documented() -> None:
    document = openapi_document()
    references = set(_references(document))
    assert references
    for reference in references:
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    assert "$defs" not in json.dumps(document)
    assert set(document["paths"]["/v1/tasks"]["post"]["responses"]) >= {"200", "202", "400", "401", "403", "503"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 70000}, "INGEST_PORT"),
        ({"lease": 15, "request_deadline": 20}, "INGEST_LEASE must be at least"),
        ({"log_level": "loud"}, "INGEST_LOG_LEVEL"),
    ],
)
def test_error_of_invalid_setting_names_its_variable(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        settings.load(**changes)


def _references(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [reference for value in node.values() for reference in _references(value)]
    return [reference for child in node for reference in _references(child)] if isinstance(node, list) else []
