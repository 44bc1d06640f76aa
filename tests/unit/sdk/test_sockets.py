"""The SDK over real sockets: refused connections, missing answers and connections that are closed early."""

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import asg_gateway
import pytest
import trustme
from asg_gateway import AsyncASGGatewayClient

from tests.unit.sdk.gateway import CALL, TASK
from tests.unit.sdk.servers import TaskServer

CLOSED = b""
INCOMPLETE = b"HTTP/1.1 202 Accepted\r\nContent-Length: 500\r\n\r\n{"
SILENCE = None


def answer(status: str, body: object) -> bytes:
    content = json.dumps(body).encode()
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(content), content)


class ScriptedServer:
    """A server that gives one answer per request, in order, and repeats the last one. It closes each connection."""

    def __init__(self, *answers: bytes | None) -> None:
        self._answers = list(answers)
        self.bodies: list[bytes] = []
        self._stopped = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        self.bodies.append(await reader.readexactly(length))
        next_answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if next_answer is SILENCE:
            await self._stopped.wait()
        else:
            writer.write(next_answer)
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
    """Return at once, so that a retry follows immediately."""


@pytest.mark.parametrize("broken", [CLOSED, INCOMPLETE, SILENCE, b"not HTTP\r\n\r\n"])
async def test_request_without_valid_answer_is_repeated_unchanged(broken: bytes | None) -> None:
    """The gateway may have accepted the first request. The second one has the same key, so it is a replay."""
    server = ScriptedServer(broken, answer("200 OK", TASK | {"idempotent": True}))
    async with (
        server.running() as url,
        AsyncASGGatewayClient("k", base_url=url, timeout=0.3, sleep=no_pause) as client,
    ):
        result = await client.submit_task(**CALL)
    assert result.idempotent
    assert len(server.bodies) == 2
    assert server.bodies[0] == server.bodies[1]


async def test_call_ends_at_the_deadline_even_if_timeout_is_longer() -> None:
    server = ScriptedServer(SILENCE)
    loop = asyncio.get_running_loop()
    async with server.running() as url, AsyncASGGatewayClient("k", base_url=url, timeout=60, deadline=0.3) as client:
        began = loop.time()
        with pytest.raises(asg_gateway.TimedOutError):
            await client.submit_task(**CALL)
        assert 0.3 <= loop.time() - began < 5


def test_refused_connection_is_a_transport_error_after_the_retries() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # it does not listen, so connections are refused
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        pauses: list[float] = []
        with (
            asg_gateway.ASGGatewayClient("k", base_url=url, max_retries=2, sleep=pauses.append) as client,
            pytest.raises(asg_gateway.TransportError) as caught,
        ):
            client.submit_task(**CALL)
    assert not isinstance(caught.value, asg_gateway.TimedOutError)
    assert len(pauses) == 2


def test_both_clients_verify_the_certificate_of_the_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSL_CERT_FILE names further authorities."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    async def call(url: str) -> str:
        async with AsyncASGGatewayClient("k", base_url=url, max_retries=0) as client:
            return (await client.submit_task(**CALL, idempotency_key="k1")).task_id

    def call_blocking(url: str) -> str:
        with asg_gateway.ASGGatewayClient("k", base_url=url, max_retries=0) as client:
            return client.submit_task(**CALL, idempotency_key="k1").task_id

    with TaskServer(tls=context).running() as url:
        for refused in (call_blocking, lambda url: asyncio.run(call(url))):
            with pytest.raises(asg_gateway.TransportError, match="CERTIFICATE_VERIFY_FAILED"):
                refused(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert (call_blocking(url), asyncio.run(call(url))) == ("k1", "k1")
