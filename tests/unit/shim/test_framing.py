"""Where a request ends, and which parts of it count."""

import asyncio
import json
import re

import pytest

from tests.support.shim_harness import ShimHarness
from tests.support.tasks import TASK

BODY = json.dumps(TASK).encode()
CHUNKED = b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
JSON = b"Content-Type: application/json\r\n"
AUTHORIZED = JSON + b"Authorization: Bearer key\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
PLAIN = b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\n" + AUTHORIZED
WITH_LENGTH = b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
WITH_CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
LAST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def chunked(headers: bytes, trailers: bytes) -> bytes:
    """A request whose trailers arrive with its headers, in one packet."""
    return CHUNKED + headers + b"\r\n%x\r\n%b\r\n0\r\n%b\r\n" % (len(BODY), BODY, trailers)


async def test_trailers_are_ignored(harness: ShimHarness) -> None:
    """A proxy may add them without the checks that it makes for headers (RFC 9110, section 6.5.1)."""
    assert (await harness.raw(chunked(AUTHORIZED, b""))).startswith(b"HTTP/1.1 202 ")
    assert (await harness.raw(chunked(JSON, b"Authorization: Bearer key\r\n"))).startswith(b"HTTP/1.1 401 ")
    assert (await harness.raw(chunked(AUTHORIZED[len(JSON) :], JSON))).startswith(b"HTTP/1.1 415 ")
    trailers = (
        b"Idempotency-Key: k\r\nX-Request-Id: from-trailer\r\nAuthorization: Bearer other\r\nExpect: 100-continue\r\n"
    )
    answer = await harness.raw(chunked(AUTHORIZED, trailers))
    assert answer.startswith(b"HTTP/1.1 202 ")
    assert b"idempotency-key-expires" not in answer
    assert b"from-trailer" not in answer


async def test_trailers_count_against_the_size_of_headers_and_are_at_most_as_many(harness: ShimHarness) -> None:
    full = AUTHORIZED + b"".join(b"X-%d: a\r\n" % i for i in range(95))
    assert (await harness.raw(chunked(full, b"X-A: a\r\n" * 100))).startswith(b"HTTP/1.1 202 ")
    assert (await harness.raw(chunked(full, b"X-A: a\r\n" * 101))).startswith(b"HTTP/1.1 431 ")
    answer = await harness.raw(chunked(AUTHORIZED, b"".join(b"X-%d: %b\r\n" % (i, b"a" * 1000) for i in range(40))))
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_size_of_a_head_does_not_include_the_request_before_it(harness: ShimHarness) -> None:
    """The packet with the end of a large body also has the begin of the next request."""
    large = json.dumps(TASK | {"label_spec": TASK["label_spec"] | {"note": "x" * 50_000}}).encode()
    first = b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (AUTHORIZED, len(large), large)
    reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
    writer.write(first + LAST[:10])
    answer = await asyncio.wait_for(reader.readuntil(b"}"), 10)
    writer.write(LAST[10:])
    answer += await asyncio.wait_for(reader.read(), 10)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"202", b"200"]
    writer.close()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "incomplete", [b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"Content-Length: 9\r\n\r\n{", b"", b"X"]
)
async def test_complete_requests_are_answered_if_the_next_one_never_is(
    harness: ShimHarness, count: int, incomplete: bytes
) -> None:
    """They may have been accepted. The next one breaks a rule, or ends with the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
    writer.write((PLAIN + WITH_LENGTH) * count + PLAIN + incomplete)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"202"] * count
    assert answer.count(b"connection: close") == 1
    writer.close()


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0, HTTP/1.1"])
@pytest.mark.parametrize("body", [WITH_LENGTH, WITH_CHUNKS])
async def test_upgrade_is_ignored_and_the_connection_stays_open(
    harness: ShimHarness, protocol: bytes, body: bytes
) -> None:
    """Java's HttpClient and `curl --http2` ask for h2c by default. They continue with HTTP/1.1."""
    upgrade = PLAIN + H2C.replace(b"h2c", protocol) + body
    answer = await harness.raw(upgrade + upgrade + LAST)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"202", b"202", b"200"]


async def test_body_of_request_with_upgrade_may_arrive_in_parts(harness: ShimHarness) -> None:
    request = PLAIN + H2C + WITH_LENGTH + LAST
    reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
    for index in range(len(request)):
        writer.write(request[index : index + 1])
        await asyncio.sleep(0)
    answer = await asyncio.wait_for(reader.read(), 10)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"202", b"200"]
    writer.close()


async def test_many_upgrades_in_one_packet_are_answered(harness: ShimHarness) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    answer = await harness.raw(request * 2000 + LAST)
    assert answer.count(b"HTTP/1.1 200") == 2001


async def test_expect_100_continue_works_with_upgrade(harness: ShimHarness) -> None:
    answer = await harness.raw(PLAIN + H2C + b"Expect: 100-continue\r\n" + WITH_LENGTH + LAST)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"100", b"202", b"200"]


@pytest.mark.parametrize("length", [b"", b"Content-Length: 2\r\n"])
async def test_connect_is_refused(harness: ShimHarness, length: bytes) -> None:
    answer = await harness.raw(b"CONNECT a.example:443 HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n{}" + LAST)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"400"]
    assert b"CONNECT" in answer
