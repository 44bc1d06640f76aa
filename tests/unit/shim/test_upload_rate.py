"""How slowly a body may arrive. Time is virtual, and the connection has no socket."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from ingest.shim.http.body import BodyMemoryBudget, ClientDisconnected, Reservation, read_json_body, send_json
from ingest.shim.http.protocol import BODY_MAX_LAG, BODY_MIN_RATE, BODY_TIMEOUT, CHECK_INTERVAL, LimitedHttpProtocol
from tests.support.http_connection import Connection
from tests.support.virtual_time_loop import in_virtual_time

MIB: Final = 1024 * 1024


class BodyReader:
    """An application that reads bodies within a memory budget, after `delay` seconds."""

    def __init__(self, delay: float = 0) -> None:
        self.memory = BodyMemoryBudget()
        self._delay = delay

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(self._delay)
        reservation = Reservation(self.memory, "c")
        try:
            await read_json_body(dict(scope["headers"]), receive, reservation)
            await send_json(send, 200, b"{}", [])
        except ClientDisconnected:
            return
        finally:
            reservation.release()


@asynccontextmanager
async def connected(app: BodyReader) -> AsyncIterator[Connection]:
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False, proxy_headers=False)
    connection = Connection(LimitedHttpProtocol(config, ServerState(), {}))
    yield connection
    connection.close()
    await asyncio.sleep(0)


def head(size: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % size


async def seconds_until(condition: Callable[[], bool], send: Callable[[], None], interval: float) -> float:
    """Send at every `interval` until the condition is met; return the seconds. Fail after the longest body's time."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not condition():
        assert loop.time() - began <= BODY_TIMEOUT + 2 * CHECK_INTERVAL
        await asyncio.sleep(interval)
        send()
    return loop.time() - began


@pytest.mark.parametrize("interval", [9, 0.01])
@in_virtual_time
async def test_upload_that_ends_in_single_bytes_is_refused_and_releases_its_memory(interval: float) -> None:
    """All but the last bytes of 8 MiB arrive at once. They earn no time for the rest."""
    app = BodyReader()
    async with connected(app) as connection:
        connection.send(head(8 * MIB))
        for _ in range(127):
            connection.send(b" " * 65_536)
            await asyncio.sleep(0)
        assert app.memory.reserved > 7 * MIB
        seconds = await seconds_until(
            lambda: app.memory.reserved == 0, lambda: connection.send(b" "), interval=interval
        )
        assert seconds <= BODY_MAX_LAG + CHECK_INTERVAL + max(interval, 1)
        assert connection.answer.startswith(b"HTTP/1.1 408 ")
        assert b"at least %d bytes per second" % BODY_MIN_RATE in connection.answer


@in_virtual_time
async def test_body_at_half_of_the_minimum_rate_is_refused_once_it_lags_too_much() -> None:
    app = BodyReader()
    async with connected(app) as connection:
        connection.send(head(MIB))
        seconds = await seconds_until(
            lambda: connection.answer != b"", lambda: connection.send(b" " * (BODY_MIN_RATE // 2)), interval=1
        )
    assert 2 * BODY_MAX_LAG <= seconds <= 2 * BODY_MAX_LAG + CHECK_INTERVAL + 1
    assert connection.answer.startswith(b"HTTP/1.1 408 ")


@in_virtual_time
async def test_body_above_the_minimum_rate_is_refused_at_its_time_limit() -> None:
    app = BodyReader()
    async with connected(app) as connection:
        connection.send(head(8 * MIB))
        seconds = await seconds_until(
            lambda: connection.answer != b"", lambda: connection.send(b" " * 4 * BODY_MIN_RATE), interval=1
        )
    assert BODY_TIMEOUT <= seconds <= BODY_TIMEOUT + CHECK_INTERVAL + 1
    assert b"within 60 s" in connection.answer


@in_virtual_time
async def test_body_at_the_minimum_rate_is_accepted_even_if_it_pauses_once() -> None:
    app = BodyReader()
    async with connected(app) as connection:
        connection.send(head(40 * BODY_MIN_RATE))
        for second in range(40):
            await asyncio.sleep(BODY_MAX_LAG - 1 if second == 20 else 1)
            connection.send(b" " * BODY_MIN_RATE)
        await asyncio.sleep(0.1)
        assert connection.answer.startswith(b"HTTP/1.1 200 ")


@in_virtual_time
async def test_time_in_which_the_server_does_not_read_is_not_the_clients() -> None:
    """A look-up of the API key may take seconds. The server stops reading at 64 KiB, so the client has to wait."""
    app = BodyReader(delay=30)
    async with connected(app) as connection:
        connection.send(head(MIB))
        connection.send(b" " * 100_000)
        assert not connection.reading
        await asyncio.sleep(30.1)
        assert connection.reading
        connection.send(b" " * (MIB - 100_000))
        await asyncio.sleep(0.1)
        assert connection.answer.startswith(b"HTTP/1.1 200 ")
