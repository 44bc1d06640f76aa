"""Exit codes. An error that a person can correct is printed as one line instead of a traceback."""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final

import typer

from ingest.domain.display import shown, shown_lines
from ingest.domain.errors import ConfigurationError, IngestError

UNAVAILABLE: Final = 1
"""A dependency is unavailable, the output cannot be written, or a check found a problem."""
USAGE: Final = 2
"""Wrong usage or configuration."""
INTERRUPTED: Final = 130
"""Ctrl-C: 128 plus the number of SIGINT, as in shells."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class OutputFailed(IngestError):
    """A file or standard output cannot be written."""


class Ending(StrEnum):
    """How a command ended. Only COMPLETE has dealt with everything that was selected."""

    COMPLETE = "complete"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


def exit_code(job: Callable[[], int | None]) -> int:
    """Run the job and return its exit code (0 for None).

    An IngestError or a full disk is printed as one line on standard error; the code is USAGE for a
    ConfigurationError, otherwise UNAVAILABLE. Any other error is printed with its traceback, and the code is
    UNAVAILABLE. Secrets and control characters are shown of neither.
    """
    try:
        return job() or 0
    except IngestError as error:
        typer.echo(f"ingest: {shown(error)}", err=True)
        return USAGE if isinstance(error, ConfigurationError) else UNAVAILABLE
    except Exception as error:  # noqa: BLE001 - Python would print it as it is
        if isinstance(error, OSError) and error.errno in _FULL:
            typer.echo(f"ingest: cannot write {shown(error.filename or 'the output')}: {error.strerror}", err=True)
            # Python writes the rest of its buffer when it exits. That must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return UNAVAILABLE
        typer.echo(shown_lines("".join(traceback.format_exception(error))), err=True, nl=False)
        return UNAVAILABLE


@contextmanager
def writing_to(output: str) -> Iterator[None]:
    """Raise OutputFailed, which names the output, instead of an OSError. A reader that ends is not a failure."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputFailed(f"cannot write {output}: {error.strerror}") from error
