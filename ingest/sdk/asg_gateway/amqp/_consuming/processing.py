"""What happens to a delivery: decoded, handled once, tried again, parked, acknowledged.

It knows no broker: a consumer and the fake of `asg_gateway.amqp.testing` give it deliveries.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from typing import Final

from asg_gateway._errors import ASGGatewayError, InvalidEventError
from asg_gateway.amqp._cancellation import is_cancelled
from asg_gateway.amqp._consuming.deliveries import SUSPECT, Delivery, Job, Turns
from asg_gateway.amqp._consuming.rules import ConsumerStats, Park, PoisonError, Rules
from asg_gateway.amqp._consuming.tracing import consumer_span
from asg_gateway.amqp._decoding import decode
from asg_gateway.amqp._dedupe.strategy import DedupeUnavailableError, RunInThread
from asg_gateway.amqp._events import Event

_REMEMBERED: Final = 10_000
"""Events whose channel was lost, at most."""
_CANCELLING: Final = 2.0
"""Seconds for a handler that is cancelled to end."""

log = logging.getLogger("asg_gateway.amqp")


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
        self._unacknowledged = _Memory()
        """Events that were handled when their channel was lost. The broker delivers them again."""
        self._survivors = _Memory()
        """Events that were not handled then, and of which an attempt has crashed nothing."""
        self._stopping = False
        self._numbers = count()
        self._idle = asyncio.Event()
        self._idle.set()

    async def accept(self, delivery: Delivery) -> None:
        """Take a delivery. While the processor stops, nothing begins, and the broker delivers it again."""
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
        job = Job(event, key, [delivery], self._rules.pauses(), problem, survived=key in self._survivors)
        self._jobs[key] = job
        self._idle.clear()
        if delivery.wait > 0:
            self._try_later(job, delivery.wait)
            self._on_ended(False, False)
        else:
            self._turns.add(job)
            self._begin_next()

    async def idle(self) -> None:
        """Wait until nothing is held."""
        await self._idle.wait()

    async def drain(self, seconds: float) -> int:
        """Begin nothing more, wait until what runs has ended or the time is up; return how many attempts were cut."""
        self._stopping = True
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
            finished = await self._attempt(job) if job.drop_dead() else self._left_to_the_broker(job)
            job.survived = True
            if finished is not None:
                self._on_ended(finished, suspect)
        finally:
            if self._jobs.get(job.key) is job and not job.waits and not self._stopping:
                # A defect. The broker does not deliver the event again while the channel that holds it is open.
                log.error("attempt_lost queue=%s event=%s", self._rules.queue, job.key, exc_info=True)
                self._try_later(job, job.pauses.next())
                self._on_ended(False, suspect)
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
        if job.problem is not None and (held := await self._parked(job, job.problem)):
            acknowledged = sum([await delivery.ack() for delivery in held])
            self._forget(job)
            for delivery in job.deliveries:
                await self.accept(delivery)
            return True if acknowledged else None
        self._stats.retried += 1
        self._try_later(job, job.pauses.next())
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
            if is_cancelled():
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

    async def _parked(self, job: Job, problem: BaseException) -> list[Delivery]:
        """Park an event; return the copies to acknowledge, none if it cannot be parked now.

        What arrives meanwhile is not among them: in the parking queue itself, it may be the copy that was just parked.
        """
        held, job.deliveries = job.deliveries, []
        try:
            await held[0].park(problem, job.attempts)
        except (Exception, asyncio.CancelledError) as error:
            job.deliveries = [*held, *job.deliveries]
            if is_cancelled():
                raise
            unexpected = not isinstance(error, ASGGatewayError)
            log.error(
                "parking_failed queue=%s event=%s error=%s", self._rules.queue, job.key, error, exc_info=unexpected
            )
            return []
        self._stats.parked += 1
        name = type(problem).__name__
        log.error("event_parked queue=%s event=%s error=%s: %s", self._rules.queue, job.key, name, problem)
        return held

    async def _finish(self, job: Job) -> bool | None:
        acknowledged = 0
        while job.deliveries:  # copies may arrive meanwhile
            acknowledged += await job.deliveries[0].ack()
            del job.deliveries[0]
        self._forget(job)
        self._stats.duplicates += max(acknowledged - 1, 0)
        if acknowledged:
            return True
        self._unacknowledged.add(job.key)
        return None

    def _left_to_the_broker(self, job: Job) -> None:
        """Forget an event whose copies cannot be acknowledged any more. The broker delivers it again."""
        if job.survived:
            self._survivors.add(job.key)
        self._forget(job)

    def _try_later(self, job: Job, seconds: float) -> None:
        if self._stopping:
            return
        job.waits = True
        task = asyncio.create_task(self._pause(job, seconds))
        self._pausing.add(task)
        task.add_done_callback(self._pausing.discard)

    async def _pause(self, job: Job, seconds: float) -> None:
        await self._rules.sleep(seconds)
        job.waits = False
        self._turns.add(job)
        self._begin_next()

    def _forget(self, job: Job) -> None:
        del self._jobs[job.key]
        if not self._jobs:
            self._idle.set()


class _Memory:
    """The latest events that were added."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, None] = OrderedDict()

    def add(self, key: str) -> None:
        self._keys[key] = None
        if len(self._keys) > _REMEMBERED:
            self._keys.popitem(last=False)

    def __contains__(self, key: str) -> bool:
        return key in self._keys
