"""Attacks on the HTTP port: slow and idle clients, and requests that two parsers could read differently."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from statistics import quantiles
from typing import Final

import httpx
import pytest

from ingest.shim.http.protocol import BODY_TIMEOUT, HEAD_TIMEOUT
from tests.e2e.contract import TASK
from tests.e2e.processes import Ingest, wait_ready
from tests.servers.process import free_ports

IDLE: Final = 1000
SLOW: Final = 200
_TASK: Final = json.dumps(TASK).encode()
_HEAD: Final = b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A shim on files; API key `k`."""
    (port,) = free_ports(1)
    with Ingest("dev", "--port", str(port), "--api-key", "k", directory=tmp_path_factory.mktemp("door")) as dev:
        wait_ready(f"http://127.0.0.1:{port}")
        yield port
        assert "Traceback" not in dev.text()


async def _p99(port: int, count: int = 200) -> float:
    """Milliseconds, of tasks submitted one after the other; each must be accepted."""
    took = []
    async with httpx.AsyncClient(headers={"Authorization": "Bearer k"}, timeout=10) as client:
        for _ in range(count):
            began = time.perf_counter()
            answer = await client.post(f"http://127.0.0.1:{port}/v1/tasks", json=TASK)
            took.append(1000 * (time.perf_counter() - began))
            assert answer.status_code == 202
    return quantiles(took, n=100)[-1]


