"""A channel that publishes with confirms, and what became of a message, without exceptions of aio-pika.

aiormq matches the returns of a channel by `message_id`: two messages with the same one must not be in flight together.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

import aiormq
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq import spec

from asg_gateway._errors import BrokerRefusedError
from asg_gateway.amqp._cancellation import is_cancelled
from asg_gateway.amqp._connection import problem
from asg_gateway.amqp._producing.messages import Message
from asg_gateway.amqp._producing.room import Gate

EXCHANGE: Final = "asg.submissions"
_AT_ONCE: Final = 8
"""Messages that start in one iteration of the event loop: fewer than the queue of aiormq takes."""
_CONFIRMS_FIRST: Final = 0.1
"""Seconds in which aiormq passes on why a channel was closed."""
_REFUSALS: Final = (
    aiormq.exceptions.ChannelAccessRefused,
    aiormq.exceptions.ChannelNotFoundEntity,
    aiormq.exceptions.ChannelPreconditionFailed,
)


class Failure(Enum):
    """Why a message is not confirmed."""

    NACKED = "RabbitMQ rejects the message: a queue is full or has no leader"
    RETURNED = (
        "no queue is bound for it: the topology of the service is missing in this virtual host; check the virtual host "
        "of the URL, or ask the operator to run `ingest topology apply`"
    )
    LOST = "the channel or the connection was lost"
    UNANSWERED = "RabbitMQ does not confirm: a resource alarm may block the connection"
    REFUSED = "RabbitMQ closed the channel because of a message"


@dataclass(frozen=True)
class Unconfirmed:
    """A message that is not confirmed. It may be in a queue nevertheless, unless it was returned or refused."""

    failure: Failure
    error: BaseException

    def sentence(self) -> str:
        """Return what happened, as a clause."""
        if self.failure in (Failure.LOST, Failure.REFUSED):
            return f"{self.failure.value} ({problem(self.error)})"
        return self.failure.value


class ConfirmChannel(Protocol):
    """What the publisher needs of a channel."""

    @property
    def is_closed(self) -> bool: ...
    async def publish(self, message: Message, seconds: float) -> Unconfirmed | None: ...
    async def close(self) -> None: ...


class AioPikaChannel:
    """A channel of aio-pika."""

    def __init__(self, channel: AbstractChannel, underlay: aiormq.abc.AbstractChannel) -> None:
        self._channel = channel
        self._underlay = underlay
        self._gate = Gate(_AT_ONCE)
        self._limits: set[asyncio.Timeout] = set()
        underlay.closing.add_done_callback(self._end_waits)

    @classmethod
    async def open(cls, connection: AbstractConnection) -> "AioPikaChannel":
        """Open a channel with confirms. The caller bounds the time."""
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        return cls(channel, await channel.get_underlay_channel())

    @property
    def is_closed(self) -> bool:
        """Whether the channel or its connection is closed."""
        return self._underlay.is_closed

    async def publish(self, message: Message, seconds: float) -> Unconfirmed | None:
        """Publish, and wait for the confirm; return None if it came. ValueError: the message cannot be encoded."""
        await self._gate.enter()
        try:
            async with asyncio.timeout(seconds) as limit:
                self._limits.add(limit)
                try:
                    confirm = await self._underlay.basic_publish(
                        message.body,
                        exchange=EXCHANGE,
                        routing_key=message.routing_key,
                        properties=message.properties,
                        mandatory=True,
                        wait=False,  # the confirm says more than that the socket has taken the message
                    )
                finally:
                    self._limits.discard(limit)
        except TimeoutError as error:
            return Unconfirmed(Failure.LOST if self.is_closed else Failure.UNANSWERED, error)
        except asyncio.CancelledError as error:
            # aiormq ends the waits of a lost connection with this error, too.
            if is_cancelled():
                raise
            return Unconfirmed(Failure.LOST, ConnectionError(str(error) or "the connection was closed"))
        except (ValueError, TypeError):
            raise
        except Exception as error:  # noqa: BLE001 - aiormq raises many, even Exception itself
            return Unconfirmed(_failure(error), error)
        if isinstance(confirm, spec.Basic.Ack):
            return None
        return Unconfirmed(Failure.UNANSWERED, RuntimeError(f"no confirm but {confirm!r}"))

    async def close(self) -> None:
        """Close it. The caller bounds the time."""
        await self._channel.close()

    def _end_waits(self, _: object) -> None:
        """End the waits for a queue that the closed connection no longer empties; aiormq ends those for confirms."""
        soon = asyncio.get_running_loop().time() + _CONFIRMS_FIRST
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(soon)


def _failure(error: Exception) -> Failure:
    if isinstance(error, aiormq.exceptions.PublishError):
        return Failure.RETURNED
    if isinstance(error, aiormq.exceptions.DeliveryError):
        return Failure.NACKED
    return Failure.REFUSED if isinstance(error, _REFUSALS) else Failure.LOST


@dataclass(eq=False)
class Shared:
    """A channel that many messages use at once.

    Attributes:
        opened: when, by the clock of the event loop.
        in_flight: messages without an answer.
        at_refusal: how many were in flight when RabbitMQ closed it because of one of them; 0 if that did not happen.
        verdicts: routing keys for which RabbitMQ refuses every message, with the error.
        said: failures that were logged.
    """

    channel: ConfirmChannel
    opened: float
    in_flight: int = 0
    at_refusal: int = 0
    retired: bool = False
    verdicts: dict[str, BaseException] = field(default_factory=dict)
    said: set[Failure] = field(default_factory=set)

    async def publish(self, message: Message, seconds: float, idle: Callable[["Shared"], None]) -> Unconfirmed | None:
        """Publish one of many messages. `idle` is called when none is in flight any more."""
        self.in_flight += 1
        try:
            unconfirmed = await self.channel.publish(message, seconds)
            if unconfirmed is not None and unconfirmed.failure is Failure.REFUSED:
                self.at_refusal = self.at_refusal or self.in_flight
            return unconfirmed
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                idle(self)


def is_general(error: BaseException) -> bool:
    """Return whether RabbitMQ refuses every message with the same routing key for this reason."""
    return isinstance(error, aiormq.exceptions.ChannelAccessRefused | aiormq.exceptions.ChannelNotFoundEntity)


def refusal(error: BaseException, routing_key: str, where: str) -> BrokerRefusedError:
    """Return the error for a message that RabbitMQ refuses, which says what to do."""
    if isinstance(error, aiormq.exceptions.ChannelNotFoundEntity):
        advice = (
            f"the exchange {EXCHANGE} does not exist in this virtual host. Check the virtual host of the URL, or ask "
            "the operator to run `ingest topology apply`"
        )
    elif isinstance(error, aiormq.exceptions.ChannelAccessRefused):
        advice = (
            f"the user may not publish to {EXCHANGE} with the routing key {routing_key}. Check user and cust_id, or "
            "ask the operator for the permission"
        )
    else:
        advice = "RabbitMQ refuses the message"
    refused = BrokerRefusedError(f"RabbitMQ at {where}: {advice} ({problem(error)})")
    refused.__cause__ = error
    return refused
