"""Attacks on the HTTP port: slow and idle clients, and requests that two parsers could read differently."""

import asyncio
import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import quantiles
from typing import Final

import httpx
import pytest

from ingest.shim.http.protocol import BODY_MAX_LAG, HEAD_TIMEOUT
from tests.e2e.contract import TASK
from tests.e2e.processes import Ingest, wait_ready
from tests.servers.process import free_ports

IDLE: Final = 1000
SLOW: Final = 200
_TASK: Final = json.dumps(TASK).encode()
_HEAD: Final = b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\nContent-Type: application/json\r\n"


@contextmanager
def _usual_file_limit() -> Iterator[None]:
    """Processes that start meanwhile may open 1,024 files, and more if they ask for it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Start a shim that stores everything in files and accepts the API key `k`."""
    (port,) = free_ports(1)
    with _usual_file_limit():
        started = Ingest("dev", "--port", str(port), "--api-key", "k", directory=tmp_path_factory.mktemp("http-limits"))
    with started as dev:
        wait_ready(f"http://127.0.0.1:{port}")
        yield port
        assert "Traceback" not in dev.text()


async def _p99(port: int, count: int = 200) -> float:
    """Submit tasks one after the other, of which all must be accepted; return the 99th percentile in milliseconds."""
    durations = []
    async with httpx.AsyncClient(headers={"Authorization": "Bearer k"}, timeout=10) as client:
        for _ in range(count):
            start = time.perf_counter()
            answer = await client.post(f"http://127.0.0.1:{port}/v1/tasks", json=TASK)
            durations.append(1000 * (time.perf_counter() - start))
            assert answer.status_code == 202
    return quantiles(durations, n=100)[-1]


async def test_submissions_are_fast_beside_slow_half_closed_and_idle_connections(
    port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """1,000 connections are idle; 200 send a head slowly, 200 send a body slowly, and 200 are half closed."""
    undisturbed = await _p99(port)
    streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(IDLE + 3 * SLOW)]
    writers = [writer for _, writer in streams]
    slow_heads, slow_bodies, half_closed = writers[:SLOW], writers[SLOW : 2 * SLOW], writers[2 * SLOW : 3 * SLOW]
    for writer in slow_heads:
        writer.write(b"POST /v1/tasks HTTP/1.1\r\nX-A: ")
    for writer in slow_bodies:
        writer.write(_HEAD + b"Content-Length: 100000\r\n\r\n{")
    for writer in half_closed:
        writer.write(b"POST /v1/tasks HTTP/1.1\r\n")
        writer.write_eof()

    async def send_slowly() -> None:
        while True:
            for writer in (*slow_heads, *slow_bodies):
                if not writer.is_closing():
                    writer.write(b"a")
            await asyncio.sleep(0.5)

    sending = asyncio.create_task(send_slowly())
    attacked = await _p99(port)
    sending.cancel()
    for writer in writers:
        writer.close()
    with capsys.disabled():
        print(
            f"\n  p99 of a submission: {undisturbed:.1f} ms undisturbed, "
            f"{attacked:.1f} ms beside {len(writers)} hostile connections"
        )
    assert attacked < max(10 * undisturbed, 500)


