"""The command `asg-submit`."""

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from io import BufferedReader

from asg_gateway._bulk import items, sources
from asg_gateway._bulk.broker import BrokerTransport
from asg_gateway._bulk.csv_source import csv_rows
from asg_gateway._bulk.http import HttpTransport
from asg_gateway._bulk.items import digest_of
from asg_gateway._bulk.journal import Journal
from asg_gateway._bulk.options import Options, UsageError, parse
from asg_gateway._bulk.progress import Counts, progress
from asg_gateway._bulk.report import Report
from asg_gateway._bulk.runner import Run
from asg_gateway._bulk.stops import INTERRUPTED, stop_of
from asg_gateway._bulk.streams import flush, is_full, open_closed_streams, say
from asg_gateway._bulk.transport import Transport

_now = partial(datetime.now, UTC)


def entry_point() -> None:
    """Run the command and end the process.

    Python's own end would wait for the thread that reads standard input.
    """
    code = main()
    with suppress(OSError):
        flush(sys.stdout)
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return an exit code, which `--help` explains."""
    closed = open_closed_streams()
    source = base_url = ""
    try:
        options = parse(arguments)
        source, base_url = options.source, options.base_url
        if options.json and "stdout" in closed:
            raise UsageError("--json needs standard output, but it is closed")
        return _run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as end:  # of argparse
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:  # noqa: BLE001 - any other code would say that lines were refused
        stop = stop_of(error, source, base_url, _now)
        say(stop.sentence)
        return stop.code


def _run(options: Options) -> int:
    with ExitStack() as stack:
        with _wrong_paths():
            file = _opened(options, stack)
            total = os.fstat(file.fileno()).st_size if options.file else None
            transport = None if options.dry_run else _transport(options)
            path, identity = (options.journal, transport.identity) if transport else (None, [])
            journal = stack.enter_context(closing(Journal(path, digest_of(identity))))
            report = stack.enter_context(closing(Report(options.errors, options.ids)))
        display = stack.enter_context(closing(progress(total, quiet=options.quiet)))
        if options.format == "csv":
            rows = csv_rows(file, options.encoding, options.delimiter)
        else:
            rows = sources.jsonl(file, options.encoding)
        chunks = items.chunks(rows, options.namespace, options.chunk)

        def show(counts: Counts) -> None:
            display.show(counts, file.tell() if total else 0)

        run = Run(options, journal, report, show, _now)
        return asyncio.run(run.submit(chunks, transport)) if transport else run.check(chunks)


def _opened(options: Options, stack: ExitStack) -> BufferedReader:
    """Open the file. Standard input is never closed: that would wait for the thread that reads it."""
    if options.file is not None:
        return stack.enter_context(options.file.open("rb"))
    if sys.stdin is None:
        raise UsageError("standard input is closed: pipe the tasks into it, or name a file")
    return open(0, "rb", closefd=False)


@contextmanager
def _wrong_paths() -> Iterator[None]:
    """Raise UsageError for a file that cannot be opened, unless the disk is the cause."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise
        raise UsageError(f"{error.filename}: {error.strerror or error}") from error


def _transport(options: Options) -> Transport:
    """Choose between HTTP and RabbitMQ. Raises UsageError."""
    if options.amqp_url is None:
        return HttpTransport(options)
    return BrokerTransport(
        options.amqp_url, options.customer, options.callback_url, options.patience, options.concurrency
    )
