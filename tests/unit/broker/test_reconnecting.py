"""A link makes its connection again, whatever ended the last one."""

import asyncio
from typing import Any, cast

import pytest

from ingest.broker.rabbitmq.amqp.connection import Connection
from ingest.broker.rabbitmq.amqp.reconnecting import ReconnectingChannel
from ingest.domain.errors import BrokerUnavailable


class Quiet:
    """A wire that connects at once."""

    blocked_seconds = 0.0
    closed = False

    async def connect(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""


class Scripted(ReconnectingChannel):
    """Its first set-ups fail as told; the next holds."""

    def __init__(self, failures: list[BaseException]) -> None:
        super().__init__(lambda: cast("Connection", Quiet()), "test")
        self._failures = failures
        self.up = asyncio.Event()

    async def _open(self, _: Connection) -> asyncio.Future[Any]:
        if self._failures:
            raise self._failures.pop(0)
        self.up.set()
        return asyncio.get_running_loop().create_future()

    def _lost(self) -> None:
        """Nothing to clean up."""


@pytest.mark.parametrize(
    "failure", [BrokerUnavailable("away"), asyncio.CancelledError(), RuntimeError("defect"), OSError("reset")]
)
async def test_it_connects_again(failure: BaseException) -> None:
    """Also where aiormq cancels whoever waits on a connection that breaks: the link is not what was cancelled."""
    link = Scripted([failure])
    await link.start()
    await asyncio.wait_for(link.up.wait(), 5)
    await asyncio.wait_for(link.close(), 5)
