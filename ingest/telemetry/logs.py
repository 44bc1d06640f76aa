"""Logging with structlog. The standard library's loggers use the same format.

Secrets are removed from all values. JSON escapes control characters itself; the text format escapes them here.
"""

import contextlib
import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, TextIO, cast

import structlog

from ingest.domain.display import escape, redacted
from ingest.telemetry.outages import OutageLines

_LINES: Final = ("exception", "stack", "stack_info")
"""Fields that have several lines."""


class Output:
    """Standard output or error. A line that cannot be written is lost, for example because the disk is full."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._file.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()


def configure(level: str, format_: str, dependencies: Mapping[str, Mapping[str, str]] | None = None) -> None:
    """Log to standard error.

    Args:
        level: the lowest level that is logged.
        format_: json, console, or auto (console on a terminal, otherwise json).
        dependencies: fields for lines about an outage of the broker or the store, see `OutageLines`.
    """
    console = format_ == "console" or (format_ == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = [structlog.processors.format_exc_info, _redact, *([_escape] if console else [])]
    renderer: Any = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, OutageLines(dependencies or {}), *last, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # Each line is one write, because several processes share standard error.
        logger_factory=structlog.WriteLoggerFactory(Output(sys.stderr)),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last, renderer],
        )
    )
    # Libraries log warnings. The AMQP libraries also log failed connections, with tracebacks; this service logs them.
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in ("aiormq", "aio_pika"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return cast("dict[str, Any]", redacted(event))


def _escape(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {
        name: escape(value, keep="\n\t" if name in _LINES else "") if isinstance(value, str) else value
        for name, value in event.items()
    }
