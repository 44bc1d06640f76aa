"""A process's side of the broker: publishers with confirms, consumers, and dead letters."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Final

from ingest.domain import topology
from ingest.domain.errors import BrokerUnavailable
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import ConnectionState
from tests.simulation.consumer import SimulatedConsumer
from tests.simulation.machines import Fate, Process, Server
from tests.simulation.queues import SERVICE_USER, BrokerState, Stored

_CONFIRM_TIMEOUT: Final = 2.0
_LATEST: Final = 2.0


class SimulatedPublisher:
    """`domain.ports.Publisher` for one process, or for a producer with its own user."""

    def __init__(self, state: BrokerState, process: Process, user: str = SERVICE_USER) -> None:
        self._state = state
        self._process = process
        self._life = process.life
        self._network = process.network
        self._user = user
        self._free_at = 0.0

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        if not messages:
            return []
        await self._process.runs(self._life)
        network = self._network
        fate = network.fate(self._process, Server.BROKER)
        if fate is Fate.REFUSED:
            await asyncio.sleep(network.delay())
            await self._process.runs(self._life)
            return [PublishOutcome.UNSENT] * len(messages)
        if fate is Fate.ANSWERED:
            return await self._publish_and_wait(messages)
        if fate is not Fate.LOST and network.rng.random() < 0.5:
            return await self._publish_one_by_one(messages)
        # The connection breaks, or confirms are late. The broker has taken the first messages, or takes them later.
        taken = 0 if fate is Fate.LOST else network.rng.randint(0, len(messages))
        delay = network.delay() if fate is Fate.UNANSWERED else _CONFIRM_TIMEOUT + network.rng.uniform(0.0, _LATEST)
        for message in messages[:taken]:
            network.later(delay, partial(self._state.publish, message, self._user))
        await asyncio.sleep(_CONFIRM_TIMEOUT)
        await self._process.runs(self._life)
        return [PublishOutcome.UNKNOWN] * len(messages)

    async def _publish_and_wait(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        network = self._network
        outcomes: list[PublishOutcome] = []
        # Messages of one publisher arrive in order.
        self._free_at = max(self._free_at, network.loop.time() + network.delay())

        def arrive() -> None:
            outcomes.extend([self._state.publish(message, self._user) for message in messages])

        arrival = self._free_at - network.loop.time()
        network.later(arrival, arrive)
        await asyncio.sleep(arrival + network.delay())
        await self._process.runs(self._life)
        return outcomes

    async def _publish_one_by_one(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        """Publish with an outcome per message: confirmed, refused by some or all queues, returned, or unknown."""
        network = self._network
        outcomes = [network.rng.choice(list(PublishOutcome)) for _ in messages]

        def arrive(index: int) -> None:
            taken = self._state.publish(messages[index], self._user)
            if outcomes[index] is PublishOutcome.CONFIRMED:
                outcomes[index] = taken

        arrival = network.delay()
        for index, outcome in enumerate(outcomes):
            is_in_doubt = outcome in (PublishOutcome.NACKED, PublishOutcome.UNKNOWN)
            if outcome is PublishOutcome.CONFIRMED or (is_in_doubt and network.rng.random() < 0.5):
                network.later(arrival, partial(arrive, index))
        is_answered = PublishOutcome.UNKNOWN not in outcomes
        await asyncio.sleep(arrival + network.delay() if is_answered else _CONFIRM_TIMEOUT)
        await self._process.runs(self._life)
        return outcomes

    async def ready(self) -> None:
        """Never called by a worker in a simulation with short outages; a redrive asks, and finds out itself."""

    async def close(self) -> None:
        """Nothing to close."""


class SimulatedBroker:
    """`domain.ports.Broker` for one process."""

    def __init__(self, state: BrokerState, process: Process) -> None:
        self._state = state
        self._process = process
        self._life = process.life
        self.consumers: list[SimulatedConsumer] = []

    @property
    def user(self) -> str | None:
        return SERVICE_USER

    def connections(self) -> list[ConnectionState]:
        return []

    async def declare(self) -> None:
        """The topology exists."""

    async def depths(self, queues: Sequence[str]) -> dict[str, int | None]:
        return {name: len(self._state.queues[name].ready) if name in self._state.queues else None for name in queues}

    async def publisher(self, connections: int = 1) -> SimulatedPublisher:
        await self._process.runs(self._life)
        return SimulatedPublisher(self._state, self._process)

    async def consumer(self, queue: str, prefetch: int) -> SimulatedConsumer:
        await self._process.runs(self._life)
        consumer = SimulatedConsumer(self._state.queues[queue], self._process, prefetch)
        self.consumers.append(consumer)
        return consumer

    async def close(self) -> None:
        """Nothing to close."""


class SimulatedDeadLetters:
    """`domain.ports.DeadLetterQueue`. What is browsed is not in the queue for others until `close`."""

    def __init__(self, state: BrokerState) -> None:
        self._queue = state.queues[topology.INGEST_DEAD]
        self._network = state.network
        self._browsed: list[Stored] = []

    async def count(self) -> int:
        return len(self._queue.ready)

    async def size(self) -> int | None:
        return None

    async def browse(self) -> AsyncIterator[list[Delivery]]:
        for _ in range(len(self._queue.ready)):
            await asyncio.sleep(self._network.delay())
            if self._queue.ready:
                stored = self._queue.ready.popleft()
                self._browsed.append(stored)
                yield [stored.delivery(topology.INGEST_DEAD, stored)]

    async def remove(self, deliveries: Sequence[Delivery]) -> None:
        await asyncio.sleep(self._network.delay())
        if any(delivery.token not in self._browsed for delivery in deliveries):
            raise BrokerUnavailable("the simulated queue was closed")
        for delivery in deliveries:
            self._browsed.remove(delivery.token)

    async def close(self) -> None:
        browsed, self._browsed = self._browsed, []
        self._queue.put_back(browsed)
