"""What is written to a connection waits until the event loop has run what is ready, and is then written at once."""

import asyncio
from typing import Any

from ingest.shim.http.protocol import DeferringTransport

KIB = 1024


class Transport:
    """Records what is written to it."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def get_extra_info(self, name: str) -> str:
        return f"the {name}"


def deferring(transport: Transport) -> Any:
    return DeferringTransport(transport, asyncio.get_running_loop())  # type: ignore[arg-type]


async def test_answers_of_several_connections_are_written_at_once_each_with_its_head() -> None:
    transports = [Transport(), Transport()]
    for transport in transports:
        connection = deferring(transport)
        connection.write(b"head ")
        connection.write(b"body")
    assert [transport.writes for transport in transports] == [[], []]
    await asyncio.sleep(0)
    assert [transport.writes for transport in transports] == [[b"head body"], [b"head body"]]
    await asyncio.sleep(0)
    assert transports[0].writes == [b"head body"]


async def test_further_data_is_written_in_order() -> None:
    transport = Transport()
    connection = deferring(transport)
    for data in (b"first", b"second"):
        connection.write(data)
        await asyncio.sleep(0)
    assert transport.writes == [b"first", b"second"]


async def test_no_more_than_64_kib_are_held() -> None:
    """Otherwise a long response would not be slowed down by its client."""
    transport = Transport()
    connection = deferring(transport)
    connection.write(b"a" * 64 * KIB)
    assert transport.writes == []
    connection.write(b"b")
    assert transport.writes == [b"a" * 64 * KIB + b"b"]
    connection.write(b"c")
    await asyncio.sleep(0)
    assert transport.writes[1:] == [b"c"]


async def test_closing_writes_what_is_held() -> None:
    transport = Transport()
    connection = deferring(transport)
    connection.write(b"answer")
    connection.close()
    assert (transport.writes, transport.closed, connection.is_closing()) == ([b"answer"], True, True)
    await asyncio.sleep(0)
    assert transport.writes == [b"answer"]


async def test_nothing_is_written_once_the_client_has_gone() -> None:
    """uvloop raises RuntimeError if a closed connection is written to."""
    transport = Transport()
    connection = deferring(transport)
    connection.write(b"answer")
    transport.closed = True
    await asyncio.sleep(0)
    assert transport.writes == []


async def test_everything_else_is_the_transports_own() -> None:
    assert deferring(Transport()).get_extra_info("peername") == "the peername"