async def _statuses(port: int, request: bytes, *, eof: bool = False) -> list[int]:
    """Send the bytes; return the statuses of all answers until the server closes or is silent for a second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    if eof:
        writer.write_eof()
    received = b""
    try:
        while part := await asyncio.wait_for(reader.read(65536), 1):
            received += part
    except (TimeoutError, ConnectionError):
        pass
    writer.close()
    return [int(answer[:3]) for answer in received.split(b"HTTP/1.1 ")[1:]]


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
        (b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 7\r\n" + _CHUNKED, b"0\r\n\r\n" + _SMUGGLED),
    ],
)
async def test_ambiguous_request_gets_at_most_one_4xx_and_the_bytes_after_it_no_answer(
    port: int, headers: bytes, body: bytes
) -> None:
    statuses = await _statuses(port, _HEAD + headers + b"\r\n" + body)
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
async def test_unsupported_http_version_is_refused(
    port: int, request_line: bytes, headers: bytes, body: bytes, status: int
) -> None:
    """HTTP/1.0 does not define chunked bodies; the server does not speak HTTP/0.9 and HTTP/2."""
    head = request_line + _HEAD.partition(b"\r\n")[2]
    assert await _statuses(port, head + headers + b"\r\n" + body + _SMUGGLED) == [status]


async def test_http_1_1_request_without_host_is_refused(port: int) -> None:
    """HTTP/1.0 does not require the header."""
    assert await _statuses(port, b"GET /healthz HTTP/1.1\r\n\r\n" + _SMUGGLED) == [400]
    assert await _statuses(port, b"GET /healthz HTTP/1.0\r\n\r\n") == [200]


async def test_complete_request_is_answered_before_garbage_or_the_end_of_the_stream(port: int) -> None:
    """The request may have been accepted, so the client must learn the result. An incomplete one is not accepted."""
    task = _HEAD + b"Content-Length: %d\r\n\r\n" % len(_TASK) + _TASK
    assert await _statuses(port, task + b"\0garbage\r\n\r\n") == [202]
    assert await _statuses(port, task + task + b"\0garbage\r\n\r\n") == [202, 202]
    assert await _statuses(port, task, eof=True) == [202]
    assert await _statuses(port, task + task, eof=True) == [202, 202]
    assert await _statuses(port, _HEAD + b"Content-Length: 100\r\n\r\n{", eof=True) == []
    assert await _statuses(port, _HEAD + _CHUNKED + b"\r\nzz\r\n") == [400]


async def test_unambiguous_requests_on_one_connection_are_all_answered(port: int) -> None:
    """This is the control of the tests above: here, the second request gets an answer."""
    body = b'{"type":"x"}'
    plain = _HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunked = _HEAD + _CHUNKED + b"\r\nc\r\n" + body + b"\r\n0\r\n\r\n"
    assert await _statuses(port, plain + _SMUGGLED) == [400, 200]
    assert await _statuses(port, chunked + _SMUGGLED) == [400, 200]


async def test_incomplete_request_times_out_and_an_idle_connection_does_not(port: int) -> None:
    """Clients that send nothing, an endless head or the begin of a body get 408 at the limit."""
    opening = _HEAD + b"Content-Length: %d\r\n\r\n{" % (8 * 1024 * 1024)
    attacks = [
        (b"", HEAD_TIMEOUT, b""),
        (b"POST /v1/tasks HTTP/1.1\r\nX-A: a", HEAD_TIMEOUT, b"a"),
        (opening, BODY_MAX_LAG, b" "),
        (opening, BODY_MAX_LAG, b""),
    ]

    async def attack(opening: bytes, limit: float, drip: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(opening)
        start, received = time.monotonic(), b""
        while not reader.at_eof() and time.monotonic() - start < limit + 20:
            writer.write(drip)
            try:
                received += await asyncio.wait_for(reader.read(1000), 2)
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert limit - 1 < time.monotonic() - start < limit + 15
        return received

    idle, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_SMUGGLED)
    answers = await asyncio.gather(*[attack(*arguments) for arguments in attacks])
    assert [answer[9:12] for answer in answers] == [b"408"] * len(attacks)
    writer.write(_SMUGGLED)
    assert (await idle.read(100)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("name", ["Authorization", "Content-Type", "Content-Length", "Idempotency-Key"])
@pytest.mark.parametrize("change", [str, str.upper])
def test_repeated_singleton_header_is_refused_even_with_an_equal_value(
    port: int, method: str, name: str, change: Callable[[str], str]
) -> None:
    headers = [
        ("Host", "x"),
        ("Authorization", "Bearer k"),
        ("Content-Type", "application/json"),
        ("Idempotency-Key", "twice"),
        ("Content-Length", str(len(_TASK))),
    ]
    path = "/v1/tasks" if method == "POST" else "/v1/tasks/tsk_x"
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(
        f"{header}: {value}\r\n" for header, value in (*headers, (change(name), dict(headers)[name]))
    )
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(head.encode() + b"\r\n" + _TASK)
        answer = connection.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 400 ")
    # httptools itself refuses a second Content-Length, with another text.
    assert name == "Content-Length" or f"the header {name} was sent more than once, send it once" in answer


async def test_other_headers_may_be_repeated(port: int) -> None:
    async with httpx.AsyncClient(headers={"Authorization": "Bearer k"}) as client:
        answer = await client.post(f"http://127.0.0.1:{port}/v1/tasks", json=TASK, headers=[("X-A", "1"), ("X-A", "2")])
    assert answer.status_code == 202
