"""Exit codes. An error that a person can correct is printed as one line instead of a traceback."""

from collections.abc import Callable
from typing import Final

import typer

from ingest.domain.errors import ConfigurationError, IngestError
from ingest.telemetry.logs import redact

UNAVAILABLE: Final = 1
"""A dependency is unavailable, or a check found a problem."""
USAGE: Final = 2
"""Wrong usage or configuration."""


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
