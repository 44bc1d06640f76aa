"""`sqlite:///FILE` URLs."""

from pathlib import Path

from ingest.domain.errors import ConfigurationError


def sqlite_file(url: str, variable: str) -> Path:
    """Return the file in `sqlite:///relative/file` or `sqlite:////absolute/file`, the form that SQLAlchemy uses.

    Args:
        url: begins with `sqlite:`.
        variable: the setting that the URL comes from, for the error.

    Raises:
        ConfigurationError: the URL names no file, or has options.
    """
    path = url.removeprefix("sqlite://")
    if not path.startswith("/") or len(path) < 2:
        raise ConfigurationError(f"{variable} must look like sqlite:///FILE (with four slashes for an absolute path)")
    if "?" in path:
        raise ConfigurationError(f"{variable}: sqlite:///FILE takes no options: remove what begins with ?")
    return Path(path[1:])
