"""`ReconnectingChannel` on a fake connection."""

import asyncio
from typing import Any, cast

import pytest

from ingest.broker.rabbitmq.amqp.connection import Connection
from ingest.broker.rabbitmq.amqp.reconnecting import ReconnectingChannel
from ingest.domain.errors import BrokerUnavailable
from tests.support.virtual_time_loop import in_virtual_time


class FakeConnection:
    """A connection that connects at once."""

    blocked_seconds = 0.0
    closed = False

    async def connect(self) -> None:
        """There is nothing to connect to."""

    async def close(self) -> None:
        """There is nothing to close."""


class FailingChannel(ReconnectingChannel):
    """A channel whose set-up raises the given errors, one per try, and then succeeds."""

    def __init__(self, *errors: BaseException) -> None:
        super().__init__(lambda: cast("Connection", FakeConnection()), "test")
        self._errors = list(errors)
        self.opened = asyncio.Event()

    async def _open(self, _: Connection) -> asyncio.Future[Any]:
        if self._errors:
            raise self._errors.pop(0)
        self.opened.set()
        return asyncio.get_running_loop().create_future()

    def _lost(self) -> None:
        """There is nothing to clean up."""


@pytest.mark.parametrize(
    "error", [BrokerUnavailable("unavailable"), asyncio.CancelledError(), RuntimeError("defect"), OSError("reset")]
)
@in_virtual_time
async def test_channel_connects_again_after_any_error_during_setup(error: BaseException) -> None:
    """aiormq raises CancelledError if a connection breaks; the channel is not cancelled by it."""
    channel = FailingChannel(error)
    await channel.start()
    assert not channel.state().connected
    await asyncio.wait_for(channel.opened.wait(), 5)
    assert (channel.state().connected, channel.state().reconnects) == (True, 1)
    await asyncio.wait_for(channel.close(), 5)
    assert not channel.state().connected


class DeafChannel(FailingChannel):
    """A channel whose set-up does not pass a cancellation on: it raises an error instead, or succeeds."""

    def __init__(self, instead: BrokerUnavailable | None) -> None:
        super().__init__(BrokerUnavailable("the first try, with which `start` returns"))
        self._instead = instead

    async def _open(self, connection: Connection) -> asyncio.Future[Any]:
        opened = await super()._open(connection)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if self._instead is not None:
                raise self._instead from None
        return opened


@pytest.mark.parametrize("instead", [BrokerUnavailable("the connection was lost"), None])
@in_virtual_time
async def test_channel_closes_although_its_setup_loses_the_cancellation(instead: BrokerUnavailable | None) -> None:
    channel = DeafChannel(instead)
    await channel.start()
    await channel.opened.wait()
    closing = asyncio.create_task(channel.close())
    done, _ = await asyncio.wait([closing], timeout=30)
    assert done == {closing}
    assert not channel.state().connected
