"""Exit codes. An error that a person can correct is printed as one line instead of a traceback."""

from collections.abc import Callable
from enum import StrEnum
from typing import Final

import typer

from ingest.domain.errors import ConfigurationError, IngestError
from ingest.telemetry.logs import redact

UNAVAILABLE: Final = 1
"""A dependency is unavailable, or a check found a problem."""
USAGE: Final = 2
"""Wrong usage or configuration."""
INTERRUPTED: Final = 130
"""Ctrl-C: 128 plus the number of SIGINT, as shells have it."""


class Ending(StrEnum):
    """How a command ended. Only COMPLETE has dealt with everything that was selected."""

    COMPLETE = "complete"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


def exit_code(job: Callable[[], int | None]) -> int:
    """Run the job and return its exit code (0 for None).

    An IngestError is printed as one line on standard error; the code is USAGE for a ConfigurationError, otherwise
    UNAVAILABLE.
    """
    try:
        return job() or 0
    except IngestError as error:
        typer.echo(f"ingest: {redact(str(error))}", err=True)
        return USAGE if isinstance(error, ConfigurationError) else UNAVAILABLE
