"""Frames that are written together, and the gate in front of aiormq's queue."""

import asyncio
import ssl

import aiormq
import pytest
import trustme
from aiormq.abc import SSLCerts
from asg_gateway.amqp._producing.coalescing import _MAX, CoalescingWriter, _TransportFactory
from asg_gateway.amqp._producing.room import Gate
from yarl import URL


class Transport(asyncio.WriteTransport):
    """Records what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.ended = self.closed = False

    def write(self, data: object) -> None:
        assert isinstance(data, bytes)
        self.written.append(data)

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


@pytest.fixture
async def transport() -> Transport:
    return Transport()


@pytest.fixture
async def writer(transport: Transport) -> CoalescingWriter:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    return CoalescingWriter(transport, asyncio.StreamReaderProtocol(reader, loop=loop), reader, loop)


async def test_writes_of_successive_iterations_are_one_until_one_adds_nothing(
    writer: CoalescingWriter, transport: Transport
) -> None:
    for number in range(5):
        writer.write(b"%d" % number)
        writer.write(b",")
        await asyncio.sleep(0)
    assert transport.written == []
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert transport.written == [b"0,1,2,3,4,"]
    writer.write(b"more")
    for _ in range(3):
        await asyncio.sleep(0)
    assert transport.written[1:] == [b"more"]


async def test_much_is_written_at_once(writer: CoalescingWriter, transport: Transport) -> None:
    writer.write(b"x" * _MAX)
    writer.write(b"y")
    assert transport.written == [b"x" * _MAX + b"y"]


@pytest.mark.parametrize("end", ["drain", "write_eof", "close"])
async def test_nothing_is_pending_after_a_drain_or_the_end(
    writer: CoalescingWriter, transport: Transport, end: str
) -> None:
    writer.write(b"last")
    if end == "drain":
        await writer.drain()
    else:
        getattr(writer, end)()
    assert transport.written == [b"last"]
    assert (transport.ended, transport.closed) == (end == "write_eof", end == "close")


async def test_transport_of_amqps_is_encrypted_and_checks_the_host() -> None:
    authority = trustme.CA()
    server_context, client_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server_context)
    authority.configure_trust(client_context)
    received = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.set_result(await reader.readexactly(5))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context)
    port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    certificates = SSLCerts(None, None, None, None, None, True)
    provider = aiormq.SSLContextProvider(ssl_context=client_context, ssl_certs=certificates, loop=loop)
    async with server:
        _, writer = await _TransportFactory().create(URL(f"amqps://localhost:{port}"), ssl_context_provider=provider)
        writer.write(b"AMQP!")
        assert await asyncio.wait_for(received, 5) == b"AMQP!"
        writer.close()
        with pytest.raises(aiormq.exceptions.AMQPConnectionError):
            await _TransportFactory().create(URL(f"amqps://127.0.0.1:{port}"), ssl_context_provider=provider)


async def test_gate_lets_a_number_of_calls_pass_in_each_iteration_in_order() -> None:
    gate = Gate(3)
    passed: list[int] = []

    async def call(number: int) -> None:
        await gate.enter()
        passed.append(number)

    calls = [asyncio.create_task(call(number)) for number in range(10)]
    counts = []
    calls[4].cancel()
    while not all(each.done() for each in calls):
        before = len(passed)
        await asyncio.sleep(0)
        counts.append(len(passed) - before)
    assert passed == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert max(counts) == 3
    assert len(counts) <= 7
    await asyncio.wait_for(gate.enter(), 1)
