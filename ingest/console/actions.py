"""What the console does with dead letters: one action after the other, in the background, with its progress.

An action is what a command of `ingest dlq` does. It is logged with who ordered it, when it begins and when it ends.
"""

import asyncio
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from typing import IO, Any, Final

import msgspec
import structlog

from ingest.backends import DeadLetterAccess
from ingest.console.access import Visitor
from ingest.console.dead_letters import DeadLetters
from ingest.console.failures import noted
from ingest.console.filters import Filter
from ingest.domain.dead_letters import DeadLetter
from ingest.domain.display import json_text
from ingest.domain.errors import ConfigurationError
from ingest.operations import dead_letters
from ingest.operations.dead_letters import Progress, Report, Selection
from ingest.operations.trim import OpenDeadLetters
from ingest.waiting import TimeSlices, cancel_once

MAX_EXPORT: Final = 1024**3
"""The most bytes of an exported file. Only the latest is kept."""
_REMEMBERED: Final = 100
"""Actions that are listed."""
_CHUNK: Final = 64 * 1024
_LARGE: Final = 64 * 1024
"""Bytes of a body from which on it is encoded in a thread."""

_log = structlog.get_logger(__name__)


class Kind(StrEnum):
    """What is done with the selected dead letters."""

    REDRIVE = "redrive"
    """They are submitted again."""
    PURGE = "purge"
    """They are deleted."""
    EXPORT = "export"
    """They are written to a file, with the secrets in them."""


class State(StrEnum):
    """The state of an action."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, and who wants it.

    `rate` is the most redriven per second, None for no limit. `confirmed` is the number of dead letters that may be
    deleted: if there are more or fewer, none is.
    """

    kind: Kind
    chosen: Filter
    visitor: Visitor
    dry_run: bool = False
    rate: float | None = None
    confirmed: int | None = None

    def facts(self) -> dict[str, Any]:
        """Return what the log says about it."""
        return {
            "action": str(self.kind),
            "selected": self.chosen.words,
            "dry_run": self.dry_run,
            **self.visitor.facts(),
        }


class Action:
    """An order that is, or was, carried out. Times are in Unix seconds."""

    def __init__(self, number: int, order: Order, started_at: float) -> None:
        self.number = number
        self.order = order
        self.started_at = started_at
        self.ended_at: float | None = None
        self.state = State.RUNNING
        self.failure = ""
        """The error message, if it failed."""
        self.total = 0
        """Number of dead letters to check."""
        self.progress = Progress()
        self.report = Report()
        """Of a redrive."""
        self.file: IO[bytes] | None = None
        """The exported file; None once it was replaced."""
        self.file_size = 0
        self.held_by_others = False
        """Whether another consumer held dead letters, which the action has not seen."""

    @property
    def done(self) -> int:
        """How many were redriven, deleted or exported; in a dry run, how many would be redriven."""
        if self.order.kind is Kind.REDRIVE:
            return self.report.done.total()
        return self.progress.done

    def chunks(self) -> Iterator[bytes]:
        """Return the exported file in parts. A download that has begun can finish after the file was replaced."""
        if self.file is None:
            raise ValueError(f"action {self.number} has no file")
        return _read_all(os.fdopen(os.dup(self.file.fileno()), "rb"))


class Busy(Exception):
    """An action is running. `ingest.dead` can be changed by one at a time."""


