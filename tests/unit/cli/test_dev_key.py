"""Where `ingest dev` gets its API key from."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ingest import settings
from ingest.cli import app
from ingest.cli.dev_key import given_key
from ingest.domain.errors import ConfigurationError


def key(option: str | None = None, file: Path | None = None, variable: str = "") -> str | None:
    return given_key(option, file, settings.load(dev_api_key=variable))


def test_key_is_taken_from_the_option_or_the_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("of-file\n")
    assert key() is None
    assert key(variable="of-variable") == "of-variable"
    assert key(file=file, variable="of-variable") == "of-file"
    assert key("of-option", variable="of-variable") == "of-option"


@pytest.mark.parametrize("invalid", ["", "a b", "é", "a\nb", "a\x1b"])
def test_invalid_key_is_an_error_that_names_its_source_and_not_the_key(tmp_path: Path, invalid: str) -> None:
    file = tmp_path / "key"
    file.write_text(f"{invalid}\n")
    with pytest.raises(ConfigurationError, match=r"^--api-key must be printable ASCII without spaces$"):
        key(invalid)
    with pytest.raises(ConfigurationError, match=r"^--api-key-file .*key must contain printable ASCII without spaces$"):
        key(file=file)
    if invalid:
        with pytest.raises(ConfigurationError, match=r"^INGEST_DEV_API_KEY must be printable ASCII without spaces$"):
            key(variable=invalid)


def test_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--api-key-file .*: Is a directory"):
        key(file=tmp_path)
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"--api-key-file .* must contain printable ASCII"):
        key(file=tmp_path / "key")


def test_option_and_file_together_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not both"):
        key("a", tmp_path / "key")


def test_help_says_that_the_option_is_visible_and_what_is_not() -> None:
    text = " ".join(CliRunner().invoke(app, ["dev", "--help"], env={"COLUMNS": "200"}).output.split())
    assert "see it, for example with `ps`: INGEST_DEV_API_KEY and --api-key-file hide it" in text


@pytest.mark.parametrize("value", ["asg_live_S3CRET", "S3CRET://S3CRET"])
def test_list_of_settings_does_not_show_the_key(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("INGEST_DEV_API_KEY", value)
    output = CliRunner().invoke(app, ["settings"]).output
    assert "INGEST_DEV_API_KEY=***" in output
    assert "S3CRET" not in output
