"""The API key of `ingest dev`: a given one, or one that is created and kept."""

import os
from pathlib import Path
from typing import Final

from ingest.domain.customers import new_api_key
from ingest.domain.errors import ConfigurationError
from ingest.settings import Settings

_RULE: Final = "printable ASCII without spaces"


def given_key(option: str | None, file: Path | None, settings: Settings) -> str | None:
    """Return the key of --api-key, of the file of --api-key-file, or of INGEST_DEV_API_KEY; None if there is none.

    Raises ConfigurationError, whose message does not contain the key.
    """
    if option is not None and file is not None:
        raise ConfigurationError("use --api-key or --api-key-file, not both")
    if file is not None:
        return _read_key(file)
    source, key = "--api-key", option
    if option is None:
        source, key = "INGEST_DEV_API_KEY", settings.dev_api_key.get_secret_value() or None
    if key is not None and not _is_key(key):
        raise ConfigurationError(f"{source} must be {_RULE}")
    return key


def _read_key(file: Path) -> str:
    try:
        key = file.read_bytes().decode(errors="replace").strip()
    except OSError as error:
        raise ConfigurationError(f"--api-key-file {file}: {error.strerror}") from error
    if not _is_key(key):
        raise ConfigurationError(f"--api-key-file {file} must contain {_RULE}")
    return key


def _is_key(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def stored_key(path: Path) -> str:
    """Return the key of an earlier start, or a new one in a file that only its owner can read.

    Raises ConfigurationError.
    """
    try:
        if path.exists() and (stored := path.read_text().strip()):
            return stored
        path.unlink(missing_ok=True)  # it is empty if the disk was full
        created = new_api_key()
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(created + "\n")
    except OSError as error:
        raise ConfigurationError(f"cannot read or write {path}: {error.strerror}") from error
    return created
