"""The shim over a real socket, on SQLite and the embedded queue: every answer of the contract."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.domain import topology
from ingest.domain.customers import Customer
from ingest.domain.identity import SubmissionKind, fresh_id, item_id
from ingest.domain.ledger import Change, Entry, Phase
from ingest.domain.messages import PublishOutcome
from ingest.store.sqlite import SqliteStore
from tests.support.embedded_queue import depth
from tests.support.fakes import ScriptedPublisher
from tests.support.shim_harness import HOOK, ShimHarness
from tests.support.tasks import TASK


async def test_a_task_and_its_replay(harness: ShimHarness) -> None:
    """202, then 200 with the original's time; no other keys than the contract's; facts in headers."""
    first = await harness.client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})
    assert first.status_code == 202
    assert list(first.json()) == ["task_id", "status", "created_at"]
    assert first.json()["status"] == "pending"
    assert "GMT" in first.headers["Idempotency-Key-Expires"]
    assert "Idempotent-Replayed" not in first.headers
    again = await harness.client.post("/v1/tasks", json=TASK, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()) == (200, first.json() | {"idempotent": True})
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotency-Payload-Mismatch" not in again.headers
    other = await harness.client.post("/v1/tasks", json=TASK | {"type": "moderation", "idempotency_key": "k"})
    assert (other.status_code, other.json()) == (200, again.json())
    assert other.headers["Idempotency-Payload-Mismatch"] == "true"
    assert await depth(harness.broker, topology.INGEST_TASKS) == 1


async def test_without_a_key_each_post_is_a_task(harness: ShimHarness) -> None:
    """No key, nothing to replay, nothing that expires."""
    answers = [await harness.client.post("/v1/tasks", json=TASK) for _ in range(2)]
    assert len({answer.json()["task_id"] for answer in answers}) == 2
    assert "Idempotency-Key-Expires" not in answers[0].headers


async def test_a_batch_and_its_replay(harness: ShimHarness) -> None:
    """The contract's body; task_ids where preferred; taken whole."""
    body = {"tasks": [TASK, TASK | {"idempotency_key": "own"}], "callback_url": HOOK, "idempotency_key": "b"}
    first = await harness.client.post("/v1/tasks/batch", json=body)
    assert first.status_code == 202
    assert list(first.json()) == ["batch_id", "task_count", "status"]
    prefer = {"Prefer": "return=representation"}
    again = await harness.client.post("/v1/tasks/batch", json=body, headers=prefer)
    assert again.status_code == 200
    assert again.headers["Preference-Applied"] == "return=representation"
    ids = again.json()["task_ids"]
    assert again.json() == first.json() | {"idempotent": True, "task_ids": ids}
    single = await harness.client.post("/v1/tasks", json=TASK | {"callback_url": HOOK, "idempotency_key": "own"})
    assert (single.status_code, single.json()["task_id"]) == (200, ids[1])
    found = await harness.client.get(f"/v1/tasks/batch/{first.json()['batch_id']}")
    assert found.json()["task_ids"] == ids
    for task_id in ids:
        item = (await harness.client.get(f"/v1/tasks/{task_id}")).json()
        assert item == {"task_id": task_id, "status": "pending", "created_at": found.json()["created_at"]}


async def test_what_is_no_item_of_a_batch_is_not_found(harness: ShimHarness) -> None:
    """Beyond its end, in the place of an item with a key, before it has landed, of somebody else: 404."""
    body = {"tasks": [TASK, TASK | {"idempotency_key": "own"}], "idempotency_key": "b"}
    batch_id = (await harness.client.post("/v1/tasks/batch", json=body)).json()["batch_id"]
    statuses = [(await harness.client.get(f"/v1/tasks/{item_id(batch_id, i)}")).status_code for i in (0, 1, 2, 1023)]
    assert statuses == [200, 404, 404, 404]
    assert (await harness.client.get(f"/v1/tasks/{item_id(fresh_id(SubmissionKind.BATCH), 0)}")).status_code == 404
    assert (await harness.client.get(f"/v1/tasks/batch/{item_id(batch_id, 0)}")).status_code == 404
    await harness.add_customer(Customer(cust_id="d"), "d-key")
    async with harness.client_of("d-key") as client:
        assert (await client.get(f"/v1/tasks/{item_id(batch_id, 0)}")).status_code == 404
    (head,) = await harness.store.read([batch_id])
    assert head is not None
    unlanded = msgspec.structs.replace(head, id=fresh_id(SubmissionKind.BATCH))
    await harness.store.claim([msgspec.structs.replace(unlanded, phase=Phase.CLAIMED)])
    assert (await harness.client.get(f"/v1/tasks/{item_id(unlanded.id, 0)}")).status_code == 404


