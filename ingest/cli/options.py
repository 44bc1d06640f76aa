"""Options and values of several commands."""

import re
from typing import Annotated, Final

import typer

from ingest.domain.errors import ConfigurationError
from ingest.domain.rates import UNITS, RateLimit
from ingest.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Scrape = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URL",
        help="A process's metrics port, http://host:port; repeatable. A name with several addresses is read at each.",
    ),
]
AllowActions = Annotated[
    bool | None,
    typer.Option(
        "--allow-actions",
        help="Let the console redrive, export and delete dead letters. [INGEST_CONSOLE_ALLOW_ACTIONS]",
        show_default=False,
    ),
]

_SIZES: Final = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def metrics_urls(current: Settings) -> list[str]:
    """Return where the processes with these settings serve their metrics, if they do."""
    return [f"http://{current.metrics_host}:{current.metrics_port}"] if current.metrics_port else []


def byte_count(text: str, option: str) -> int:
    """Parse a size such as 256MiB or 1GiB; return bytes. Raises ConfigurationError, which names the option."""
    match = re.fullmatch(r"(\d{1,7})([KMG]iB)", text)
    value = int(match[1]) * _SIZES[match[2]] if match else 0
    if not value:
        raise ConfigurationError(f"{option} must be a size such as 512KiB, 256MiB or 1GiB; it is {text!r}")
    return value


def rate_limit(text: str, option: str) -> RateLimit | None:
    """Parse a rate limit such as 50/s or 600/m, or `none`. Raises ConfigurationError, which names the option.

    It is a whole number with a unit, because customers are shown the same words. The rate of `dlq redrive` has neither.
    """
    if text == "none":
        return None
    match = re.fullmatch(r"(\d{1,6})/([sm])", text)
    limit = int(match[1]) if match else 0
    if match is None or not limit:
        raise ConfigurationError(
            f"{option} must be a number per second or minute, such as 50/s or 600/m, or none; it is {text!r}"
        )
    return RateLimit(limit, UNITS[match[2]])


def size_text(count: int) -> str:
    """Return a number of bytes for people: `512 bytes`, `1.5 MiB`."""
    for unit, size in reversed(_SIZES.items()):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:,} bytes"