class Actions:
    """Carries out orders.

    Args:
        open_dead_letters: opens `ingest.dead`, as `BrokerBackend.open_dead_letters`.
        letters: what the pages show. An action does not wait until the queue has been read for them.
        clock: Unix time in seconds.
        max_export: see MAX_EXPORT.
    """

    def __init__(
        self,
        open_dead_letters: OpenDeadLetters,
        letters: DeadLetters,
        clock: Callable[[], float] = time.time,
        max_export: int = MAX_EXPORT,
    ) -> None:
        self._open = open_dead_letters
        self._letters = letters
        self._clock = clock
        self._max_export = max_export
        self._count = 0
        self._running: tuple[Action, asyncio.Task[None]] | None = None
        self.all: deque[Action] = deque(maxlen=_REMEMBERED)
        """The latest actions, oldest first."""

    def start(self, order: Order) -> Action:
        """Begin to carry out an order. Raises Busy."""
        if self._running is not None:
            raise Busy
        if order.kind is Kind.EXPORT:
            self._forget_files()
        self._count += 1
        action = Action(self._count, order, self._clock())
        self.all.append(action)
        _log.info("console_action_started", number=action.number, rate=order.rate, **order.facts())
        self._letters.stop_reading()
        task = asyncio.create_task(self._run(action))
        task.add_done_callback(lambda _: self._ended(action))  # also if it is cancelled before it begins
        self._running = action, task
        return action

    def find(self, number: int) -> Action | None:
        """Return an action; None if it is not remembered."""
        return next((action for action in self.all if action.number == number), None)

    def stop(self, action: Action, visitor: Visitor) -> None:
        """Stop an action after its current batch. No effect if it has ended."""
        if self._running is not None and self._running[0] is action and cancel_once(self._running[1]):
            _log.info("console_action_stopping", number=action.number, **visitor.facts())

    @property
    def running(self) -> Action | None:
        """The action that is running."""
        return None if self._running is None else self._running[0]

    async def wait(self, seconds: float) -> None:
        """Wait until no action is running, for at most so many seconds."""
        if self._running is not None:
            await asyncio.wait([self._running[1]], timeout=seconds)

    async def close(self) -> None:
        """Stop what is running, and delete the exported file."""
        if self._running is not None:
            task = self._running[1]
            cancel_once(task)
            await asyncio.wait([task])
        self._forget_files()

    async def _run(self, action: Action) -> None:
        try:
            async with self._letters.queue_lock, self._open(change=action.order.kind is not Kind.EXPORT) as access:
                action.total = await access.queue.count()
                await self._carry_out(access, action)
                action.held_by_others = access.held_by_others()
            action.state = State.FAILED if action.report.failed else State.DONE
        except Exception as error:  # noqa: BLE001 - an odd answer of a server must not end the console
            action.state, action.failure = State.FAILED, noted("console_action_failed", error)

    def _ended(self, action: Action) -> None:
        self._running = None
        action.ended_at = self._clock()
        if action.state is State.RUNNING:  # it was cancelled
            action.state = State.STOPPED
        if not (action.order.dry_run or action.order.kind is Kind.EXPORT):
            self._letters.changed()
        _log.info(
            "console_action_ended",
            number=action.number,
            state=str(action.state),
            done=action.done,
            not_redriven=action.report.kept.total(),
            failed=action.report.failed.total(),
            **action.order.facts(),
        )

    async def _carry_out(self, access: DeadLetterAccess, action: Action) -> None:
        order = action.order
        selection = order.chosen.selection()
        match order.kind:
            case Kind.REDRIVE:
                await dead_letters.redrive(
                    access.queue,
                    await access.publisher(),
                    selection,
                    access.trusted_users,
                    rate=order.rate,
                    dry_run=order.dry_run,
                    report=action.report,
                    progress=action.progress,
                )
            case Kind.PURGE:
                await self._purge(access, action, selection)
            case Kind.EXPORT:
                await self._export(access, action, selection)

    async def _purge(self, access: DeadLetterAccess, action: Action, selection: Selection) -> None:
        order = action.order
        _, deliveries = await dead_letters.gather(access.queue, selection, access.trusted_users, Progress())
        if order.confirmed != len(deliveries):
            raise ConfigurationError(
                f"there are {len(deliveries):,} now, and you confirmed {order.confirmed or 0:,}: nothing was deleted. "
                "Look at them again"
            )
        action.total = len(deliveries)
        await dead_letters.remove(access.queue, deliveries, action.progress)

    async def _export(self, access: DeadLetterAccess, action: Action, selection: Selection) -> None:
        slices = TimeSlices()
        size = 0
        with _writing(), ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile(buffering=0))
            async for batch in dead_letters.select(access.queue, selection, access.trusted_users, action.progress):
                for dead in batch:
                    line = await _line(dead)
                    size += len(line)
                    if size > self._max_export:
                        raise ConfigurationError(
                            f"they are more than {self._max_export:,} bytes: use `ingest dlq export`, or select fewer"
                        )
                    _write(file, line)
                    action.progress.add(1, 1)
                    await slices.between()
            stack.pop_all()  # the file is kept until the next export
        action.file, action.file_size = file, size

    def _forget_files(self) -> None:
        for action in self.all:
            if action.file is not None:
                action.file.close()
                action.file = None


@contextmanager
def _writing() -> Iterator[None]:
    """Raise ConfigurationError for an error of the temporary file."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"the temporary file cannot be written: {error}: set TMPDIR to a directory with more space"
        ) from error


async def _line(dead: DeadLetter) -> bytes:
    """Return a dead letter as a line of JSON. A large one is encoded in a thread, because that can take seconds."""
    if len(dead.delivery.body) > _LARGE:
        return await asyncio.to_thread(_encoded, dead)
    return _encoded(dead)


def _encoded(dead: DeadLetter) -> bytes:
    return f"{json_text(dead_letters.details(dead))}\n".encode()


def _write(file: IO[bytes], data: bytes) -> None:
    """Write everything to an unbuffered file, which may take less at a time. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _read_all(file: IO[bytes]) -> Iterator[bytes]:
    """Return a file in parts. It is closed with its last reference, also if nothing is read."""
    position = 0
    while chunk := os.pread(file.fileno(), _CHUNK, position):
        position += len(chunk)
        yield chunk