async def test_one_bad_item_and_nothing_happens(harness: ShimHarness) -> None:
    """400, nothing enqueued, nothing charged, no key burnt."""
    body = {"tasks": [TASK | {"idempotency_key": "x"}, TASK | {"data_url": "http://a.example"}]}
    answer = await harness.client.post("/v1/tasks/batch", json=body)
    assert (answer.status_code, answer.json()) == (400, {"error": "tasks[1].data_url must be an https URL"})
    assert await depth(harness.broker, topology.INGEST_BATCHES) == 0
    assert (await harness.client.post("/v1/tasks", json=TASK | {"idempotency_key": "x"})).status_code == 202


async def test_quota(harness: ShimHarness) -> None:
    """403 with the contract's body; a replay is still 200."""
    await harness.add_customer(Customer(cust_id="poor", monthly_quota=1), "poor-key")
    async with harness.client_of("poor-key") as client:
        assert (await client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})).status_code == 202
        refused = await client.post("/v1/tasks", json=TASK)
        assert (refused.status_code, refused.json()) == (403, {"error": "quota exhausted"})
        assert (await client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})).status_code == 200


async def test_headers_in_several_lines_are_one_list(harness: ShimHarness) -> None:
    """As RFC 9110 has it, section 5.3: neither of two lines is lost."""
    parent = f"00-{'1' * 32}-{'2' * 16}-01"
    lines = [("traceparent", parent), ("tracestate", "a=1"), ("tracestate", "b=2")]
    lines += [("Prefer", "return=representation"), ("Prefer", "wait=1")]
    answer = await harness.client.post("/v1/tasks/batch", json={"tasks": [TASK]}, headers=lines)
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (202, "return=representation")
    consumer = await harness.broker.consumer(topology.INGEST_BATCHES, 1)
    (delivery,) = await consumer.receive()
    assert delivery.headers == {"traceparent": parent, "tracestate": "a=1, b=2"}


class SlowToNote(SqliteStore):
    """Changes of entries take their time."""

    async def apply(self, changes: Sequence[Change]) -> list[Entry | None]:
        await asyncio.sleep(0.3)
        return await super().apply(changes)


async def test_a_lookup_finds_what_was_answered(tmp_path: Path) -> None:
    """From the moment the 2xx was sent, however long the ledger takes to be told; and a repeat is a replay at once."""
    store = await SlowToNote.open(tmp_path / "store.db")
    broker = await EmbeddedBroker.open(tmp_path / "queue.db")
    async with ShimHarness(store, broker, await broker.publisher()) as harness:
        posted = await harness.client.post("/v1/tasks", json={**TASK, "idempotency_key": "k"})
        found = await harness.client.get(f"/v1/tasks/{posted.json()['task_id']}")
        repeated = await harness.client.post("/v1/tasks", json={**TASK, "idempotency_key": "k"})
    assert (posted.status_code, found.status_code, repeated.status_code) == (202, 200, 200)
    await broker.close()
    await store.close()


async def test_strict_customers_get_422(harness: ShimHarness) -> None:
    """Another body under a used key."""
    await harness.add_customer(Customer(cust_id="strict", strict=True), "strict-key")
    async with harness.client_of("strict-key") as client:
        assert (await client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})).status_code == 202
        other = await client.post("/v1/tasks", json=TASK | {"type": "moderation", "idempotency_key": "k"})
        assert other.status_code == 422
        assert (await client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})).status_code == 200


async def test_tenants_stay_apart(harness: ShimHarness) -> None:
    """The same key of another customer is another task, and lookups do not cross."""
    await harness.add_customer(Customer(cust_id="d"), "d-key")
    mine = await harness.client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})
    async with harness.client_of("d-key") as client:
        theirs = await client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})
        assert theirs.status_code == 202
        assert theirs.json()["task_id"] != mine.json()["task_id"]
        assert (await client.get(f"/v1/tasks/{mine.json()['task_id']}")).status_code == 404
    found = await harness.client.get(f"/v1/tasks/{mine.json()['task_id']}")
    assert found.json() == mine.json()


