"""Over real sockets: nobody there, nobody answering, and somebody who hangs up."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator

import asg_gateway
import pytest
from asg_gateway import AsyncASGGatewayClient

from tests.unit.sdk.gateway import CALL, TASK

HANG_UP = b""
HALF = b"HTTP/1.1 202 Accepted\r\nContent-Length: 500\r\n\r\n{"
SILENCE = None


def answer(status: str, body: object) -> bytes:
    content = json.dumps(body).encode()
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(content), content)


class Script:
    """A server that does one thing a request, in turn, and the last thing from then on."""

    def __init__(self, *steps: bytes | None) -> None:
        self._steps = list(steps)
        self.bodies: list[bytes] = []
        self._stopped = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        self.bodies.append(await reader.readexactly(length))
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        if step is SILENCE:
            await self._stopped.wait()
        else:
            writer.write(step)
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            self._stopped.set()
            server.close()
            await server.wait_closed()


async def no_pause(_: float) -> None:
    """Retry at once."""


@pytest.mark.parametrize("trouble", [HANG_UP, HALF, SILENCE, b"no HTTP at all\r\n\r\n"])
async def test_a_lost_answer_is_asked_for_again_with_the_same_key(trouble: bytes | None) -> None:
    """The gateway may have taken the first request: the second is the same, so it is a replay."""
    script = Script(trouble, answer("200 OK", TASK | {"idempotent": True}))
    async with (
        script.running() as url,
        AsyncASGGatewayClient("k", base_url=url, timeout=0.3, sleep=no_pause) as client,
    ):
        result = await client.submit_task(**CALL)
    assert result.idempotent
    assert len(script.bodies) == 2
    assert script.bodies[0] == script.bodies[1]


async def test_silence_ends_at_the_deadline() -> None:
    """Whatever `timeout` allows, the call is over when the deadline is."""
    script = Script(SILENCE)
    loop = asyncio.get_running_loop()
    async with script.running() as url, AsyncASGGatewayClient("k", base_url=url, timeout=60, deadline=0.3) as client:
        began = loop.time()
        with pytest.raises(asg_gateway.TimedOutError):
            await client.submit_task(**CALL)
        assert 0.3 <= loop.time() - began < 5


def test_nobody_listening_is_a_transport_error() -> None:
    """The blocking client tells it after its retries."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and never listening: refused for certain
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        pauses: list[float] = []
        with (
            asg_gateway.ASGGatewayClient("k", base_url=url, max_retries=2, sleep=pauses.append) as client,
            pytest.raises(asg_gateway.TransportError) as caught,
        ):
            client.submit_task(**CALL)
    assert not isinstance(caught.value, asg_gateway.TimedOutError)
    assert len(pauses) == 2
