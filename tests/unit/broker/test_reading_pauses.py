"""Pausing and resuming to read, over TCP and over TLS: what arrived during the pause is neither read early nor lost."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable

import pytest
import trustme

from ingest.broker.rabbitmq.amqp import codec
from ingest.broker.rabbitmq.amqp.frames import FrameDemultiplexer

FRAME = 16 * 1024
BUFFERED = 1024 * 1024
"""More bytes than one read from the socket, and what TLS keeps before it stops reading, have together."""
SEVERAL_READS = 400
"""Frames that have more bytes than all buffers of transport and kernel."""


class Sink:
    """Takes body frames; calls `reached` when it has `limit` of them."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.limit = 1
        self.reached: Callable[[], None] = lambda: None

    def method(self, *_: object) -> bool:
        return False

    def header(self, *_: object) -> bool:
        return False

    def body(self, part: bytes) -> bool:
        self.bodies.append(part)
        if len(self.bodies) == self.limit:
            self.reached()
        return True


class Line:
    """A connection on loopback: `server` writes frames, `reader` gives them to `sink`."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._written = 0
        self.sink = Sink()
        loop = asyncio.get_running_loop()
        self.reader = FrameDemultiplexer({1: self.sink}, lambda _: None, loop)
        self.server: asyncio.StreamWriter

    async def connect(self, port: int) -> None:
        protocol = asyncio.StreamReaderProtocol(self.reader)
        self._transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: protocol, "127.0.0.1", port, ssl=self._context
        )

    def send(self, frames: int) -> None:
        for number in range(self._written, self._written + frames):
            body = number.to_bytes(4, "big") * (FRAME // 4)
            self.server.write(codec.frame_head.pack(codec.BODY, 1, FRAME) + body + b"\xce")
        self._written += frames

    @property
    def numbers(self) -> list[int]:
        """The numbers of the frames that the sink has."""
        return [int.from_bytes(body[:4], "big") for body in self.sink.bodies]

    async def pause_at_first_frame(self) -> None:
        """Return when a first frame has arrived and reading is paused."""
        paused = asyncio.Event()

        def pause() -> None:
            self.reader.pause()
            paused.set()

        self.sink.reached = pause
        self.send(1)
        await paused.wait()

    async def all_arrived(self) -> None:
        arrived = asyncio.Event()
        self.sink.limit, self.sink.reached = self._written, arrived.set
        self.reader.resume()
        async with asyncio.timeout(20):
            await arrived.wait()
        assert self.numbers == list(range(self._written))

    def close(self) -> None:
        self.reader.resume()  # ends its timer
        self._transport.abort()
        self.server.transport.abort()


@pytest.fixture(params=["TCP", "TLS"])
async def line(request: pytest.FixtureRequest) -> AsyncIterator[Line]:
    client = server_side = None
    if request.param == "TLS":
        authority = trustme.CA()
        client, server_side = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.configure_trust(client)
        authority.issue_cert("127.0.0.1").configure_cert(server_side)
    line, accepted = Line(client), asyncio.Event()

    def accept(_: object, writer: asyncio.StreamWriter) -> None:
        line.server = writer
        accepted.set()

    async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=server_side) as server:
        await line.connect(server.sockets[0].getsockname()[1])
        await accepted.wait()
        yield line
        line.close()


async def let_data_arrive() -> None:
    """Let the loop read what it can. Loopback delivers at once."""
    for _ in range(500):
        await asyncio.sleep(0)


@pytest.mark.parametrize("more", [1, 20, SEVERAL_READS])
async def test_frames_that_arrive_during_a_pause_are_read_after_it(line: Line, more: int) -> None:
    """TLS has decrypted a few frames then, and nothing else arrives that would wake it up."""
    await line.pause_at_first_frame()
    line.send(more)
    await let_data_arrive()
    assert line.numbers == [0]
    await line.all_arrived()


async def test_pause_takes_effect_within_the_data_of_one_read(line: Line) -> None:
    line.sink.reached = line.reader.pause
    line.send(SEVERAL_READS)
    await let_data_arrive()
    assert 0 < len(line.numbers) * FRAME < BUFFERED
    await line.all_arrived()


async def test_pause_right_after_a_resume_reads_nothing(line: Line) -> None:
    """TLS resumes only in the next turn of the event loop."""
    await line.pause_at_first_frame()
    line.send(SEVERAL_READS)
    await let_data_arrive()
    for _ in range(10):
        line.reader.resume()
        line.reader.pause()
        await let_data_arrive()
    assert line.numbers == [0]
    await line.all_arrived()


async def test_frames_before_the_end_of_the_connection_are_read_after_a_pause(line: Line) -> None:
    await line.pause_at_first_frame()
    line.send(20)
    line.server.close()
    await let_data_arrive()
    assert line.numbers == [0]
    await line.all_arrived()
    async with asyncio.timeout(20):
        while await line.reader.read(1000):
            pass
