"""Publishes messages until RabbitMQ confirms them: many at once, each again after a failure, until its deadline."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from asg_gateway._backoff import Backoff
from asg_gateway._errors import BrokerRefusedError, BrokerUnavailableError
from asg_gateway.amqp._producing.channels import Failure, Shared, Unconfirmed, is_general, refusal
from asg_gateway.amqp._producing.link import Link
from asg_gateway.amqp._producing.messages import Message
from asg_gateway.amqp._producing.room import Room, Turns

NACKING_CHANNEL: Final = 2.0
"""Seconds. If a channel that is older nacks, the next attempt uses another one: RabbitMQ 3.10 nacks everything on the
channel that has met a full queue."""
_log = logging.getLogger("asg_gateway.amqp")


@dataclass
class _Attempts:
    """The attempts at one message. `refused_on` is a channel that RabbitMQ closed because of this or another one."""

    message: Message
    end: float
    pauses: Backoff
    last: str = "no connection yet"
    cause: BaseException | None = None
    refused_on: Shared | None = None


class Publisher:
    """Publishes on the shared channel of a link.

    Args:
        link: the channels.
        room: bounds what is in flight.
        deadline: seconds for all attempts at one message.
        confirm_timeout: seconds for one attempt.
        pauses: makes the pauses between the attempts at one message.
    """

    def __init__(
        self, link: Link, room: Room, deadline: float, confirm_timeout: float, pauses: Callable[[], Backoff]
    ) -> None:
        self._link = link
        self._room = room
        self._deadline = deadline
        self._confirm_timeout = confirm_timeout
        self._pauses = pauses
        self._turns = Turns()
        self._close_if_retired = link.close_if_retired
        self._alone = asyncio.Lock()
        self._progress = 0.0

    async def publish(self, message: Message) -> None:
        """Publish, and return when RabbitMQ has confirmed the message.

        The deadline counts from the call, or from the latest confirm of any message before its turn.

        Raises:
            BrokerUnavailableError: it is not confirmed within the deadline.
            BrokerRefusedError: RabbitMQ refuses the login, or this message.
        """
        loop = asyncio.get_running_loop()
        called = loop.time()
        size = len(message.body)
        await self._turns.enter(message.key)  # one at a time, because aiormq matches returns by it
        try:
            await self._room.enter(size)
            try:
                await self._deliver(message, max(called, self._progress) + self._deadline)
                self._progress = loop.time()
            finally:
                self._room.leave(size)
        finally:
            self._turns.leave(message.key)

    async def _deliver(self, message: Message, end: float) -> None:
        loop = asyncio.get_running_loop()
        shared = self._link.current
        remaining = end - loop.time()
        unconfirmed = None
        if shared is not None and remaining > 0 and not shared.channel.is_closed:
            # What nearly always happens has a short way.
            unconfirmed = await shared.publish(message, min(self._confirm_timeout, remaining), self._close_if_retired)
            if unconfirmed is None:
                return
        attempts = _Attempts(message, end, self._pauses())
        if shared is not None and unconfirmed is not None:
            self._judge(attempts, shared, unconfirmed)
            if attempts.refused_on is None:
                await self._pause(attempts)
        await self._retry(attempts)

    async def _retry(self, attempts: _Attempts) -> None:
        loop = asyncio.get_running_loop()
        while (remaining := attempts.end - loop.time()) > 0:
            try:
                unconfirmed = await self._attempt(attempts, remaining)
            except BrokerUnavailableError as error:  # there is no channel
                if self._link.closed:
                    raise BrokerUnavailableError(str(error)) from error.__cause__
                attempts.last, attempts.cause = str(error), error.__cause__
                if attempts.refused_on is not None:  # otherwise the link pauses before it tries again
                    await self._pause(attempts)
                continue
            except BrokerRefusedError as error:  # another instance, because many calls may get this one
                raise BrokerRefusedError(str(error)) from error.__cause__
            if unconfirmed is None:
                return
            if attempts.refused_on is None:  # otherwise it can be published alone at once
                await self._pause(attempts)
        raise BrokerUnavailableError(
            f"RabbitMQ at {self._link} did not confirm the message within the deadline of {self._deadline:g} s: "
            f"{attempts.last}"
        ) from attempts.cause

    async def _pause(self, attempts: _Attempts) -> None:
        remaining = attempts.end - asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.0, min(attempts.pauses.next(), remaining)))

    async def _attempt(self, attempts: _Attempts, remaining: float) -> Unconfirmed | None:
        """Publish once. Raises BrokerUnavailableError if there is no channel, and BrokerRefusedError."""
        if attempts.refused_on is not None:
            return await self._publish_alone(attempts, attempts.refused_on, remaining)
        shared = self._link.current
        if shared is None or shared.channel.is_closed:
            try:
                async with asyncio.timeout(remaining):
                    shared = await self._link.shared()
            except TimeoutError as error:
                raise BrokerUnavailableError(attempts.last) from error
        seconds = min(self._confirm_timeout, remaining)
        unconfirmed = await shared.publish(attempts.message, seconds, self._close_if_retired)
        if unconfirmed is not None:
            self._judge(attempts, shared, unconfirmed)
        return unconfirmed

    def _judge(self, attempts: _Attempts, shared: Shared, unconfirmed: Unconfirmed) -> None:
        """Decide which channel the next attempt uses. Raises BrokerRefusedError if the message is at fault."""
        failure = unconfirmed.failure
        attempts.last, attempts.cause = unconfirmed.sentence(), unconfirmed.error
        if failure not in shared.said:
            shared.said.add(failure)
            _log.warning("publish_unconfirmed address=%s reason=%s", self._link, unconfirmed.sentence())
        age = asyncio.get_running_loop().time() - shared.opened
        if failure is Failure.REFUSED:
            if shared.at_refusal == 1:
                raise refusal(unconfirmed.error, attempts.message.routing_key, str(self._link))
            attempts.refused_on = shared
        if failure is not Failure.RETURNED and (failure is not Failure.NACKED or age >= NACKING_CHANNEL):
            self._link.retire(shared)

    async def _publish_alone(self, attempts: _Attempts, refused_on: Shared, remaining: float) -> Unconfirmed | None:
        """Publish on a channel of its own: several messages were in flight when RabbitMQ closed theirs.

        Raises BrokerRefusedError if RabbitMQ closes this one, too.
        """
        message = attempts.message
        try:
            async with asyncio.timeout(remaining), self._alone:
                if verdict := refused_on.verdicts.get(message.routing_key):
                    raise refusal(verdict, message.routing_key, str(self._link))
                channel = await self._link.private()
                try:
                    unconfirmed = await channel.publish(message, min(self._confirm_timeout, remaining))
                finally:
                    self._link.discard(channel)
        except TimeoutError as error:
            raise BrokerUnavailableError(attempts.last) from error
        if unconfirmed is not None and unconfirmed.failure is Failure.REFUSED:
            if is_general(unconfirmed.error):
                refused_on.verdicts[message.routing_key] = unconfirmed.error
            raise refusal(unconfirmed.error, message.routing_key, str(self._link))
        attempts.refused_on = None
        if unconfirmed is not None:
            attempts.last, attempts.cause = unconfirmed.sentence(), unconfirmed.error
        return unconfirmed
