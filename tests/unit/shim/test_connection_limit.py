"""What happens when there are more connections than a server holds."""

import asyncio
import resource
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from ingest.serving import raise_file_limit
from ingest.shim.http.protocol import LimitedHttpProtocol
from tests.support.http_connection import Connection
from tests.support.virtual_time_loop import in_virtual_time

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class SmallProtocol(LimitedHttpProtocol):
    max_connections = 8


class Server:
    """A server whose application answers after `delay` seconds."""

    def __init__(self, delay: float = 0) -> None:
        self._delay = delay
        self._state = ServerState()
        self._config = uvicorn.Config(
            self._answer, interface="asgi3", ws="none", lifespan="off", log_config=None, access_log=False
        )

    def connect(self) -> Connection:
        return Connection(SmallProtocol(self._config, self._state, {}))

    async def _answer(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await asyncio.sleep(self._delay)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})


@in_virtual_time
async def test_new_connection_takes_the_place_of_the_one_that_has_been_silent_longest() -> None:
    server = Server()
    silent = []
    for _ in range(20):
        silent.append(server.connect())
        await asyncio.sleep(0.1)
    probe = server.connect()
    probe.send(REQUEST)
    await asyncio.sleep(0.1)
    assert probe.answer.startswith(b"HTTP/1.1 200 ")
    assert [connection.is_closing() for connection in silent] == [True] * 13 + [False] * 7
    assert silent[0].answer == b""


@in_virtual_time
async def test_answered_connection_is_closed_before_one_whose_request_is_being_answered() -> None:
    server = Server(delay=5)
    busy = [server.connect() for _ in range(7)]
    for connection in busy:
        connection.send(REQUEST)
    idle = server.connect()
    server.connect()
    await asyncio.sleep(6)
    assert idle.is_closing()
    assert [connection.answer[:13] for connection in busy] == [b"HTTP/1.1 200 "] * 7


@in_virtual_time
async def test_new_connection_is_closed_if_all_others_are_being_answered() -> None:
    server = Server(delay=5)
    busy = [server.connect() for _ in range(8)]
    for connection in busy:
        connection.send(REQUEST)
    refused = server.connect()
    await asyncio.sleep(6)
    assert refused.is_closing()
    assert [connection.answer[:13] for connection in busy] == [b"HTTP/1.1 200 "] * 8


@pytest.fixture
def file_limit() -> Iterator[int]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_limit_of_open_files_is_raised(file_limit: int) -> None:
    raise_file_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(file_limit, 16_384)
    raise_file_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(file_limit, 16_384)


def test_connections_leave_files_for_the_rest_of_the_process(file_limit: int) -> None:
    assert LimitedHttpProtocol.most_connections() == 512
    raise_file_limit()
    assert LimitedHttpProtocol.most_connections() == 8192
