"""`ingest settings`."""

import json

import pytest
from typer.testing import CliRunner

from ingest import settings
from ingest.cli import app
from ingest.domain.errors import ConfigurationError


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without settings."""
    for setting in settings.described():
        monkeypatch.delenv(setting.variable, raising=False)
    return monkeypatch


def test_settings_are_listed_with_value_default_and_meaning(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("INGEST_PORT", "9000")
    environment.setenv("INGEST_BROKER_URL", "amqp://user:pass@host/v")
    output = CliRunner().invoke(app, ["settings"]).output
    assert "INGEST_PORT=9000  (set; default 8080)\n    port to listen on\n" in output
    assert "INGEST_HOST=127.0.0.1  (default)\n" in output
    assert "INGEST_METRICS_PORT=(not set)\n" in output
    assert "pass@" not in output.replace("user:password@", "")


def test_settings_as_json_have_every_field(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("INGEST_PORT", "9000")
    listed = {row["name"]: row for row in json.loads(CliRunner().invoke(app, ["settings", "--json"]).output)}
    assert list(listed) == [setting.variable for setting in settings.described()]
    assert listed["INGEST_PORT"] == {
        "name": "INGEST_PORT",
        "value": "9000",
        "default": "8080",
        "set": True,
        "meaning": "port to listen on",
    }
    assert (listed["INGEST_HOST"]["value"], listed["INGEST_HOST"]["set"]) == ("127.0.0.1", False)
    assert listed["INGEST_METRICS_PORT"]["value"] is None


def test_value_is_shown_without_control_characters_and_secrets(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("INGEST_HOST", "a\x1b[2J\x9b\u202e?token=S3CRET")
    assert "INGEST_HOST=a\\x1b[2J\\x9b\\u202e?token=*** " in CliRunner().invoke(app, ["settings"]).output
    as_json = CliRunner().invoke(app, ["settings", "--json"]).output.removesuffix("\n")
    assert as_json.isprintable()
    assert {row["name"]: row["value"] for row in json.loads(as_json)}["INGEST_HOST"] == "a\x1b[2J\x9b\u202e?token=***"


def test_invalid_value_is_listed_before_its_error(environment: pytest.MonkeyPatch) -> None:
    """A misspelt variable is reported, too."""
    environment.setenv("INGEST_PORT", "many")
    environment.setenv("INGEST_HOSTT", "a")
    result = CliRunner().invoke(app, ["settings"])
    assert "INGEST_PORT=many  (set; default 8080)" in result.output
    assert "INGEST_HOSTT is not a setting: did you mean INGEST_HOST?" in result.output
    assert isinstance(result.exception, ConfigurationError)
    assert "INGEST_PORT" in str(result.exception)
