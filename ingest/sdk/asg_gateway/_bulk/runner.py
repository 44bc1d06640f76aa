"""One run of `asg-submit`: counts, signals, and the final message."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Final

from asg_gateway._async_client import AsyncASGGatewayClient
from asg_gateway._bulk import engine
from asg_gateway._bulk.items import Chunk
from asg_gateway._bulk.journal import Journal
from asg_gateway._bulk.options import Options
from asg_gateway._bulk.progress import Counts, say
from asg_gateway._bulk.report import Report
from asg_gateway._bulk.sources import SourceError
from asg_gateway._errors import (
    ASGGatewayError,
    ConflictError,
    QuotaExhaustedError,
    RateLimitedError,
    ServerError,
    TransportError,
)

OK: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
UNAVAILABLE: Final = 3
QUOTA: Final = 4

_TIMEOUT: Final = 60.0
_RETRIES: Final = 1_000_000
"""`--patience` ends the retries."""


class Run:
    """One run. Its methods return exit codes.

    Args:
        options: the options.
        journal: records finished chunks.
        report: writes refused lines and ids.
        show: called when the counts have changed.
    """

    def __init__(self, options: Options, journal: Journal, report: Report, show: Callable[[Counts], None]) -> None:
        self.counts = Counts()
        self._options = options
        self._journal = journal
        self._report = report
        self._show = show
        self._stop = asyncio.Event()
        self._signal = 0

    def check(self, chunks: Iterator[Chunk]) -> int:
        """Check every line without the gateway."""
        for chunk in chunks:
            self.counts.accepted += len(chunk.items)
            self._record(chunk, None)
        return self._end(OK)

    async def submit(self, chunks: Iterator[Chunk]) -> int:
        """Submit every chunk that is not finished."""
        options = self._options
        self._catch_signals()
        client = AsyncASGGatewayClient(
            options.api_key,
            base_url=options.base_url,
            timeout=_TIMEOUT,
            max_retries=_RETRIES,
            deadline=options.patience,
        )
        async with client:
            outcomes = engine.run(
                client,
                chunks,
                callback_url=options.callback_url,
                concurrency=options.concurrency,
                done=self._journal.is_done,
                stop=self._stop,
            )
            try:
                async with contextlib.aclosing(outcomes):
                    async for chunk, outcome in outcomes:
                        self._count(chunk, outcome)
            except ASGGatewayError as error:
                say(f"stopped: {error}")
                return self._end(_code_of(error))
            except SourceError as error:
                say(f"stopped: {error}")
                return self._end(USAGE)
        return self._end(128 + self._signal if self._signal else OK)

    def _count(self, chunk: Chunk, outcome: engine.Outcome | None) -> None:
        if outcome is None:
            self.counts.skipped += len(chunk.items)
        else:
            for result, items in outcome.accepted:
                if result.idempotent:
                    self.counts.replayed += len(items)
                else:
                    self.counts.accepted += len(items)
            self.counts.refused += len(outcome.refused)
        self._record(chunk, outcome)
        if outcome is not None and not outcome.refused:
            self._journal.record(chunk)

    def _record(self, chunk: Chunk, outcome: engine.Outcome | None) -> None:
        self.counts.refused += len(chunk.invalid)
        self._report.add(chunk, outcome)
        self._show(self.counts)

    def _end(self, code: int) -> int:
        """Print the result; return the code, or REFUSED if only some lines were refused."""
        if code == OK and self.counts.refused:
            code = REFUSED
        counts = self.counts
        checked = f"{counts.accepted:,} valid, {counts.refused:,} invalid; nothing was submitted"
        say(checked if self._options.dry_run else counts.sentence())
        if self.counts.refused:
            say(f"the refused lines are in {self._options.errors}")
        if code in (UNAVAILABLE, QUOTA) or code > 128:
            say("run the same command again to continue; nothing is submitted twice")
        if self._options.json:
            sys.stdout.write(json.dumps({**vars(self.counts), "exit_code": code}) + "\n")
            sys.stdout.flush()
        return code

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            # Windows has no signal handlers: there Ctrl-C ends the run at once.
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, self._stop_soon, number)

    def _stop_soon(self, number: int) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt
        say("stopping after the chunks in flight; a second signal stops at once")
        self._signal = number
        self._stop.set()


def _code_of(error: ASGGatewayError) -> int:
    if isinstance(error, QuotaExhaustedError):
        return QUOTA
    temporary = (TransportError, ServerError, RateLimitedError, ConflictError)
    return UNAVAILABLE if isinstance(error, temporary) else USAGE
