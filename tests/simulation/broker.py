"""A simulated broker: quorum queues with confirms, prefetch, redelivery and delivery limits."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from ingest.domain import topology
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import ConnectionState
from tests.simulation.machines import EPOCH, Fate, Network, Process, Server

SERVICE_USER: Final = "ingest"
FEEDBACK: Final = "feedback"
"""A queue that the checker reads: every event about a direct submission."""

_CONFIRM_TIMEOUT: Final = 2.0
_LATEST: Final = 2.0
_RECONNECT: Final = 0.5
_BINDINGS: Final = (*topology.QUEUES, topology.Queue(FEEDBACK, topology.EVENTS, "submission.#", topology.NO_LIMIT))


class Stored(msgspec.Struct, eq=False):
    """A message in a queue."""

    message: Message
    user: str
    deliveries: int = 0
    redelivered: bool = False
    headers: dict[str, Any] = {}
    at: float = 0.0
    """When it arrived, in virtual seconds."""

    def delivery(self, queue: str, token: object) -> Delivery:
        """Return it as a consumer of `queue` receives it."""
        message = self.message
        return Delivery(
            body=message.body,
            queue=queue,
            routing_key=message.routing_key,
            message_id=message.message_id or None,
            content_type=message.content_type,
            user_id=self.user,
            type=message.type or None,
            headers=message.headers | self.headers,
            redelivered=self.redelivered,
            deliveries=self.deliveries,
            token=token,
        )


class QueueState:
    """One quorum queue."""

    def __init__(self, network: Network, broker: "BrokerState", definition: topology.Queue) -> None:
        self._network = network
        self._broker = broker
        self.definition = definition
        self.ready: deque[Stored] = deque()
        self.consumers: list[SimulatedConsumer] = []
        self.full_until = 0.0
        self.unbound_until = 0.0

    @property
    def is_full(self) -> bool:
        return self._network.loop.time() < self.full_until

    def takes(self, message: Message) -> bool:
        """Return whether a message is routed here now."""
        if self._network.loop.time() < self.unbound_until:
            return False
        return message.exchange == self.definition.exchange and topology.matches(
            self.definition.binding, message.routing_key
        )

    def put(self, stored: Stored) -> None:
        self.ready.append(stored)
        self.dispatch()

    def put_back(self, unacknowledged: Sequence[Stored]) -> None:
        """Return messages to the front, in order; each return counts as a delivery."""
        for stored in reversed(unacknowledged):
            stored.deliveries += 1
            stored.redelivered = True
            if stored.deliveries > self.definition.delivery_limit:
                self._broker.dead_letter(self.definition, stored)
            else:
                self.ready.appendleft(stored)
        self.dispatch()

    def dispatch(self) -> None:
        """Send messages to consumers that may have more."""
        while self.ready:
            consumer = next((c for c in self.consumers if c.wants_more), None)
            if consumer is None:
                return
            self.consumers.remove(consumer)
            self.consumers.append(consumer)
            consumer.deliver(self.ready.popleft())


class BrokerState:
    """What the broker's nodes hold."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.queues = {definition.name: QueueState(network, self, definition) for definition in _BINDINGS}

    def publish(self, message: Message, user: str) -> PublishOutcome:
        """Route one message to every queue that takes it."""
        queues = [queue for queue in self.queues.values() if queue.takes(message)]
        self.network.note(f"{user} publishes {message.message_id} {message.routing_key} to {len(queues)} queues")
        if not queues:
            return PublishOutcome.UNROUTABLE if message.mandatory else PublishOutcome.CONFIRMED
        outcome = PublishOutcome.CONFIRMED
        for queue in queues:
            if queue.is_full:
                outcome = PublishOutcome.NACKED
            else:
                queue.put(Stored(message, user, at=self.network.loop.time()))
        return outcome

    def dead_letter(self, queue: topology.Queue, stored: Stored) -> None:
        """Move a message that reached the delivery limit, as RabbitMQ does."""
        death = {"queue": queue.name, "reason": "delivery_limit", "count": 1, "time": EPOCH}
        headers = stored.headers | {"x-death": [death]}
        self.queues[topology.INGEST_DEAD].put(Stored(stored.message, stored.user, headers=headers))


