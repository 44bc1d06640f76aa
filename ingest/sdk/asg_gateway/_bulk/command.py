"""The command `asg-submit`."""

import asyncio
import hashlib
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import BinaryIO

from asg_gateway._bulk import items, sources
from asg_gateway._bulk.items import digest_of
from asg_gateway._bulk.journal import Journal
from asg_gateway._bulk.options import Options, UsageError, parse
from asg_gateway._bulk.progress import Counts, progress, say
from asg_gateway._bulk.report import Report
from asg_gateway._bulk.runner import USAGE, Run

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return an exit code, which `--help` explains."""
    try:
        code = _run(parse(arguments))
    except OSError as error:
        say(f"{error.filename or 'file'}: {error.strerror or error}")
        return USAGE
    except (UsageError, sources.SourceError, ValueError) as error:  # ValueError: the API key, or the address
        say(str(error))
        return USAGE
    except KeyboardInterrupt:
        code = _INTERRUPTED
    if code >= _INTERRUPTED:
        # A thread may still wait for input and would keep the process alive.
        sys.stdout.flush()
        os._exit(code)
    return code


def _run(options: Options) -> int:
    with ExitStack() as stack:
        file = stack.enter_context(_opened(options))
        total = os.fstat(file.fileno()).st_size if options.file else None
        journal = stack.enter_context(
            closing(Journal(None if options.dry_run else options.journal, _destination(options)))
        )
        report = stack.enter_context(closing(Report(options.errors, options.ids)))
        display = stack.enter_context(closing(progress(total, quiet=options.quiet)))
        rows = sources.csv_rows(file) if options.format == "csv" else sources.jsonl(file)
        chunks = items.chunks(rows, options.namespace, options.chunk)

        def show(counts: Counts) -> None:
            display.show(counts, file.tell() if total else 0)

        run = Run(options, journal, report, show)
        return run.check(chunks) if options.dry_run else asyncio.run(run.submit(chunks))


def _opened(options: Options) -> BinaryIO:
    if options.file is None:
        return open(0, "rb", closefd=False)
    return options.file.open("rb")


def _destination(options: Options) -> str:
    """Identifies the gateway and the customer, without revealing the API key."""
    key = hashlib.sha256(options.api_key.encode()).hexdigest()
    return digest_of([options.base_url, key, options.callback_url or ""])
