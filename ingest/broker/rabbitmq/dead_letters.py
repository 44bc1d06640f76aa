"""`ingest.dead` on RabbitMQ, to look through and to clear.

A quorum queue cannot be peeked at: messages are consumed, looked at and, when the channel closes, given back in their
order and counted as delivered once more. On RabbitMQ 3.x nothing comes of that count; 4.x drops a message after 20 of
them unless a policy says otherwise, so there the policy is asked for first. A look that ends early loses nothing
either, but what was given back before stands in front of what is given back now: whoever wants the order kept looks
at all.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.consumer import RabbitConsumer
from ingest.broker.rabbitmq.management import Management
from ingest.domain.errors import BrokerUnavailable, ConfigurationError
from ingest.domain.messages import Delivery
from ingest.domain.topology import INGEST_DEAD

_FIRST: Final = 100
"""Messages asked for first."""
_MOST: Final = 65_535
_BUDGET: Final = 128 * 1024 * 1024
"""Bytes that may come without having been asked for one by one."""
_QUIET: Final = 10.0
"""Seconds without a message, though some are there, until it is given up."""
_ENOUGH: Final = 10_000
"""A delivery limit that looking does not reach."""
_OTHERS_PAUSE: Final = 0.5
_OTHERS_TRIES: Final = 6
_BACK_PAUSE: Final = 0.05
_BACK_TRIES: Final = 40


class RabbitDeadLetters:
    """`domain.ports.DeadLetterQueue`. Close it: until then nobody else sees what was looked at.

    Args:
        broker: where the queue is; it is closed with this.
        management: to make sure of the delivery limit; None where there is no URL for it.
        first: messages to ask for first; more as long as memory allows.
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
        """Messages that are there and that nobody else holds. Waits a little while others look at them.

        Raises:
            ConfigurationError: the queue is missing, or looking could make the broker drop messages.
            BrokerUnavailable: no answer.
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
        if why := danger(info.major, self._management is not None, limit):
            raise ConfigurationError(why)
        return ready

    async def browse(self) -> AsyncIterator[list[Delivery]]:
        left = await self.count()
        if not left:
            return
        self._consumer = consumer = await self._broker.consumer(INGEST_DEAD, self._first)
        capacity, seen, size = self._first, 0, 0
        while left:
            if self._held >= capacity:
                more = max(1, min(capacity, _MOST, _BUDGET * seen // max(size, 1)))
                await consumer.raise_prefetch(more)
                capacity += more
            got = await self._receive(consumer)
            self._held += len(got)
            seen += len(got)
            size += sum(len(each.body) for each in got)
            # What came into the queue since then is not handed out: what is redriven may be back at once.
            yield got[:left]
            left -= min(left, len(got))

    async def remove(self, deliveries: Sequence[Delivery]) -> None:
        if self._consumer is None or not all(map(self._consumer.alive, deliveries)):
            raise _lost()
        await self._consumer.ack(deliveries)
        self._held -= len(deliveries)

    async def close(self) -> None:
        consumer = self._consumer
        if consumer is None:
            await self._broker.close()
            return
        await consumer.stop()
        held = consumer.held
        ready = await self._ready() if held else 0
        await self._broker.close()
        # The queue takes them back a moment after the channel is gone. Who consumed in between would get what stands
        # behind them first.
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
                got = await consumer.receive()
        except TimeoutError:
            raise BrokerUnavailable(
                f"{INGEST_DEAD} has messages that do not come within {_QUIET:.0f} s: the broker is away, or another "
                "consumer holds them (is another `ingest dlq` running?)"
            ) from None
        channel = got[0].token.channel
        if self._channel is not None and channel is not self._channel:
            raise _lost()
        self._channel = channel
        return got


def danger(major: int, asked: bool, limit: int | None) -> str | None:
    """Why looking at the queue could lose messages, and what to do; None where it cannot.

    Args:
        major: of RabbitMQ's version.
        asked: whether the policies are known.
        limit: the delivery limit that they set.
    """
    if limit is None and major < 4:
        return None  # no limit is the default
    if limit is not None and limit >= _ENOUGH:
        return None
    remedy = "run `ingest topology apply` with INGEST_MANAGEMENT_URL, which sets a policy against that"
    if not asked:
        return (
            f"RabbitMQ {major} drops a message that was looked at 20 times unless a policy says otherwise, and without "
            "INGEST_MANAGEMENT_URL the policy cannot be checked: set it"
        )
    return (
        f"{INGEST_DEAD} has a delivery limit of {limit or 20}: RabbitMQ would drop what is looked at so often; {remedy}"
    )


def _lost() -> BrokerUnavailable:
    return BrokerUnavailable(
        f"the connection was lost while {INGEST_DEAD} was read. Run it again: what was not removed is still there, and "
        "what was redriven twice is dropped as a duplicate"
    )
