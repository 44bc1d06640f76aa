"""Attempts the deliveries of all ingest queues in micro-batches, which the queues share, and retries them."""

import asyncio
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Final

import structlog

from ingest.domain.errors import ParserFailed
from ingest.domain.messages import Delivery
from ingest.domain.ports import Broker, Consumer
from ingest.waiting import Backoff, wait_for_event
from ingest.worker.apart import ApartMemory, WaitingApart
from ingest.worker.breaker import PAUSES, CircuitBreaker, Stopping
from ingest.worker.classify import waits_for_parser
from ingest.worker.consumer_group import ConsumerGroup, by_queue
from ingest.worker.cost import cost_of
from ingest.worker.deficit_round_robin import DeficitRoundRobin
from ingest.worker.processor import DeliveryProcessor, Unfinished

_CONTENDED_PAUSES: Final = (0.05, 1.0)
"""First and longest pause before another attempt at contended submissions, in seconds."""
_PATIENCE: Final = 0.5
"""Seconds after which submissions that are still contended or undecided wait apart: they no longer take part of the
prefetch."""
_CONTENDED_APART_PAUSES: Final = (1.0, 5.0)
"""First and longest pause before another attempt at contended submissions that wait apart, in seconds."""
_REFUSED_PAUSES: Final = (0.5, 30.0)
"""First and longest pause before another attempt at submissions whose events or dead letters the broker refuses, in
seconds."""
_DEFECT_PAUSE: Final = 0.2
"""Seconds before a delivery whose attempt failed for no other reason than itself is requeued."""
_REMOVAL_TIMEOUT: Final = 30.0
"""Seconds in which the deliveries of a removed queue must be finished."""
_REMOVAL_PAUSE: Final = 0.1
MAX_CONCURRENCY: Final = 3
"""Micro-batches in progress: one waits for confirms while the next is prepared, and one more fills up. As many large
submissions may be in progress beside them."""

_log = structlog.get_logger(__name__)


class _Slots:
    """Deliveries that wait for a micro-batch, and how many of their micro-batches are in progress."""

    def __init__(self, weight: Callable[[str], float]) -> None:
        self.waiting: DeficitRoundRobin[Delivery] = DeficitRoundRobin(weight)
        self.in_progress = 0


