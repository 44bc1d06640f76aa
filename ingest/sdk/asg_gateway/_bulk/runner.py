"""One run of `asg-submit`: counts, signals, and the final message."""

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from datetime import datetime

from asg_gateway._bulk import engine
from asg_gateway._bulk.items import Chunk
from asg_gateway._bulk.journal import Journal
from asg_gateway._bulk.options import Options
from asg_gateway._bulk.progress import Counts
from asg_gateway._bulk.report import Report
from asg_gateway._bulk.stops import FAILED, INTERRUPTED, OK, QUOTA, REFUSED, UNAVAILABLE, Stop, stop_of
from asg_gateway._bulk.streams import RunError, print_result, say
from asg_gateway._bulk.transport import Sender, Transport


class Run:
    """One run. Its methods return exit codes.

    Args:
        options: the options.
        journal: records finished chunks.
        report: writes refused lines and ids.
        show: called when the counts have changed.
        now: the time in UTC.
    """

    def __init__(
        self,
        options: Options,
        journal: Journal,
        report: Report,
        show: Callable[[Counts], None],
        now: Callable[[], datetime],
    ) -> None:
        self.counts = Counts()
        self._options = options
        self._journal = journal
        self._report = report
        self._show = show
        self._now = now
        self._stop = asyncio.Event()
        self._signal = 0
        self._unfinished: dict[int, int] = {}
        self._said_notice = False
        self._conclusion: str | None = None

    def check(self, chunks: Iterator[Chunk]) -> int:
        """Check every line without the gateway."""
        stop = None
        try:
            for chunk in chunks:
                self.counts.accepted += len(chunk.items)
                self._record(chunk, None)
        except Exception as error:  # noqa: BLE001 - the counts are still shown
            stop = self._stop_of(error)
        return self._end(stop)

    async def submit(self, chunks: Iterator[Chunk], transport: Transport) -> int:
        """Submit every chunk that is not finished."""
        self._catch_signals()
        self.counts = transport.counts()
        stop = None
        try:
            async with transport.connect() as sender:
                outcomes = engine.run(
                    sender,
                    self._watched(chunks),
                    concurrency=self._options.concurrency,
                    done=self._journal.is_done,
                    stop=self._stop,
                )
                async with contextlib.aclosing(outcomes):
                    async for chunk, outcome in outcomes:
                        self._say_notice(sender)
                        self._count(chunk, outcome)
                        del self._unfinished[id(chunk)]
        except Exception as error:  # noqa: BLE001 - the counts are still shown
            stop = self._stop_of(error)
        self._conclusion = transport.conclusion(self.counts)
        return self._end(stop)

    def _say_notice(self, sender: Sender) -> None:
        """Say once why the run is slow, unless it is quiet."""
        if not self._said_notice and not self._options.quiet and (notice := sender.notice()):
            self._said_notice = True
            say(notice)

    def _watched(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Note the first line of each chunk until it is finished."""
        for chunk in chunks:
            numbers = [item.number for item in chunk.items[:1]] + [row.number for row in chunk.invalid[:1]]
            self._unfinished[id(chunk)] = min(numbers)
            yield chunk

    def _stop_of(self, error: Exception) -> Stop:
        return stop_of(error, self._options.source, self._options.base_url, self._now)

    def _count(self, chunk: Chunk, outcome: engine.Outcome | None) -> None:
        if outcome is None:
            self.counts.skipped += len(chunk.items)
        else:
            for result, items in outcome.accepted:
                self.counts.add(result.replayed or 0, len(items))
            self.counts.refused += len(outcome.refused)
        self._record(chunk, outcome)
        if outcome is not None and not outcome.refused:
            self._journal.record(chunk)

    def _record(self, chunk: Chunk, outcome: engine.Outcome | None) -> None:
        self.counts.refused += len(chunk.invalid)
        self._report.add(chunk, outcome)
        self._show(self.counts)

    def _end(self, stop: Stop | None) -> int:
        """Print the result; return the exit code, REFUSED if the run did not stop but some lines were refused."""
        code = stop.code if stop else 128 + self._signal if self._signal else OK
        if code == OK and self.counts.refused:
            code = REFUSED
        if stop:
            say(f"stopped: {stop.sentence}")
        counts = self.counts
        checked = f"{counts.accepted:,} valid, {counts.refused:,} invalid; nothing was submitted"
        say(checked if self._options.dry_run else counts.sentence())
        if self._conclusion:
            say(self._conclusion)
        if counts.refused:
            say(f"the refused lines are in {self._options.errors}")
        if code in (UNAVAILABLE, QUOTA, FAILED) or code >= INTERRUPTED:
            first = f"It continues with line {min(self._unfinished.values()):,}" if self._unfinished else "It continues"
            say(f"run the same command again to continue. {first}; nothing is submitted twice")
        if self._options.json:
            try:
                print_result(json.dumps({**counts.named(), "exit_code": code}))
            except RunError as error:
                say(str(error))
                return FAILED if code in (OK, REFUSED) else code
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
