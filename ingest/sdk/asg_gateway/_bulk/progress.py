"""Progress of a run: a bar on a terminal if rich is installed (extra `bulk`), else a line every ten seconds."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from asg_gateway._bulk.streams import say

_EVERY = 10.0
"""Seconds between two lines."""


@dataclass
class Counts:
    """Tasks and lines of a run.

    `accepted` are new, `replayed` were accepted before, `skipped` are in the journal. Over RabbitMQ, whose confirm says
    neither, the first two stay 0, and `published` is the number of tasks it has confirmed; over HTTP it is None.
    """

    accepted: int = 0
    replayed: int = 0
    skipped: int = 0
    refused: int = 0
    published: int | None = None

    @property
    def all(self) -> int:
        return self.accepted + self.replayed + self.skipped + self.refused + (self.published or 0)

    def add(self, replayed: int, count: int) -> None:
        """Count tasks that are with the service now, of which `replayed` were accepted before."""
        if self.published is not None:
            self.published += count
        else:
            self.replayed += replayed
            self.accepted += count - replayed

    def named(self) -> dict[str, int]:
        """Return the counts that the transport knows, by name."""
        if self.published is None:
            return {name: value for name, value in vars(self).items() if name != "published"}
        return {"published": self.published, "skipped": self.skipped, "refused": self.refused}

    def sentence(self) -> str:
        """Return the counts in one line; those that are 0 are left out, except `accepted` or `published`."""
        parts = [f"{self.accepted:,} accepted" if self.published is None else f"{self.published:,} published"]
        parts += [f"{self.replayed:,} replayed (accepted before)"] if self.replayed else []
        parts += [f"{self.skipped:,} skipped (finished according to the journal)"] if self.skipped else []
        parts += [f"{self.refused:,} refused"] if self.refused else []
        return ", ".join(parts)


class Progress(Protocol):
    """Shows the counts. `position`: bytes of the file that are read."""

    def show(self, counts: Counts, position: int) -> None: ...
    def close(self) -> None: ...


class Silent:
    """Shows nothing."""

    def show(self, counts: Counts, position: int) -> None: ...
    def close(self) -> None: ...


class Lines:
    """Writes a line to standard error every ten seconds."""

    def __init__(self, total: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._clock = clock
        self._began = self._last = clock()

    def show(self, counts: Counts, position: int) -> None:
        now = self._clock()
        if now - self._last < _EVERY:
            return
        self._last = now
        share = f"{position / self._total:4.0%}, " if self._total else ""
        say(f"{share}{counts.sentence()}, {counts.all / (now - self._began):,.0f}/s")

    def close(self) -> None: ...


class Bar:
    """Shows a progress bar of rich on standard error."""

    def __init__(self, rich_progress: Any, total: int | None) -> None:
        self._bar = rich_progress
        self._task = rich_progress.add_task("submitting", total=total, counts="")
        self._bar.start()

    def show(self, counts: Counts, position: int) -> None:
        self._bar.update(self._task, completed=position, counts=counts.sentence())

    def close(self) -> None:
        self._bar.stop()


def progress(total: int | None, *, quiet: bool) -> Progress:
    """Choose the display for this terminal and installation. `total`: bytes of the file, None if unknown."""
    if quiet:
        return Silent()
    if sys.stderr.isatty():
        try:
            from rich import progress as rich
            from rich.console import Console
        except ImportError:
            return Lines(total)
        columns = (rich.BarColumn(), rich.TaskProgressColumn(), rich.TimeRemainingColumn(), "{task.fields[counts]}")
        return Bar(rich.Progress(*columns, console=Console(stderr=True)), total)
    return Lines(total)