class DeliveryLoop:
    """Receives the deliveries of all queues, attempts them in micro-batches, and retries the unfinished ones.

    A micro-batch has deliveries of several queues, which share it by `DeficitRoundRobin`. While one micro-batch is in
    progress, the next one waits until it has `max_batch` tasks: large ones cost less per task, also for RabbitMQ. There
    is no timer, so under light traffic small ones start at once.

    A submission that costs more than `max_batch` is a micro-batch by itself, and so is one that waits for the process
    that parses large bodies. They delay no other delivery: the queues share slots for the former in the same way, and
    the latter need no slot.

    Args:
        consumers: by the name of the queue; `consume` and `remove` change them.
        processor: makes the attempts.
        breaker: limits attempts during an outage.
        stopping: ends the loop.
        max_batch: the tasks of a full micro-batch.
    """

    def __init__(
        self,
        consumers: MutableMapping[str, Consumer],
        processor: DeliveryProcessor,
        breaker: CircuitBreaker,
        stopping: asyncio.Event,
        max_batch: int,
    ) -> None:
        self._consumers = consumers
        self._all = ConsumerGroup(consumers)
        self._processor = processor
        self._breaker = breaker
        self._stopping = stopping
        self._max_batch = max_batch
        self.weights: Mapping[str, float] = {}
        """The weights of queues; it is 1 for others."""
        self._small = _Slots(self._weight)
        self._large = _Slots(self._weight)
        self._group = asyncio.TaskGroup()
        self._apart_memory = ApartMemory()
        self._apart = {queue: self._waiting_apart(consumer) for queue, consumer in consumers.items()}

    async def run(self) -> None:
        """Consume until the worker stops, then finish what was delivered."""
        async with self._group:
            self._group.create_task(self._stop_consumers())
            for queue, consumer in self._consumers.items():
                self._group.create_task(self._receive(queue, consumer))

    async def consume(self, broker: Broker, queue: str, prefetch: int) -> bool:
        """Consume a further queue while `run` runs; return False if the worker stops before the consumer is open."""
        consumer = await broker.consumer(queue, prefetch)
        if self._stopping.is_set():
            await consumer.close()
            return False
        self._consumers[queue] = consumer
        self._apart[queue] = self._waiting_apart(consumer)
        self._group.create_task(self._receive(queue, consumer))
        return True

    def held(self, queue: str) -> int:
        """Return how many deliveries of a queue are not finished."""
        return self._consumers[queue].held

    async def remove(self, queue: str) -> None:
        """Take no more deliveries from a queue, finish those that were delivered, and close its consumer.

        What is not finished in time is delivered again.
        """
        consumer = self._consumers[queue]
        await consumer.stop()
        give_up = asyncio.get_running_loop().time() + _REMOVAL_TIMEOUT
        while consumer.held and asyncio.get_running_loop().time() < give_up:
            if await wait_for_event(self._stopping, _REMOVAL_PAUSE):
                return  # the worker finishes the deliveries and closes the consumer
        del self._consumers[queue], self._apart[queue]
        await consumer.close()

    def _waiting_apart(self, consumer: Consumer) -> WaitingApart:
        return WaitingApart(
            consumer, self._processor, self._attempt_under_breaker, self._stopping, self._group, self._apart_memory
        )

    def _weight(self, queue: str) -> float:
        return self.weights.get(queue, 1.0)

    async def _receive(self, queue: str, consumer: Consumer) -> None:
        while deliveries := await consumer.receive():
            for delivery in deliveries:
                if waits_for_parser(delivery):
                    self._group.create_task(self._process([delivery]))
                else:
                    cost = cost_of(delivery)
                    (self._large if cost > self._max_batch else self._small).waiting.put(queue, delivery, cost)
            if self._small.waiting.count(queue) + self._large.waiting.count(queue) > consumer.held:
                # Some belong to a lost connection. The broker delivers those again.
                self._small.waiting.discard(queue, consumer.alive)
                self._large.waiting.discard(queue, consumer.alive)
            self._start()

    def _start(self) -> None:
        """Start as many micro-batches as the limits allow."""
        small = self._small
        while small.waiting and small.in_progress < (MAX_CONCURRENCY if small.waiting.cost >= self._max_batch else 1):
            self._start_one(small, self._max_batch)
        while self._large.waiting and self._large.in_progress < MAX_CONCURRENCY:
            self._start_one(self._large, 1)

    def _start_one(self, slots: _Slots, most: int) -> None:
        slots.in_progress += 1
        self._group.create_task(self._process(slots.waiting.take(most), slots))

    async def _stop_consumers(self) -> None:
        await self._stopping.wait()
        # At once: a consumer that has paused reading cannot read the broker's answer, and waits for it.
        await asyncio.gather(*[consumer.stop() for consumer in self._consumers.values()])

    async def _process(self, deliveries: Sequence[Delivery], slots: _Slots | None = None) -> None:
        """Attempt the deliveries until all are finished or lost, or the worker stops."""
        unfinished = await self._attempt_under_breaker(deliveries)
        # Retries do not count as in progress: contended deliveries are few, and in an outage the breaker
        # limits the attempts.
        if slots is not None:
            slots.in_progress -= 1
            self._start()
        if unfinished:
            await self._retry(unfinished)

    async def _retry(self, unfinished: Unfinished) -> None:
        contended, unavailable = Backoff(*_CONTENDED_PAUSES), Backoff(*PAUSES)
        loop = asyncio.get_running_loop()
        impatient_at = loop.time() + _PATIENCE
        while unfinished:
            if unfinished.refused or unfinished.rejected:
                refused = Unfinished(refused=unfinished.refused, rejected=unfinished.rejected)
                self._set_apart(refused, _REFUSED_PAUSES)
                unfinished.refused, unfinished.rejected = [], []
            if unfinished.untrusted:
                self._set_apart(Unfinished(untrusted=unfinished.untrusted), _CONTENDED_APART_PAUSES)
                unfinished.untrusted = []
            if (unfinished.contended or unfinished.undecided) and loop.time() >= impatient_at:
                waiting = Unfinished(contended=unfinished.contended, undecided=unfinished.undecided)
                self._set_apart(waiting, _CONTENDED_APART_PAUSES)
                unfinished.contended, unfinished.undecided = [], []
            if not unfinished:
                return
            pause = (unavailable if unfinished.unavailable or unfinished.undecided else contended).next()
            # With an open circuit the breaker decides when the next attempt is made.
            if not self._breaker.state.is_open and await wait_for_event(self._stopping, pause):
                return  # the broker delivers them again
            unfinished = await self._attempt_under_breaker(unfinished.deliveries)

    def _set_apart(self, waiting: Unfinished, pauses: tuple[float, float]) -> None:
        for queue, own in by_queue(waiting.deliveries).items():
            if queue in self._apart:  # otherwise it was removed, and the broker delivers them again
                self._apart[queue].add(waiting.split(own.__contains__)[0], pauses)

    async def _attempt_under_breaker(self, deliveries: Sequence[Delivery]) -> Unfinished:
        """Wait for the breaker, then make one attempt at the deliveries that can still be acknowledged."""
        try:
            async with self._breaker.attempt() as attempt:
                alive = [delivery for delivery in deliveries if self._all.alive(delivery)]
                if not alive:
                    return Unfinished()
                unfinished = await self._attempt(alive)
                finished_some = len(unfinished.deliveries) < len(alive)
                attempt.made_progress = finished_some or not unfinished.unavailable
                return unfinished
        except Stopping:
            return Unfinished()  # the broker delivers them again

    async def _attempt(self, deliveries: Sequence[Delivery]) -> Unfinished:
        """Make one attempt. After a defect, attempt each delivery alone and requeue the one that triggers it.

        The same if the process that parses large bodies failed: the body may be the reason.

        So the other deliveries are finished, and the broker dead-letters the requeued one at the delivery limit.
        """
        try:
            return await self._processor.attempt(self._all, deliveries)
        except ParserFailed as error:
            _log.error("parsing_failed", error=str(error), ids=[delivery.message_id for delivery in deliveries])
        except Exception:  # noqa: BLE001 - a defect must not stop the worker
            _log.exception("attempt_crashed", submissions=len(deliveries))
        if len(deliveries) == 1:
            await asyncio.sleep(_DEFECT_PAUSE)
            await self._all.requeue(deliveries)
            return Unfinished()
        unfinished = Unfinished()
        for delivery in deliveries:
            unfinished.add(await self._attempt([delivery]))
        return unfinished
