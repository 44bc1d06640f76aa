"""Failures of background work: they are logged and shown on the pages, and never end the console."""

import sqlite3

import structlog

from ingest.domain.errors import IngestError

_log = structlog.get_logger(__name__)


def noted(event: str, error: Exception) -> str:
    """Log a failure; return what a page says about it.

    An error that is not expected, such as an odd answer of a server, is logged with its traceback.
    """
    if isinstance(error, IngestError | sqlite3.Error):  # the latter: the disk is full
        _log.warning(event, error=str(error))
        return str(error)
    _log.error(event, exc_info=error)
    return f"{type(error).__name__}, see the log of the console"