async def test_slow_half_open_and_idle_connections(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 idle connections, 200 that drip a head, 200 that drip a body, 200 half closed: others are served."""
    alone = await _p99(port)
    streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(IDLE + 3 * SLOW)]
    writers = [writer for _, writer in streams]
    headers, bodies, half = writers[:SLOW], writers[SLOW : 2 * SLOW], writers[2 * SLOW : 3 * SLOW]
    for writer in headers:
        writer.write(b"POST /v1/tasks HTTP/1.1\r\nX-A: ")
    for writer in bodies:
        writer.write(_HEAD + b"Content-Length: 100000\r\n\r\n{")
    for writer in half:
        writer.write(b"POST /v1/tasks HTTP/1.1\r\n")
        writer.write_eof()

    async def drip() -> None:
        while True:
            for writer in (*headers, *bodies):
                if not writer.is_closing():
                    writer.write(b"a")
            await asyncio.sleep(0.5)

    dripping = asyncio.create_task(drip())
    beside = await _p99(port)
    dripping.cancel()
    for writer in writers:
        writer.close()
    with capsys.disabled():
        print(
            f"\n  p99 of a submission: {alone:.1f} ms alone, {beside:.1f} ms beside {len(writers)} hostile connections"
        )
    assert beside < max(10 * alone, 500)


async def _answers(port: int, request: bytes, *, eof: bool = False) -> list[int]:
    """The statuses of all answers until the server closes, or says no more for a while."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    if eof:
        writer.write_eof()
    got = b""
    try:
        while part := await asyncio.wait_for(reader.read(65536), 1):
            got += part
    except (TimeoutError, ConnectionError):
        pass
    writer.close()
    return [int(part[:3]) for part in got.split(b"HTTP/1.1 ")[1:]]


_BODY: Final = b'{"x":1}'
_SMUGGLED: Final = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (b"Content-Length: 5\r\n" + _CHUNKED, b"0\r\n\r\n" + _SMUGGLED),
        (_CHUNKED + b"Content-Length: 5\r\n", b"0\r\n\r\n" + _SMUGGLED),
        (b"Content-Length: 7\r\nContent-Length: 0\r\n", _BODY + _SMUGGLED),
        (b"Content-Length: 0\r\nContent-Length: 7\r\n", _BODY + _SMUGGLED),
        (b"Content-Length: 7, 7\r\n", _BODY + _SMUGGLED),
        (b"Content-Length: +7\r\n", _BODY + _SMUGGLED),
        (b"Content-Length: -7\r\n", _BODY + _SMUGGLED),
        (b"Content-Length: 0x7\r\n", _BODY + _SMUGGLED),
        (b"Content-Length: 99999999999999999999999\r\n", _BODY + _SMUGGLED),
        (b"Content-Length : 7\r\n", _BODY + _SMUGGLED),
        (b"X-A: b\r\n Content-Length: 7\r\n", _BODY + _SMUGGLED),
        (b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n" + _SMUGGLED),
        (b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n" + _SMUGGLED),
        (b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n" + _SMUGGLED),
        (b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n" + _SMUGGLED),
        (_CHUNKED, b"zz\r\n{}\r\n0\r\n\r\n" + _SMUGGLED),
        (_CHUNKED, b"-2\r\n{}\r\n0\r\n\r\n" + _SMUGGLED),
        (_CHUNKED, b"0x2\r\n{}\r\n0\r\n\r\n" + _SMUGGLED),
        (_CHUNKED, b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n" + _SMUGGLED),
        (_CHUNKED, b"2\n{}\n0\n\n" + _SMUGGLED),
        (_CHUNKED, b"2\r\n{}xx0\r\n\r\n" + _SMUGGLED),
        (b"X-A: a\0b\r\nContent-Length: 7\r\n", _BODY + _SMUGGLED),
        (b"X\0A: a\r\nContent-Length: 7\r\n", _BODY + _SMUGGLED),
        (b"X-A: a\rContent-Length: 0\r\nContent-Length: 7\r\n", _BODY + _SMUGGLED),
        (b"X-A: a\nContent-Length: 7\r\n", _BODY + _SMUGGLED),
        (b"X-A: a\n\n", _SMUGGLED),
        (b"X-A: " + b"a" * 1_000_000 + b"\r\n", _SMUGGLED),
        (b"X-A: a\r\n" * 20_000, _SMUGGLED),
        (b"Host: y\r\nContent-Length: 7\r\n", _BODY + _SMUGGLED),
        (b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n" + _SMUGGLED),
        (b"Transfer-Encoding: identity\r\n" + _CHUNKED, b"0\r\n\r\n" + _SMUGGLED),
        (b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 7\r\n", _BODY + _SMUGGLED),
    ],
)
async def test_what_two_parsers_could_read_differently_is_refused(port: int, headers: bytes, body: bytes) -> None:
    """One 4xx, or none at all, and the connection ends: what follows on it is not taken for a request."""
    statuses = await _answers(port, _HEAD + headers + b"\r\n" + body)
    assert len(statuses) <= 1, statuses
    assert all(400 <= status < 500 for status in statuses), statuses


@pytest.mark.parametrize(
    ("request_line", "headers", "body", "status"),
    [
        (b"POST /v1/tasks HTTP/1.0\r\n", _CHUNKED, b"7\r\n" + _BODY + b"\r\n0\r\n\r\n", 400),
        (b"POST /v1/tasks HTTP/2.0\r\n", b"Content-Length: 7\r\n", _BODY, 505),
        (b"POST /v1/tasks\r\n", b"Content-Length: 7\r\n", _BODY, 505),
    ],
)
async def test_other_versions_of_http_are_refused(
    port: int, request_line: bytes, headers: bytes, body: bytes, status: int
) -> None:
    """HTTP/1.0 has no chunks; 0.9 and 2 are not spoken in this form."""
    head = request_line + _HEAD.partition(b"\r\n")[2]
    assert await _answers(port, head + headers + b"\r\n" + body + _SMUGGLED) == [status]


async def test_a_request_without_a_host_is_refused(port: int) -> None:
    """HTTP/1.1 requires it; HTTP/1.0 does not."""
    assert await _answers(port, b"GET /healthz HTTP/1.1\r\n\r\n" + _SMUGGLED) == [400]
    assert await _answers(port, b"GET /healthz HTTP/1.0\r\n\r\n") == [200]


async def test_what_was_whole_is_answered_whatever_follows(port: int) -> None:
    """Rubbish behind it, or the end of what the client sends: its answer comes, since it may be accepted."""
    body = json.dumps(TASK).encode()
    task = _HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    assert await _answers(port, task + b"\0rubbish\r\n\r\n") == [202]
    assert await _answers(port, task + task + b"\0rubbish\r\n\r\n") == [202, 202]
    assert await _answers(port, task, eof=True) == [202]
    assert await _answers(port, task + task, eof=True) == [202, 202]
    assert await _answers(port, _HEAD + b"Content-Length: 100\r\n\r\n{", eof=True) == []
    assert await _answers(port, _HEAD + _CHUNKED + b"\r\nzz\r\n") == [400]


async def test_another_protocol_is_not_spoken(port: int) -> None:
    """An upgrade is ignored, as HTTP allows; nothing that follows is taken for a request."""
    ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert await _answers(port, ask + _SMUGGLED) == [200]


async def test_what_is_right_is_served(port: int) -> None:
    """The same requests without the twist: two answers on one connection."""
    body = b'{"type":"x"}'
    plain = _HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunked = _HEAD + _CHUNKED + b"\r\nc\r\n" + body + b"\r\n0\r\n\r\n"
    assert await _answers(port, plain + _SMUGGLED) == [400, 200]
    assert await _answers(port, chunked + _SMUGGLED) == [400, 200]


async def test_what_does_not_come_in_time_is_cut_off(port: int) -> None:
    """Whoever sends nothing, a head that does not end or a body that does not end; an idle client in between is not."""
    openings = [b"", b"POST /v1/tasks HTTP/1.1\r\nX-A: a", _HEAD + b"Content-Length: 100\r\n\r\n{"]
    limits = [HEAD_TIMEOUT, HEAD_TIMEOUT, BODY_TIMEOUT]

    async def attack(opening: bytes, limit: float) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(opening)
        began, got = time.monotonic(), b""
        while not reader.at_eof() and time.monotonic() - began < limit + 20:
            if opening:
                writer.write(b"a" if limit == HEAD_TIMEOUT else b" ")
            try:
                got += await asyncio.wait_for(reader.read(1000), 2)
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert limit - 1 < time.monotonic() - began < limit + 15
        return got

    idle, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_SMUGGLED)
    answers = await asyncio.gather(*[attack(*each) for each in zip(openings, limits, strict=True)])
    assert [answer[9:12] for answer in answers] == [b"408", b"408", b"408"]
    writer.write(_SMUGGLED)
    assert (await idle.read(100)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("name", ["Authorization", "Content-Type", "Content-Length", "Idempotency-Key"])
@pytest.mark.parametrize("change", [str, str.upper])
def test_headers_that_decide_something_stand_once(
    port: int, method: str, name: str, change: Callable[[str], str]
) -> None:
    """Of two, even of two that are equal, neither is taken: 400 that names the header, and nothing is submitted."""
    headers = [
        ("Host", "x"),
        ("Authorization", "Bearer k"),
        ("Content-Type", "application/json"),
        ("Idempotency-Key", "twice"),
        ("Content-Length", str(len(_TASK))),
    ]
    path = "/v1/tasks" if method == "POST" else "/v1/tasks/tsk_x"
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(
        f"{each}: {value}\r\n" for each, value in (*headers, (change(name), dict(headers)[name]))
    )
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(head.encode() + b"\r\n" + _TASK)
        answer = connection.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 400 ")
    # The parser has its own word for lengths, before anybody sees a request.
    assert name == "Content-Length" or f"the header {name} was sent more than once, send it once" in answer


async def test_other_headers_may_repeat(port: int) -> None:
    """As HTTP has them: a list in several lines."""
    async with httpx.AsyncClient(headers={"Authorization": "Bearer k"}) as client:
        answer = await client.post(f"http://127.0.0.1:{port}/v1/tasks", json=TASK, headers=[("X-A", "1"), ("X-A", "2")])
    assert answer.status_code == 202
