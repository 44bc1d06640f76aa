"""A `DeliveryLoop` with a scripted consumer and a scripted processor, for tests in virtual time."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Sequence
from typing import Any

from ingest.domain.errors import BrokerUnavailable
from ingest.domain.messages import Delivery
from ingest.domain.ports import Acknowledger, Consumer
from ingest.domain.topology import DEFAULT, INGEST_TASKS
from ingest.waiting import Backoff
from ingest.worker.breaker import CircuitBreaker
from ingest.worker.delivery_loop import DeliveryLoop
from ingest.worker.processor import DeliveryProcessor, Unfinished
from tests.support.deliveries import delivery


def now() -> float:
    """Return the time of the event loop, in seconds."""
    return asyncio.get_running_loop().time()


class ScriptedConsumer:
    """Delivers what `deliver` is given, from a queue. Records the calls, with their times."""

    def __init__(self, queue: str = INGEST_TASKS) -> None:
        self._queue = queue
        self._arrived: asyncio.Queue[list[Delivery]] = asyncio.Queue()
        self.lost: list[Delivery] = []
        self.requeued: list[tuple[float, list[str | None]]] = []
        self.apart: list[tuple[list[str | None], int]] = []
        """What was set apart, and the extra prefetch that was asked for."""
        self.is_connected = True

    def deliver(self, *names: str, **changes: Any) -> list[Delivery]:
        """Make deliveries with these message_ids arrive together; return them. Arguments replace their fields."""
        deliveries = [delivery(message_id=name, queue=self._queue, **changes) for name in names]
        self._arrived.put_nowait(deliveries)
        return deliveries

    async def receive(self) -> list[Delivery]:
        return await self._arrived.get()

    @property
    def held(self) -> int:
        return 0

    def alive(self, delivery: Delivery) -> bool:
        return delivery not in self.lost

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """The processor is scripted."""

    async def set_apart(self, deliveries: Sequence[Delivery], extra: int) -> None:
        if not self.is_connected:
            raise BrokerUnavailable("no connection")
        self.apart.append(([delivery.message_id for delivery in deliveries], extra))

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        self.requeued.append((now(), [delivery.message_id for delivery in deliveries]))

    async def pause(self) -> None:
        raise NotImplementedError

    async def resume(self) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        self._arrived.put_nowait([])

    async def close(self) -> None:
        raise NotImplementedError


class HeldConsumer(ScriptedConsumer):
    """Holds deliveries until `finished`."""

    def __init__(self, queue: str) -> None:
        super().__init__(queue)
        self.finished = True
        self.is_closed = False

    @property
    def held(self) -> int:
        return 0 if self.finished else 1

    async def close(self) -> None:
        self.is_closed = True


class ScriptedProcessor(DeliveryProcessor):
    """Finishes every delivery, except those that are in `trouble`, which says where they go or what they raise.

    `attempts` has the time and the deliveries of each attempt, which takes `seconds`.
    """

    def __init__(self) -> None:
        self.attempts: list[tuple[float, list[str | None]]] = []
        self.moves: list[tuple[float, list[str | None]]] = []
        self.unmoved: set[str | None] = set()
        self.trouble: dict[str, str | Exception] = {}
        self.seconds = 0.0

    async def attempt(self, consumer: Acknowledger, deliveries: Sequence[Delivery]) -> Unfinished:
        self.attempts.append((now(), [delivery.message_id for delivery in deliveries]))
        unfinished = Unfinished()
        for item in deliveries:
            trouble = self.trouble.get(item.message_id or "")
            if isinstance(trouble, Exception):
                raise trouble
            if trouble is not None:
                getattr(unfinished, trouble).append(item)
        await asyncio.sleep(self.seconds)
        return unfinished

    async def move_to_end(self, consumer: Acknowledger, deliveries: Sequence[Delivery]) -> list[Delivery]:
        self.moves.append((now(), [delivery.message_id for delivery in deliveries]))
        return [delivery for delivery in deliveries if delivery.message_id in self.unmoved]

    def times_of(self, name: str) -> list[float]:
        """When the delivery was attempted."""
        return [round(time, 3) for time, names in self.attempts if name in names]


class LoopHarness:
    """A running loop with two queues and micro-batches of `max_batch`. The pauses of its breaker are 10 s."""

    def __init__(self, max_batch: int = 10) -> None:
        random.seed(1)  # the pauses are the same in every run
        self.consumer = ScriptedConsumer()
        self.other = ScriptedConsumer(DEFAULT.http_queues[0])
        self.processor = ScriptedProcessor()
        self.breaker = CircuitBreaker(clock=now, backoff=Backoff(10, 10, jitter=lambda: 1.0))
        self.stopping = asyncio.Event()
        consumers: dict[str, Consumer] = {INGEST_TASKS: self.consumer, DEFAULT.http_queues[0]: self.other}
        self.loop = DeliveryLoop(consumers, self.processor, self.breaker, self.stopping, max_batch)

    async def run(self, use: Awaitable[None]) -> None:
        """Run the loop until `use` ends, then stop it as the worker does."""
        running = asyncio.create_task(self.loop.run())
        await use
        self.stopping.set()
        self.breaker.stop()
        await running

    async def run_for(self, seconds: float) -> None:
        await self.run(asyncio.sleep(seconds))


def between(times: list[float], least: float, most: float) -> bool:
    """Return whether all pauses are within the limits, and there is at least one."""
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    return bool(pauses) and all(least <= pause <= most for pause in pauses)
