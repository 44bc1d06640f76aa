"""Rate limits: the answers of the shim."""

import asyncio
import re

import httpx
import msgspec
import pytest

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.domain import topology
from ingest.domain.customers import Customer
from ingest.domain.rates import RateLimit
from ingest.shim.rate_limits import RateLimiter
from ingest.store.sqlite import SqliteStore
from tests.support.embedded_queue import depth
from tests.support.fakes import Clock
from tests.support.shim_harness import ShimHarness
from tests.support.tasks import TASK


@pytest.fixture
def clock() -> Clock:
    return Clock()


def at_start_of_a_window(harness: ShimHarness, clock: Clock) -> None:
    """Let the windows of the shim end only when a test says so."""
    clock.now = 60_000.0
    harness.app._limiter = RateLimiter(harness.store, wall_clock=clock, clock=clock)


async def limited_client(harness: ShimHarness, clock: Clock, rate: RateLimit) -> httpx.AsyncClient:
    at_start_of_a_window(harness, clock)
    await harness.add_customer(Customer(cust_id="limited", rate=rate), "limited")
    return harness.client_of("limited")


async def test_answers_have_both_fields_and_the_surplus_is_refused_without_a_claim_or_charge(
    harness: ShimHarness, clock: Clock
) -> None:
    async with await limited_client(harness, clock, RateLimit(3, 60)) as client:
        for remaining in (2, 1, 0):
            answer = await client.post("/v1/tasks", json=TASK | {"idempotency_key": f"k{remaining}"})
            assert answer.status_code == 202
            assert answer.headers["RateLimit-Policy"] == '"default";q=3;w=60'
            assert answer.headers["RateLimit"] == f'"default";r={remaining};t=60'
        for path, body in (
            ("/v1/tasks", TASK | {"idempotency_key": "new"}),
            ("/v1/tasks", TASK | {"idempotency_key": "k0"}),
            ("/v1/tasks/batch", {"tasks": [TASK], "idempotency_key": "new"}),
        ):
            answer = await client.post(path, json=body)
            assert answer.status_code == 429
            assert answer.json()["error"].startswith("rate limit exceeded: at most 3 submissions per minute")
            assert answer.headers["Retry-After"] == "60"
            assert answer.headers["RateLimit"] == '"default";r=0;t=60'
        assert await depth(harness.broker, *topology.DEFAULT.http_queues) == 3
        clock.now += 60
        answer = await client.post("/v1/tasks", json=TASK | {"idempotency_key": "new"})
        assert (answer.status_code, "idempotent" in answer.json()) == (202, False)


async def test_batch_counts_as_one_and_invalid_bodies_count(harness: ShimHarness, clock: Clock) -> None:
    """Answers that are not 2xx have the fields, too."""
    async with await limited_client(harness, clock, RateLimit(4, 60)) as client:
        statuses = [(await client.post("/v1/tasks/batch", json={"tasks": [TASK] * 50})).status_code]
        for content, headers in (
            (b"{", {}),
            (b"{}", {"Content-Type": "text/plain"}),
            (b"{}", {"Content-Length": "9999999"}),
        ):
            headers = {"Content-Type": "application/json"} | headers
            if "Content-Length" in headers:
                content = b"x" * 9_999_999
            answer = await client.post("/v1/tasks", content=content, headers=headers)
            assert "RateLimit" in answer.headers
            assert "RateLimit-Policy" in answer.headers
            statuses.append(answer.status_code)
        assert statuses == [202, 400, 415, 413]
        assert (await client.post("/v1/tasks", json=TASK)).status_code == 429


async def test_limit_is_that_of_the_customer_and_not_of_a_key(harness: ShimHarness, clock: Clock) -> None:
    """Other customers are not affected, and look-ups do not count."""
    async with await limited_client(harness, clock, RateLimit(2, 60)) as client:
        await harness.add_customer(Customer(cust_id="limited", rate=RateLimit(2, 60)), "second key")
        async with harness.client_of("second key") as second:
            accepted = await client.post("/v1/tasks", json=TASK)
            answers = [await sender.post("/v1/tasks", json=TASK) for sender in (second, client, second)]
            assert [answer.status_code for answer in answers] == [202, 429, 429]
            lookup = await client.get(f"/v1/tasks/{accepted.json()['task_id']}")
            assert (lookup.status_code, "RateLimit" in lookup.headers) == (200, False)
    answer = await harness.client.post("/v1/tasks", json=TASK)
    assert (answer.status_code, "RateLimit" in answer.headers) == (202, False)


async def test_disabled_customer_is_refused_with_403_and_uses_no_permit(harness: ShimHarness, clock: Clock) -> None:
    at_start_of_a_window(harness, clock)
    await harness.add_customer(Customer(cust_id="limited", rate=RateLimit(1, 60), disabled=True), "limited")
    async with harness.client_of("limited") as client:
        for _ in range(3):
            answer = await client.post("/v1/tasks", json=TASK)
            assert (answer.status_code, "RateLimit" in answer.headers) == (403, False)


async def test_customer_without_a_limit_makes_no_call_of_the_store(
    parts: tuple[SqliteStore, EmbeddedBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, broker = parts
    monkeypatch.setattr(store, "claim_permits", None)
    async with ShimHarness(store, broker, await broker.publisher()) as harness:
        assert (await harness.client.post("/v1/tasks", json=TASK)).status_code == 202


async def test_pipelined_requests_are_answered_in_order_and_each_counts(harness: ShimHarness, clock: Clock) -> None:
    """Of refused ones the bodies are not read, but skipped."""
    await (await limited_client(harness, clock, RateLimit(2, 60))).aclose()
    body = msgspec.json.encode(TASK)
    request = (
        b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer limited\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answers = await harness.raw(request * 5 + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"202", b"202", b"429", b"429", b"429", b"200"]


async def test_refused_request_is_answered_before_its_body_arrives(harness: ShimHarness, clock: Clock) -> None:
    """A slow body holds no memory, and `Expect: 100-continue` gets 429 instead of 100."""
    async with await limited_client(harness, clock, RateLimit(1, 60)) as client:
        await client.post("/v1/tasks", json=TASK)
    reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
    writer.write(
        b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer limited\r\nContent-Type: application/json\r\n"
        b"Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n"
    )
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 429 ")
    assert harness.app._memory.reserved == 0
    writer.close()


async def test_outage_is_answered_503_and_not_429(harness: ShimHarness, clock: Clock) -> None:
    async with await limited_client(harness, clock, RateLimit(1, 60)) as client:
        assert (await client.post("/v1/tasks", json=TASK)).status_code == 202
        clock.now += 60
        await harness.store.close()
        assert [(await client.post("/v1/tasks", json=TASK)).status_code for _ in range(3)] == [503] * 3