class SimulatedPublisher:
    """`domain.ports.Publisher` for one process, or for a producer with its own user."""

    def __init__(self, state: BrokerState, process: Process, user: str = SERVICE_USER) -> None:
        self._state = state
        self._process = process
        self._life = process.life
        self._user = user
        self._free_at = 0.0

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        if not messages:
            return []
        await self._process.runs(self._life)
        network = self._state.network
        fate = network.fate(self._process, Server.BROKER)
        if fate is Fate.REFUSED:
            await asyncio.sleep(network.delay())
            await self._process.runs(self._life)
            return [PublishOutcome.UNSENT] * len(messages)
        if fate is Fate.ANSWERED:
            return await self._publish_and_wait(messages)
        # The connection breaks, or confirms are late. The broker has taken the first messages, or takes them later.
        taken = 0 if fate is Fate.LOST else network.rng.randint(0, len(messages))
        delay = network.delay() if fate is Fate.UNANSWERED else _CONFIRM_TIMEOUT + network.rng.uniform(0.0, _LATEST)
        for message in messages[:taken]:
            network.later(delay, partial(self._state.publish, message, self._user))
        await asyncio.sleep(_CONFIRM_TIMEOUT)
        await self._process.runs(self._life)
        return [PublishOutcome.UNKNOWN] * len(messages)

    async def _publish_and_wait(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        network = self._state.network
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

    async def ready(self) -> None:
        """Never called in a simulation with short outages."""

    async def close(self) -> None:
        """Nothing to close."""


class SimulatedConsumer:
    """`domain.ports.Consumer` on one queue."""

    def __init__(self, queue: QueueState, process: Process, prefetch: int) -> None:
        self._queue = queue
        self._process = process
        self._life = process.life
        self._network = process.network
        self._prefetch = prefetch
        self._extra = 0
        self._connection = 0
        self._connected = False
        self._consuming = True
        self._stopped = False
        self._tag = 0
        self._unacknowledged: dict[tuple[int, int], Stored] = {}
        self._arrived: list[Delivery] = []
        self._arrival = asyncio.Event()
        self._connect()
        process.on_crash(self._break)

    @property
    def wants_more(self) -> bool:
        """Whether the broker may deliver another message."""
        has_room = len(self._unacknowledged) < self._prefetch + self._extra
        return self._connected and self._consuming and not self._stopped and has_room

    def deliver(self, stored: Stored) -> None:
        """Send a message to the process."""
        self._tag += 1
        token = (self._connection, self._tag)
        self._unacknowledged[token] = stored
        delivery = stored.delivery(self._queue.definition.name, token)
        self._network.later(self._network.delay(), lambda: self._arrive(delivery))

    def lose_connection(self) -> None:
        """Break the connection; the broker delivers again what was not acknowledged."""
        if self._connected:
            self._break()
            self._network.later(_RECONNECT, self._connect)

    async def receive(self) -> list[Delivery]:
        while True:
            await self._process.runs(self._life)
            if self._arrived:
                deliveries, self._arrived = self._arrived, []
                return deliveries
            if self._stopped:
                return []
            self._arrival.clear()
            await self._arrival.wait()

    @property
    def held(self) -> int:
        return len(self._unacknowledged)

    def alive(self, delivery: Delivery) -> bool:
        return self._connected and delivery.token[0] == self._connection

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await self._process.runs(self._life)
        tokens = [delivery.token for delivery in deliveries]
        self._network.later(self._network.delay(), lambda: self._finish(tokens))

    async def allow_extra(self, count: int) -> None:
        await self._process.runs(self._life)
        self._extra = max(self._extra, count)
        self._queue.dispatch()

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        await self._process.runs(self._life)
        tokens = [delivery.token for delivery in deliveries]
        self._network.later(self._network.delay(), lambda: self._return(tokens))

    async def pause(self) -> None:
        await self._process.runs(self._life)
        self._consuming = False
        self._return(list(self._unacknowledged))
        self._connection += 1
        self._arrived.clear()

    async def resume(self) -> None:
        await self._process.runs(self._life)
        self._consuming = True
        self._queue.dispatch()

    async def stop(self) -> None:
        self._stopped = True
        self._arrival.set()

    async def close(self) -> None:
        self._break()

    def _connect(self) -> None:
        if self._process.alive and not self._connected:
            self._connection += 1
            self._connected = True
            self._queue.consumers.append(self)
            self._queue.dispatch()

    def _break(self) -> None:
        if not self._connected:
            return
        self._connected = False
        self._extra = 0
        self._queue.consumers.remove(self)
        self._arrived.clear()
        unacknowledged = list(self._unacknowledged.values())
        self._unacknowledged.clear()
        self._queue.put_back(unacknowledged)

    def _arrive(self, delivery: Delivery) -> None:
        if self.alive(delivery) and delivery.token in self._unacknowledged:
            self._arrived.append(delivery)
            self._arrival.set()

    def _finish(self, tokens: Sequence[tuple[int, int]]) -> None:
        for token in tokens:
            self._unacknowledged.pop(token, None)
        self._queue.dispatch()

    def _return(self, tokens: Sequence[tuple[int, int]]) -> None:
        self._queue.put_back([self._unacknowledged.pop(token) for token in tokens if token in self._unacknowledged])


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
    """`domain.ports.DeadLetterQueue`."""

    def __init__(self, state: BrokerState) -> None:
        self._queue = state.queues[topology.INGEST_DEAD]
        self._network = state.network

    async def count(self) -> int:
        return len(self._queue.ready)

    async def browse(self) -> AsyncIterator[list[Delivery]]:
        for stored in list(self._queue.ready):
            await asyncio.sleep(self._network.delay())
            yield [stored.delivery(topology.INGEST_DEAD, stored)]

    async def remove(self, deliveries: Sequence[Delivery]) -> None:
        await asyncio.sleep(self._network.delay())
        for delivery in deliveries:
            self._queue.ready.remove(delivery.token)

    async def close(self) -> None:
        """Nothing to close."""