@pytest.mark.parametrize(
    ("content", "headers", "status", "error"),
    [
        (b"{", {}, 400, "body is not JSON"),
        (b"\xff", {}, 400, "body is not UTF-8"),
        (b"", {}, 400, "body is empty"),
        (b"[]", {}, 400, "body must be"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "Content-Type must be application/json"),
        (b"{}", {"Content-Type": "application/json; charset=latin-1"}, 415, "Content-Type must be application/json"),
        (b"{}", {"Content-Encoding": "gzip"}, 415, "Content-Type must be application/json"),
        (b"{}", {"Authorization": "Bearer wrong"}, 401, "the API key is unknown or revoked"),
        (b"{}", {"Authorization": "Basic a2V5"}, 401, "Authorization: Bearer <api_key> is required"),
        (b"{}", {"Authorization": "Bearer"}, 401, "Authorization: Bearer <api_key> is required"),
        (b" " * (8 * 1024 * 1024 + 1), {}, 413, "body is too large"),
        (json.dumps(TASK | {"idempotency_key": "a"}).encode(), {"Idempotency-Key": "b"}, 400, "idempotency_key and"),
        (json.dumps(TASK).encode(), {"Idempotency-Key": "x" * 256}, 400, "Idempotency-Key must be 1 to 255"),
    ],
)
async def test_refusals(harness: ShimHarness, content: bytes, headers: dict[str, str], status: int, error: str) -> None:
    """Status, a sentence that says what to change, and the request's id."""
    given = {"Content-Type": "application/json", "X-Request-Id": "r-1"} | headers
    answer = await harness.client.post("/v1/tasks", content=content, headers=given)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(error)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Request-Id"] == "r-1"
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nowhere", 404, None),
        ("GET", "/v1/tasks", 405, "POST"),
        ("PUT", "/v1/tasks/batch", 405, "POST"),
        ("POST", "/healthz", 405, "GET, HEAD"),
        ("GET", "/v1/tasks/tsk_nonsense", 404, None),
        ("GET", "/v1/tasks/batch/%00%ff", 404, None),
    ],
)
async def test_wrong_paths_and_methods(
    harness: ShimHarness, method: str, path: str, status: int, allow: str | None
) -> None:
    """JSON too, with `Allow`."""
    answer = await harness.client.request(method, path)
    allowed = answer.headers.get("Allow")
    assert answer.status_code == status
    assert (allowed and sorted(allowed.split(", "))) == (allow and sorted(allow.split(", ")))
    assert answer.json()["error"]
    assert answer.headers["X-Request-Id"]


async def test_two_hundred_at_once_with_one_key(harness: ShimHarness) -> None:
    """One 202, the rest 200, one id, one time, one message."""
    answers = await asyncio.gather(
        *[harness.client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"}) for _ in range(200)]
    )
    assert Counter(answer.status_code for answer in answers) == {202: 1, 200: 199}
    assert len({(answer.json()["task_id"], answer.json()["created_at"]) for answer in answers}) == 1
    assert await depth(harness.broker, topology.INGEST_TASKS) == 1


@pytest.mark.parametrize(
    ("outcome", "charged"),
    [
        (PublishOutcome.UNSENT, 0),
        (PublishOutcome.UNROUTABLE, 0),
        (PublishOutcome.NACKED, 1),
        (PublishOutcome.UNKNOWN, 1),
    ],
)
async def test_without_a_confirm_there_is_no_2xx(
    parts: tuple[SqliteStore, EmbeddedBroker], outcome: PublishOutcome, charged: int
) -> None:
    """503 with Retry-After; a retry gets through at once and is charged once in all."""
    import time

    store, broker = parts
    publisher = ScriptedPublisher(outcome)
    month = time.strftime("%Y-%m", time.gmtime())
    async with ShimHarness(store, broker, publisher) as harness:
        refused = await harness.client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert await store.used("c", month) == charged
        assert (await harness.client.get("/readyz")).status_code == 503
        task_id = json.loads(publisher.sent[0].body)["submission"]["id"]
        assert (await harness.client.get(f"/v1/tasks/{task_id}")).status_code == 404
        publisher.outcome = PublishOutcome.CONFIRMED
        again = await harness.client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})
        assert again.status_code == 202
        assert await store.used("c", month) == 1
        assert (await harness.client.get(f"/v1/tasks/{task_id}")).status_code == 200


async def test_a_store_that_is_away_is_503(harness: ShimHarness) -> None:
    """Not ready, no submissions, no lookups; the process itself is healthy."""
    await harness.client.post("/v1/tasks", json=TASK)
    await harness.store.close()
    for method, path in (
        ("POST", "/v1/tasks"),
        ("GET", "/v1/tasks/tsk_00000000000000000000000000"),
        ("GET", "/readyz"),
    ):
        answer = await harness.client.request(method, path, json=TASK if method == "POST" else None)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert (await harness.client.get("/healthz")).json() == {"status": "ok"}


async def test_documents(harness: ShimHarness) -> None:
    """The OpenAPI document, and a page whose assets come from here."""
    document = (await harness.client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.")
    page = await harness.client.get("/docs")
    assert "https://" not in page.text
    for asset in ("swagger-ui.css", "swagger-ui-bundle.js"):
        assert f"/docs/assets/{asset}" in page.text
        assert (await harness.client.get(f"/docs/assets/{asset}")).status_code == 200
