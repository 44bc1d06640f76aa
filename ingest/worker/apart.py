"""Submissions that wait apart: they have trouble of their own, and must not delay others."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from ingest.domain.errors import BrokerUnavailable
from ingest.domain.messages import Delivery
from ingest.domain.ports import Consumer
from ingest.waiting import Backoff, wait_for_event
from ingest.worker.processor import DeliveryProcessor, Unfinished

_HOLD: Final = 1200.0
"""Seconds for which submissions wait apart; well below RabbitMQ's `consumer_timeout` of 30 minutes."""
_MAX_APART: Final = 10_000
"""The most submissions that wait apart, in addition to the prefetch."""
_MEMORY: Final = 16 * 1024 * 1024
"""Bytes of the bodies that wait apart, of all queues together."""


class ApartMemory:
    """The memory of the bodies that wait apart. The queues of a worker share it.

    A queue may hold as much as is free: alone it gets half of the memory, and another queue half of the rest. So no
    queue can take everything, and the sum does not grow with the number of queues (dynamic thresholds; Choudhury and
    Hahne, 1998).
    """

    def __init__(self) -> None:
        self._taken = 0

    def take(self, size: int, held: int) -> bool:
        """Take `size` bytes for a queue that holds `held` bytes, if there is room."""
        if held + size > _MEMORY - self._taken - size:
            return False
        self._taken += size
        return True

    def give_back(self, size: int) -> None:
        """Return `size` bytes."""
        self._taken -= size


class WaitingApart:
    """Retries the submissions of one queue that wait apart, each group with a backoff of its own.

    Args:
        consumer: of the queue.
        processor: moves deliveries to the end of the queue.
        attempt: waits for the circuit breaker, makes one attempt and returns what is unfinished.
        stopping: ends the retries; the broker delivers the submissions again.
        group: the retries run in it.
        memory: what the bodies may take.
    """

    def __init__(
        self,
        consumer: Consumer,
        processor: DeliveryProcessor,
        attempt: Callable[[Sequence[Delivery]], Awaitable[Unfinished]],
        stopping: asyncio.Event,
        group: asyncio.TaskGroup,
        memory: ApartMemory,
    ) -> None:
        self._consumer = consumer
        self._processor = processor
        self._attempt = attempt
        self._stopping = stopping
        self._group = group
        self._memory = memory
        self._bytes = 0
        self.count = 0
        """The number of submissions that wait apart."""

    def add(self, waiting: Unfinished, pauses: tuple[float, float]) -> None:
        """Retry submissions with these first and longest pauses, in seconds."""
        fitting, excess = waiting.split(self._fits)
        if fitting:
            self._group.create_task(self._retry(fitting, Backoff(*pauses)))
        if excess:
            self._group.create_task(self._retry_excess(excess, Backoff(*pauses)))

    def _fits(self, delivery: Delivery) -> bool:
        """Count a delivery as waiting apart, if there is room for its body."""
        size = len(delivery.body)
        if not self._memory.take(size, self._bytes):
            return False
        self.count += 1
        self._bytes += size
        return True

    def _uncount(self, before: Unfinished, after: Unfinished) -> None:
        """Count no longer what was finished between the two."""
        self.count -= len(before.deliveries) - len(after.deliveries)
        finished = _size(before) - _size(after)
        self._bytes -= finished
        self._memory.give_back(finished)

    async def _retry(self, waiting: Unfinished, backoff: Backoff) -> None:
        """Retry submissions. They take no part of the prefetch, up to a limit, so that others are not delayed."""
        put_back_at = _put_back_at()
        counted = waiting
        try:
            with contextlib.suppress(BrokerUnavailable):
                await self._consumer.set_apart(waiting.deliveries, min(self.count, _MAX_APART))
            while waiting:
                waiting = await self._retry_once(waiting, backoff, put_back_at)
                self._uncount(counted, waiting)
                counted = waiting
        finally:
            self._uncount(counted, Unfinished())

    async def _retry_excess(self, waiting: Unfinished, backoff: Backoff) -> None:
        """Retry submissions for which there is no room apart, and make room for others after each attempt.

        What may neither be moved nor requeued is held, and nothing more is read from the queue if it is too much: in an
        outage, a return would count as a failed delivery.
        """
        put_back_at = _put_back_at()
        while waiting:
            waiting = await self._retry_once(waiting, backoff, put_back_at, make_room=True)

    async def _retry_once(
        self, waiting: Unfinished, backoff: Backoff, put_back_at: float, *, make_room: bool = False
    ) -> Unfinished:
        """Wait, then make one attempt; return what is still held, or nothing if the worker stops.

        Before submissions have been held too long for RabbitMQ, they are put back.
        """
        if await wait_for_event(self._stopping, backoff.next()):
            return Unfinished()  # the broker delivers them again
        waiting = await self._attempt(waiting.deliveries)
        if waiting and asyncio.get_running_loop().time() >= put_back_at:
            return Unfinished(refused=await self._put_back(waiting))
        return await self._make_room(waiting) if make_room else waiting

    async def _make_room(self, waiting: Unfinished) -> Unfinished:
        """Return deliveries to their queue, at its end if that is possible; return those that are still held."""
        kept = Unfinished(untrusted=waiting.untrusted, unavailable=waiting.unavailable)
        if movable := [*waiting.contended, *waiting.refused, *waiting.undecided]:
            kept.refused = await self._move_to_end(movable)
        if waiting.rejected:
            await self._consumer.requeue(waiting.rejected)
        return kept

    async def _put_back(self, waiting: Unfinished) -> list[Delivery]:
        """Return deliveries to their queue; return those that are still held.

        If only its events are refused, a submission moves to the end of the queue, which also resets its delivery
        count. A rejected one must not: it would be published in the service's own name.
        """
        await self._consumer.requeue([delivery for delivery in waiting.deliveries if delivery not in waiting.refused])
        return await self._move_to_end(waiting.refused)

    async def _move_to_end(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Move the deliveries that can still be acknowledged; return those that are still held."""
        return await self._processor.move_to_end(self._consumer, list(filter(self._consumer.alive, deliveries)))


def _put_back_at() -> float:
    return asyncio.get_running_loop().time() + _HOLD


def _size(unfinished: Unfinished) -> int:
    return sum(len(delivery.body) for delivery in unfinished.deliveries)
