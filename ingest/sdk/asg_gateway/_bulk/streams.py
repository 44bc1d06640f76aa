"""Standard output and standard error, which may be closed or broken, and errors of the files of a run."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from asg_gateway._bulk.display import shown


class RunError(Exception):
    """The run cannot continue; the message says why. It is not the fault of a line or an argument."""


def open_closed_streams() -> frozenset[str]:
    """Connect standard output and error to nothing if they are closed (`2>&-`); return the names of those."""
    closed = frozenset(name for name in ("stdout", "stderr") if getattr(sys, name) is None)
    for name in closed:
        setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - used until the process ends
    return closed


def say(text: str) -> None:
    """Write a line to standard error, without secrets and control characters.

    If that is impossible, only the exit code is left.
    """
    with suppress(OSError):
        sys.stderr.write(f"asg-submit: {shown(text)}\n")
        flush(sys.stderr)


def print_result(text: str) -> None:
    """Write a line to standard output. Raises RunError."""
    try:
        sys.stdout.write(f"{text}\n")
        flush(sys.stdout)
    except OSError as error:
        raise RunError(f"cannot write the result to standard output: {error.strerror}") from error


def flush(stream: IO[str]) -> None:
    """Flush. If that fails, discard the text, because Python would try again at exit and fail. Raises OSError."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise RunError, with the name of the file, if it cannot be written."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def is_full(error: OSError) -> bool:
    """Return whether a disk is full or broken, so that the arguments are not the cause."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
