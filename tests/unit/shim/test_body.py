"""Requests and answers on the wire: oversized and incomplete bodies, pipelining, and how answers are written."""

import asyncio
import json
from collections.abc import AsyncIterator

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.shim.http.body import SMALL, BodyMemoryBudget, Reservation
from ingest.store.sqlite import SqliteStore
from tests.support.shim_harness import ShimHarness
from tests.support.tasks import TASK


async def test_oversized_body_without_content_length_is_refused(harness: ShimHarness) -> None:
    async def nine_mebibytes() -> AsyncIterator[bytes]:
        for _ in range(9 * 16):
            yield b" " * 65_536

    headers = {"Content-Type": "application/json"}
    answer = await harness.client.post("/v1/tasks", content=nine_mebibytes(), headers=headers)
    assert answer.status_code == 413
    assert (await harness.client.get("/healthz")).status_code == 200


async def test_shim_works_after_client_disconnects_during_body(harness: ShimHarness) -> None:
    head = b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key\r\nContent-Type: application/json\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", harness.port)
    writer.write(head + b'Content-Length: 100\r\n\r\n{"type"')
    await writer.drain()
    writer.close()
    assert (await harness.client.post("/v1/tasks", json=TASK)).status_code == 202


async def test_pipelined_requests_and_expect_continue_are_answered(harness: ShimHarness) -> None:
    body = json.dumps(TASK | {"idempotency_key": "p"}).encode()
    head = b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key\r\nContent-Type: application/json\r\n"
    plain = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    expect = head + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    answers = await harness.raw(plain + plain + expect)
    assert answers.count(b"HTTP/1.1 202") == 1
    assert answers.count(b"HTTP/1.1 200") == 2
    assert b"HTTP/1.1 100" in answers


async def test_answer_is_sent_in_one_write(harness: ShimHarness) -> None:
    """Head and body arrive together. The answer to HEAD has only a head, and is sent at once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
    for request, end in (
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b'{"status":"ok"}'),
        (b"HEAD /docs HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n\r\n"),
        (b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", b"}"),
    ):
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(1 << 20), 5)
        assert answer.startswith(b"HTTP/1.1 ")
        assert answer.endswith(end)
    writer.close()


async def test_body_beyond_memory_budget_is_answered_503_and_releases_its_memory(
    parts: tuple[SqliteStore, EmbeddedBroker],
) -> None:
    store, broker = parts
    memory = BodyMemoryBudget(limit=1000)
    publisher = await broker.publisher()
    async with ShimHarness(store, broker, publisher, memory) as harness:
        padded = TASK | {"label_spec": TASK["label_spec"] | {"note": "x" * 2000}}
        for _ in range(3):
            answer = await harness.client.post("/v1/tasks", json=padded)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json() == {"error": "server is at capacity, retry later"}
            assert (await harness.client.post("/v1/tasks", json=TASK)).status_code == 202
        assert memory.reserved == 0


def test_customers_with_large_bodies_leave_room_for_others() -> None:
    """The first one gets half of what is for large bodies; each further one half of the rest."""
    budget = BodyMemoryBudget(limit=64 * SMALL)
    sizes = []
    for customer in ("a", "b", "c"):
        size = 0
        while budget.reserve(customer, SMALL, small=False):
            size += SMALL
        sizes.append(size // SMALL)
    assert sizes == [28, 14, 7]


def test_small_bodies_have_memory_that_large_ones_cannot_use() -> None:
    budget = BodyMemoryBudget(limit=64 * SMALL)
    large = [Reservation(budget, f"c{number}") for number in range(100)]
    while any(reservation.grow(2 * SMALL) for reservation in large):
        pass
    assert Reservation(budget, "c0").grow(SMALL)
    for reservation in large:
        reservation.release()
        reservation.release()
    assert budget.reserved == SMALL


def test_many_small_bodies_of_one_customer_leave_room_for_others() -> None:
    budget = BodyMemoryBudget(limit=64 * SMALL)
    bodies = 0
    while Reservation(budget, "a").grow(SMALL):
        bodies += 1
    assert bodies == 32
    assert Reservation(budget, "b").grow(SMALL)
