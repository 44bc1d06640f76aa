"""What the wire brings: bodies without end, clients that go, pipelines, and how answers are written."""

import asyncio
import json
from collections.abc import AsyncIterator

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.shim.http.body import BodyMemoryBudget
from ingest.store.sqlite import SqliteStore
from tests.support.shim_harness import ShimHarness
from tests.support.tasks import TASK


async def test_too_large_without_a_content_length(harness: ShimHarness) -> None:
    """Refused while it streams in."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(9 * 16):
            yield b" " * 65_536

    answer = await harness.client.post("/v1/tasks", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert (await harness.client.get("/healthz")).status_code == 200


async def test_a_client_that_goes_away_half_way(harness: ShimHarness) -> None:
    """Its half request does no harm."""
    head = b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key\r\nContent-Type: application/json\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", harness.port)
    writer.write(head + b'Content-Length: 100\r\n\r\n{"type"')
    await writer.drain()
    writer.close()
    assert (await harness.client.post("/v1/tasks", json=TASK)).status_code == 202


async def test_expect_continue_and_pipelining(harness: ShimHarness) -> None:
    """As HTTP/1.1 has them."""
    body = json.dumps(TASK | {"idempotency_key": "p"}).encode()
    head = b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key\r\nContent-Type: application/json\r\n"
    one = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    expect = head + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    answers = await harness.raw(one + one + expect)
    assert answers.count(b"HTTP/1.1 202") == 1
    assert answers.count(b"HTTP/1.1 200") == 2
    assert b"HTTP/1.1 100" in answers


async def test_an_answer_is_one_write(harness: ShimHarness) -> None:
    """Head and body arrive together, whatever kind of answer it is; a HEAD's head does not wait for a body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    for request, end in (
        (head + b"\r\n", b'{"status":"ok"}'),
        (b"HEAD /docs HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n\r\n"),
        (b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", b"}"),
    ):
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(1 << 20), 5)
        assert answer.startswith(b"HTTP/1.1 ")
        assert answer.endswith(end)
    writer.close()


async def test_bodies_have_bounded_room(parts: tuple[SqliteStore, EmbeddedBroker]) -> None:
    """What does not fit beside the bodies under way is 503 with Retry-After, and its room is free again afterwards."""
    store, broker = parts
    memory = BodyMemoryBudget(limit=1000)
    publisher = await broker.publisher()
    harness = ShimHarness(store, broker, publisher, memory)
    async with harness:
        padded = TASK | {"label_spec": TASK["label_spec"] | {"note": "x" * 2000}}
        for _ in range(3):
            answer = await harness.client.post("/v1/tasks", json=padded)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json() == {"error": "server is at capacity, retry later"}
            assert (await harness.client.post("/v1/tasks", json=TASK)).status_code == 202
        assert memory.reserved == 0
