"""`ingest.dead` on RabbitMQ, to read and to clear.

A quorum queue cannot be read without consuming it. The messages are consumed; when the channel closes, the queue takes
them back in their order and counts one more delivery. RabbitMQ 3 ignores that count. RabbitMQ 4 drops a message after
20 deliveries unless a policy sets another limit, so the policy is checked first. Reading only a part loses nothing,
but then the messages that were returned earlier come before those that are returned now; read everything to keep the
order.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.consumer import RabbitConsumer
from ingest.broker.rabbitmq.management import Management
from ingest.broker.rabbitmq.versions import counts_all_bytes
from ingest.domain.errors import BrokerUnavailable, ConfigurationError
from ingest.domain.messages import Delivery
from ingest.domain.topology import INGEST_DEAD

_FIRST: Final = 10
"""The prefetch at the start. RabbitMQ may hold so many messages in memory."""
_MOST: Final = 65_535
_BUDGET: Final = 128 * 1024 * 1024
"""Bytes of messages that RabbitMQ may hold in memory for a raised prefetch. This process reads no more at once than
its `DeliveryMemory` has room for."""
_QUIET: Final = 10.0
"""Seconds to wait for a message that is in the queue."""
_ENOUGH: Final = 10_000
"""A delivery limit that reading does not reach."""
_OTHERS_PAUSE: Final = 0.5
_OTHERS_TRIES: Final = 6
_BACK_PAUSE: Final = 0.05
_BACK_TRIES: Final = 40


class RabbitDeadLetters:
    """`domain.ports.DeadLetterQueue`. Until it is closed, no other consumer gets the messages that were read.

    Args:
        broker: has the queue; it is closed with this object.
        management: for checking the delivery limit; None if INGEST_MANAGEMENT_URL is not set.
        first: the prefetch at the start; it is raised as far as the broker's memory allows.
    """

    def __init__(self, broker: RabbitBroker, management: Management | None, first: int = _FIRST) -> None:
        self._broker = broker
        self._management = management
        self._first = first
        self._consumer: RabbitConsumer | None = None
        self._channel: object = None
        self._held = 0
        self.other_consumers = 0

    async def count(self) -> int:
        """Return the number of messages that no other consumer holds. Wait a little while there are other consumers.

        Raises:
            ConfigurationError: the queue is missing, or reading could make the broker drop messages.
            BrokerUnavailable: the broker does not answer.
        """
        ready = 0
        for _ in range(_OTHERS_TRIES):
            info = await self._broker.inspect([INGEST_DEAD])
            depth = info.queues[INGEST_DEAD]
            if depth is None:
                raise ConfigurationError(f"queue {INGEST_DEAD} does not exist: run `ingest topology apply`")
            ready, self.other_consumers = depth
            if not self.other_consumers:
                break
            await asyncio.sleep(_OTHERS_PAUSE)
        limit = None
        if self._management is not None:
            limit = (await asyncio.to_thread(self._management.policies)).of(INGEST_DEAD).get("delivery-limit")
        if problem := reading_hazard(info.major, self._management is not None, limit):
            raise ConfigurationError(problem)
        return ready

    async def size(self) -> int | None:
        if self._management is None:
            return None
        info = await self._broker.inspect([INGEST_DEAD])
        if not counts_all_bytes(info.version) or (depth := info.queues[INGEST_DEAD]) is None:
            return None
        path = f"queues/{self._management.vhost}/{INGEST_DEAD}"
        statistics = await asyncio.to_thread(self._management.get, path)
        size = statistics.get("message_bytes")
        # If messages have arrived since the statistics were collected, their size is not known.
        return size if isinstance(size, int) and depth[0] <= statistics.get("messages", 0) else None

    async def browse(self) -> AsyncIterator[list[Delivery]]:
        remaining = await self.count()
        if not remaining:
            return
        self._consumer = consumer = await self._broker.consumer(INGEST_DEAD, self._first)
        prefetch, read, size = self._first, 0, 0
        while remaining:
            if self._held >= prefetch:
                more = max(1, min(prefetch, _MOST, _BUDGET * read // max(size, 1)))
                await consumer.raise_prefetch(more)
                prefetch += more
            deliveries = await self._receive(consumer)
            self._held += len(deliveries)
            read += len(deliveries)
            size += sum(len(delivery.body) for delivery in deliveries)
            # Messages that arrived after the start are left out: a redriven submission may be back at once.
            yield deliveries[:remaining]
            await consumer.set_apart(deliveries, 0)  # the caller has let go of their bodies: read on
            remaining -= min(remaining, len(deliveries))

    async def remove(self, deliveries: Sequence[Delivery]) -> None:
        if self._consumer is None or not all(map(self._consumer.alive, deliveries)):
            raise _connection_lost()
        await self._consumer.ack(deliveries)
        self._held -= len(deliveries)

    async def close(self) -> None:
        consumer = self._consumer
        if consumer is None:
            await self._broker.close()
            return
        held = ready = 0
        try:
            consumer.discard()
            await consumer.stop()
            held = consumer.held
            ready = await self._ready() if held else 0
        finally:
            await self._broker.close()
        # The queue takes the messages back shortly after the channel is closed. A consumer that came before that
        # would get the later messages first.
        for _ in range(_BACK_TRIES if held else 0):
            if await self._ready() >= ready + held:
                return
            await asyncio.sleep(_BACK_PAUSE)

    async def _ready(self) -> int:
        depth = (await self._broker.inspect([INGEST_DEAD])).queues[INGEST_DEAD]
        return depth[0] if depth else 0

    async def _receive(self, consumer: RabbitConsumer) -> list[Delivery]:
        try:
            async with asyncio.timeout(_QUIET):
                deliveries = await consumer.receive()
        except TimeoutError:
            raise BrokerUnavailable(
                f"{INGEST_DEAD} has messages that did not arrive within {_QUIET:.0f} s: the broker is unavailable, or "
                "another consumer holds them (is another `ingest dlq` running?)"
            ) from None
        channel = deliveries[0].token.channel
        if self._channel is not None and channel is not self._channel:
            raise _connection_lost()
        self._channel = channel
        return deliveries


def reading_hazard(major: int, policies_known: bool, limit: int | None) -> str | None:
    """Why reading the queue could lose messages, and what to do; None if it cannot.

    Args:
        major: the first number of RabbitMQ's version.
        policies_known: whether the policies could be read.
        limit: the delivery limit that they set.
    """
    if limit is None and major < 4:
        return None  # no limit is the default
    if limit is not None and limit >= _ENOUGH:
        return None
    if not policies_known:
        return (
            f"RabbitMQ {major} drops a message that was read 20 times unless a policy sets another limit, and the "
            "policy can only be checked with INGEST_MANAGEMENT_URL: set it"
        )
    return (
        f"{INGEST_DEAD} has a delivery limit of {limit or 20}: RabbitMQ would drop a message that is read so often. "
        "Run `ingest topology apply` with INGEST_MANAGEMENT_URL, which sets a policy against this"
    )


def _connection_lost() -> BrokerUnavailable:
    return BrokerUnavailable(
        f"the connection was lost while {INGEST_DEAD} was read. Run the command again: messages that were not removed "
        "are still there, and a submission that is redriven twice is dropped as a duplicate"
    )
