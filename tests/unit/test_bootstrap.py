"""What a process does until its broker is available."""

import asyncio
from pathlib import Path
from typing import cast

import httpx
import pytest
from structlog.testing import capture_logs

from ingest import bootstrap
from ingest.broker.decorators import BrokerDecorator
from ingest.domain.errors import BrokerUnavailable
from ingest.domain.ports import Broker, Consumer, Publisher, Store
from ingest.serving import listen
from ingest.settings import load
from tests.support.virtual_time_loop import in_virtual_time


class BrokerWithoutTopology(BrokerDecorator):
    """A broker whose topology cannot be declared. `failed` is set once that was tried."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        self.failed = asyncio.Event()

    async def declare(self) -> None:
        self.failed.set()
        raise BrokerUnavailable("refused")

    async def publisher(self, connections: int = 1) -> Publisher:
        return await self._broker.publisher(connections)

    async def consumer(self, queue: str, prefetch: int) -> Consumer:
        return await self._broker.consumer(queue, prefetch)


async def test_failed_declaration_is_the_same_outage_as_a_failed_connection(tmp_path: Path) -> None:
    """It may fail before the first connection does, and the log has one line about an outage."""
    brokers: list[BrokerWithoutTopology] = []
    stop = asyncio.Event()

    def decorate(broker: Broker, store: Store) -> bootstrap.Adapters:
        brokers.append(BrokerWithoutTopology(broker))
        return brokers[0], store

    with capture_logs() as logs:
        running = asyncio.create_task(bootstrap.run_worker(load(data_dir=str(tmp_path)), None, stop, decorate=decorate))
        async with asyncio.timeout(20):
            while not brokers:
                await asyncio.sleep(0.01)
            await brokers[0].failed.wait()
        stop.set()
        await running
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["broker_unavailable"]


class UndeclaredBroker(BrokerWithoutTopology):
    """A broker whose topology is declared when `may_declare` is set."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        self.may_declare = asyncio.Event()

    async def declare(self) -> None:
        await self.may_declare.wait()
        await self._broker.declare()


async def test_shim_is_not_ready_until_the_topology_is_declared(tmp_path: Path) -> None:
    """On a new broker, a submission would have no queue: RabbitMQ returns it, and the answer is 503."""
    brokers: list[UndeclaredBroker] = []
    stop = asyncio.Event()

    def decorate(broker: Broker, store: Store) -> bootstrap.Adapters:
        brokers.append(UndeclaredBroker(broker))
        return brokers[0], store

    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/readyz"
    running = asyncio.create_task(
        bootstrap.run_shim(load(data_dir=str(tmp_path)), listener, None, stop, decorate=decorate)
    )
    async with asyncio.timeout(30), httpx.AsyncClient() as client:
        answer = await client.get(url)
        assert (answer.status_code, answer.json()["broker"]) == (503, "unavailable")
        brokers[0].may_declare.set()
        while (await client.get(url)).status_code != 200:
            await asyncio.sleep(0.1)  # an answer is used for a second
    stop.set()
    await running


class DeafBroker:
    """A broker that is unavailable, and whose connection breaks when a declaration is cancelled."""

    async def declare(self) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise BrokerUnavailable("the connection was lost") from None
        raise BrokerUnavailable("cannot connect")


@in_virtual_time
async def test_declaration_ends_although_the_connection_loses_the_cancellation() -> None:
    declaring = asyncio.create_task(bootstrap._declare(cast("Broker", DeafBroker()), asyncio.Event()))
    await asyncio.sleep(1)
    declaring.cancel()
    done, _ = await asyncio.wait([declaring], timeout=30)
    assert done == {declaring}
    with pytest.raises(asyncio.CancelledError):
        await declaring
