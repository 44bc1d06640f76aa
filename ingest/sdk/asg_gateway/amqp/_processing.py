"""What happens to a delivery: decoded, handled once, tried again, parked, acknowledged.

It knows no broker: a consumer and the fake of `asg_gateway.amqp.testing` give it deliveries.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from typing import Final

from asg_gateway._errors import ASGGatewayError, InvalidEventError
from asg_gateway.amqp._connection import Backoff
from asg_gateway.amqp._decoding import decode
from asg_gateway.amqp._dedupe import Dedupe, DedupeUnavailableError, Handler, RunInThread
from asg_gateway.amqp._deliveries import SUSPECT, Delivery, Job, Turns
from asg_gateway.amqp._events import Event
from asg_gateway.amqp._tracing import consumer_span

PARKED: Final = ".parked"
_REMEMBERED: Final = 10_000
"""Events that were handled and could not be acknowledged, at most."""
_CANCELLING: Final = 2.0
"""Seconds for a handler that is cancelled to end."""

log = logging.getLogger("asg_gateway.amqp")


class Park(Exception):
    """A handler raises it to park its event at once, because no further attempt helps."""


class PoisonError(Exception):
    """The event was delivered many times, at last alone, and never finished: it probably crashes its consumers."""


@dataclass
class ConsumerStats:
    """What a consumer has done since it was created.

    Attributes:
        handled: calls of the handler that succeeded.
        duplicates: copies of events that were handled before.
        retried: further attempts that were scheduled.
        parked: events that went to the parking queue.
    """

    handled: int = 0
    duplicates: int = 0
    retried: int = 0
    parked: int = 0


@dataclass(frozen=True)
class Rules:
    """How events are handled.

    Attributes:
        queue: the queue that is consumed.
        handler: called for each event.
        dedupe: the strategy.
        max_attempts: failures after which an event is parked; None: it is never parked for that.
        pauses: returns the pauses of one event, in seconds.
        sleep: waits so many seconds.
    """

    queue: str
    handler: Handler
    dedupe: Dedupe
    max_attempts: int | None
    pauses: Callable[[], Backoff]
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep

    @property
    def source(self) -> str:
        """The queue whose events these are, also if they come from its parking queue."""
        return self.queue.removesuffix(PARKED)


class Processor:
    """Handles deliveries. At most one attempt at an event runs at a time.

    Args:
        rules: how.
        concurrency: the most attempts at once.
        in_thread: calls a blocking handler.
        stats: counts.
        on_ended: called when an attempt at a held delivery ends, with whether it was finished, and whether it was a
            suspect.
    """

    def __init__(
        self,
        rules: Rules,
        concurrency: int,
        in_thread: RunInThread,
        stats: ConsumerStats,
        on_ended: Callable[[bool, bool], None] = lambda finished, suspect: None,
    ) -> None:
        self._rules = rules
        self._turns = Turns(concurrency)
        self._in_thread = in_thread
        self._stats = stats
        self._on_ended = on_ended
        self._jobs: dict[str, Job] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._pausing: set[asyncio.Task[None]] = set()
        self._unacknowledged: OrderedDict[str, None] = OrderedDict()
        """Events that were handled when their channel was lost. The broker delivers them again."""
        self._stopping = False
        self._numbers = count()
        self._idle = asyncio.Event()
        self._idle.set()

    async def accept(self, delivery: Delivery) -> None:
        """Take a delivery. While the processor stops, it is left to the broker, which delivers it again."""
        if self._stopping:
            return
        event, problem = None, None
        try:
            event = decode(delivery.body)
        except InvalidEventError as error:
            problem = error
        key = f"invalid message {next(self._numbers)}" if event is None else event.id
        if key in self._unacknowledged:
            await delivery.ack()
            return
        if job := self._jobs.get(key):
            job.deliveries.append(delivery)
            if job.waits:
                self._on_ended(False, False)
            return
        job = Job(event, key, [delivery], self._rules.pauses(), problem)
        self._jobs[key] = job
        self._idle.clear()
        self._turns.add(job)
        self._begin_next()

    async def idle(self) -> None:
        """Wait until nothing is held."""
        await self._idle.wait()

    async def drain(self, seconds: float) -> int:
        """Begin nothing more, wait until what runs has ended or the time is up; return how many attempts were cut."""
        self._stopping = True
        for task in self._pausing:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)
        cut = self.abort()
        if self._running:
            await asyncio.wait(self._running, timeout=_CANCELLING)  # transactions are rolled back
        return cut

    def abort(self) -> int:
        """End all attempts at once; return how many. A blocking handler goes on in its thread."""
        self._stopping = True
        tasks = [*self._running]
        for task in [*tasks, *self._pausing]:
            task.cancel()
        return len(tasks)

    def _begin_next(self) -> None:
        while not self._stopping and (job := self._turns.next()) is not None:
            task = asyncio.create_task(self._run(job))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, job: Job) -> None:
        suspect = job.earlier_deliveries >= SUSPECT
        try:
            finished = await self._attempt(job) if job.drop_dead() else self._forget(job)
            job.survived = True
            if finished is not None:
                self._on_ended(finished, suspect)
        finally:
            self._turns.end(job)
            self._begin_next()

    async def _attempt(self, job: Job) -> bool | None:
        """Handle or park an event; return whether it is finished, or None if no copy of it is held any more."""
        limit = self._rules.max_attempts
        # The first deliveries may have ended because of a neighbour. Since then, it was handled alone.
        if limit is not None and job.earlier_deliveries >= limit + SUSPECT and not job.survived:
            job.problem = PoisonError(f"delivered {job.earlier_deliveries} times before and never finished")
            job.attempts = job.earlier_deliveries
        if job.event is not None and job.problem is None and await self._handled(job, job.event):
            return await self._finish(job)
        if job.problem is not None and await self._parked(job, job.problem):
            return await self._finish(job)
        self._try_later(job)
        return False

    async def _handled(self, job: Job, event: Event) -> bool:
        rules = self._rules
        try:
            with consumer_span(event, rules.queue):
                called = await rules.dedupe.handle(event, rules.source, rules.handler, self._in_thread)
        except DedupeUnavailableError as error:
            log.warning("dedupe_unavailable queue=%s event=%s error=%s", rules.queue, job.key, error)
            return False
        except Park as error:
            job.attempts += 1
            job.problem = error
            return False
        except (Exception, asyncio.CancelledError) as error:
            if _is_cancelled():
                raise
            self._note_failure(job, error)
            return False
        self._stats.handled += called
        self._stats.duplicates += not called
        return True

    def _note_failure(self, job: Job, error: BaseException) -> None:
        job.attempts += 1
        limit = self._rules.max_attempts
        log.warning(
            "handler_failed queue=%s event=%s attempts=%d of=%s error=%s: %s",
            *(self._rules.queue, job.key, job.attempts, limit, type(error).__name__, error),
            exc_info=error,
        )
        if limit is not None and job.attempts >= limit:
            job.problem = error

    async def _parked(self, job: Job, problem: BaseException) -> bool:
        name = type(problem).__name__
        try:
            await job.deliveries[0].park(problem, job.attempts)
        except ASGGatewayError as error:
            log.error("parking_failed queue=%s event=%s error=%s", self._rules.queue, job.key, error)
            return False
        self._stats.parked += 1
        log.error("event_parked queue=%s event=%s error=%s: %s", self._rules.queue, job.key, name, problem)
        return True

    async def _finish(self, job: Job) -> bool | None:
        acknowledged = 0
        while job.deliveries:  # copies may arrive meanwhile
            acknowledged += await job.deliveries.pop().ack()
        self._forget(job)
        self._stats.duplicates += max(acknowledged - 1, 0)
        if acknowledged:
            return True
        self._unacknowledged[job.key] = None
        if len(self._unacknowledged) > _REMEMBERED:
            self._unacknowledged.popitem(last=False)
        return None

    def _try_later(self, job: Job) -> None:
        if self._stopping:
            return
        self._stats.retried += 1
        job.waits = True
        task = asyncio.create_task(self._pause(job))
        self._pausing.add(task)
        task.add_done_callback(self._pausing.discard)

    async def _pause(self, job: Job) -> None:
        await self._rules.sleep(job.pauses.next())
        job.waits = False
        self._turns.add(job)
        self._begin_next()

    def _forget(self, job: Job) -> None:
        del self._jobs[job.key]
        if not self._jobs:
            self._idle.set()


def _is_cancelled() -> bool:
    """Return whether the current task was cancelled, and not only something in its handler."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
