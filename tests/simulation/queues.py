"""The broker's side of a simulation: quorum queues with confirms, redelivery and delivery limits."""

from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, Protocol

import msgspec

from ingest.domain import topology
from ingest.domain.messages import Delivery, Message, PublishOutcome
from tests.simulation.customers import WITH_QUEUES
from tests.simulation.machines import Network

SERVICE_USER: Final = "ingest"
FEEDBACK: Final = "feedback"
"""A queue that the checker reads: every event about a direct submission."""

OWN_TASKS, OWN_BATCHES = (queue.name for queue in topology.own_queues(WITH_QUEUES))
"""The queues of the customer that has some of its own."""
WORKER_QUEUES: Final = (*topology.INGEST_QUEUES, OWN_TASKS, OWN_BATCHES)
"""All queues that workers consume."""
_BINDINGS: Final = (
    *topology.QUEUES,
    *topology.own_queues(WITH_QUEUES),
    topology.Queue(FEEDBACK, topology.EVENTS, "submission.#", topology.NO_LIMIT),
)
_matches = lru_cache(maxsize=1024)(topology.matches)


class Receiver(Protocol):
    """A consumer, as a queue sees it."""

    @property
    def wants_more(self) -> bool:
        """Whether the broker may deliver another message."""
        ...

    @property
    def held(self) -> int:
        """The number of unacknowledged deliveries."""
        ...

    def deliver(self, stored: "Stored") -> None:
        """Send a message to the process."""
        ...


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
        self.consumers: list[Receiver] = []
        self.full_until = 0.0
        self.unbound_until = 0.0
        self.loses_until = 0.0
        self._held_back_until = 0.0

    @property
    def is_full(self) -> bool:
        return self._network.loop.time() < self.full_until

    def takes(self, exchange: str, routing_key: str) -> bool:
        """Return whether an exchange routes a message here now."""
        if self._network.loop.time() < self.unbound_until:
            return False
        return exchange == self.definition.exchange and _matches(self.definition.binding, routing_key)

    def put(self, stored: Stored) -> None:
        if self._network.loop.time() < self.loses_until:
            return
        self.ready.append(stored)
        self.dispatch()

    def put_back(self, unacknowledged: Sequence[Stored]) -> None:
        """Return messages to the front, in order; each return counts as a delivery."""
        for stored in reversed(unacknowledged):
            stored.deliveries += 1
            stored.redelivered = True
            if stored.deliveries > self.definition.delivery_limit:
                self._broker.dead_letter(self.definition, stored, "delivery_limit")
            else:
                self.ready.appendleft(stored)
        self.dispatch()

    def expire(self) -> None:
        """Dead-letter everything that is not delivered."""
        while self.ready:
            self._broker.dead_letter(self.definition, self.ready.popleft(), "expired")

    def hold_back(self, seconds: float) -> None:
        """Deliver nothing for so long, except what consumers return: that is at the head of the queue."""
        self._held_back_until = max(self._held_back_until, self._network.loop.time() + seconds)
        self._network.later(seconds, self.dispatch)

    def dispatch(self) -> None:
        """Send messages to consumers that may have more."""
        while self.ready and (self.ready[0].redelivered or self._network.loop.time() >= self._held_back_until):
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
        queues = self._routed(message.exchange, message.routing_key)
        self.network.note(user, "publishes", message.message_id, message.routing_key, "to", len(queues), "queues")
        if not queues:
            return PublishOutcome.UNROUTABLE if message.mandatory else PublishOutcome.CONFIRMED
        outcome = PublishOutcome.CONFIRMED
        for queue in queues:
            if queue.is_full:
                outcome = PublishOutcome.NACKED
            else:
                queue.put(Stored(message, user, at=self.network.loop.time()))
        return outcome

    def _routed(self, exchange: str, routing_key: str) -> list[QueueState]:
        queues = [queue for queue in self.queues.values() if queue.takes(exchange, routing_key)]
        return queues if queues or exchange != topology.SUBMISSIONS else self._routed(topology.UNMATCHED, routing_key)

    def dead_letter(self, queue: topology.Queue, stored: Stored, reason: str) -> None:
        """Move a message to `ingest.dead`, as RabbitMQ does."""
        death = {"queue": queue.name, "reason": reason, "count": 1, "time": self.network.epoch}
        headers = stored.headers | {"x-death": [death]}
        self.queues[topology.INGEST_DEAD].put(Stored(stored.message, stored.user, headers=headers))
