"""Exit codes, and errors that a person can mend as one line instead of a traceback."""

from collections.abc import Callable
from typing import Final

import typer

from ingest.domain.errors import ConfigurationError, IngestError
from ingest.telemetry.logs import redact

UNAVAILABLE: Final = 1
"""A dependency is away, or a check found something."""
USAGE: Final = 2
"""Wrong usage or configuration."""


def exit_code(job: Callable[[], int | None]) -> int:
    """The job's exit code; an IngestError is said in one line on standard error."""
    try:
        return job() or 0
    except IngestError as error:
        typer.echo(f"ingest: {redact(str(error))}", err=True)
        return USAGE if isinstance(error, ConfigurationError) else UNAVAILABLE
