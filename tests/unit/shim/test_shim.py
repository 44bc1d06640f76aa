"""The HTTP API of the shim over a real socket, on SQLite and the embedded queue."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx
import msgspec
import pytest

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.domain import topology
from ingest.domain.customers import Customer
from ingest.domain.identity import SubmissionKind, fresh_id, item_id, keyed_id
from ingest.domain.ledger import Change, Entry, Phase
from ingest.domain.messages import PublishOutcome
from ingest.store.sqlite import SqliteStore
from tests.support.embedded_queue import depth
from tests.support.fakes import ScriptedPublisher
from tests.support.partial_store import PartialStore
from tests.support.shim_harness import HOOK, ShimHarness
from tests.support.tasks import TASK


def current_month() -> str:
    return time.strftime("%Y-%m", time.gmtime())


async def test_task_is_answered_202_and_its_replay_200(harness: ShimHarness) -> None:
    """The body has only the keys of the contract. Headers say when the key expires, and what a replay is."""
    first = await harness.client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})
    assert first.status_code == 202
    assert list(first.json()) == ["task_id", "status", "created_at"]
    assert first.json()["status"] == "pending"
    assert "GMT" in first.headers["Idempotency-Key-Expires"]
    assert "Idempotent-Replayed" not in first.headers
    replay = await harness.client.post("/v1/tasks", json=TASK, headers={"Idempotency-Key": "k"})
    assert (replay.status_code, replay.json()) == (200, first.json() | {"idempotent": True})
    assert replay.headers["Idempotent-Replayed"] == "true"
    assert "Idempotency-Payload-Mismatch" not in replay.headers
    mismatch = await harness.client.post("/v1/tasks", json=TASK | {"type": "moderation", "idempotency_key": "k"})
    assert (mismatch.status_code, mismatch.json()) == (200, replay.json())
    assert mismatch.headers["Idempotency-Payload-Mismatch"] == "true"
    assert await depth(harness.broker, *topology.DEFAULT.http_queues) == 1


async def test_each_unkeyed_post_creates_a_task(harness: ShimHarness) -> None:
    answers = [await harness.client.post("/v1/tasks", json=TASK) for _ in range(2)]
    assert len({answer.json()["task_id"] for answer in answers}) == 2
    assert "Idempotency-Key-Expires" not in answers[0].headers


async def test_batch_answer_counts_the_tasks_that_are_replays_if_asked(harness: ShimHarness) -> None:
    """The others are new and charged. A task with the key of an earlier one in the batch is not a new one."""
    await harness.client.post("/v1/tasks", json=TASK | {"idempotency_key": "before"})
    tasks = [TASK, *[TASK | {"idempotency_key": key} for key in ("before", "new", "new", "before")]]
    prefer = {"Prefer": "return=representation"}
    answer = await harness.client.post("/v1/tasks/batch", json={"tasks": tasks}, headers=prefer)
    assert (answer.status_code, answer.json()["replayed"]) == (202, 3)
    answer = await harness.client.post("/v1/tasks/batch", json={"tasks": [TASK]}, headers=prefer)
    assert (answer.status_code, answer.json()["replayed"]) == (202, 0)


async def test_batch_is_answered_202_and_its_replay_200(harness: ShimHarness) -> None:
    """`Prefer: return=representation` adds the task ids. Each of them is a task that a lookup returns."""
    body = {"tasks": [TASK, TASK | {"idempotency_key": "own"}], "callback_url": HOOK, "idempotency_key": "b"}
    first = await harness.client.post("/v1/tasks/batch", json=body)
    assert first.status_code == 202
    assert list(first.json()) == ["batch_id", "task_count", "status"]
    prefer = {"Prefer": "return=representation"}
    replay = await harness.client.post("/v1/tasks/batch", json=body, headers=prefer)
    assert replay.status_code == 200
    assert replay.headers["Preference-Applied"] == "return=representation"
    ids = replay.json()["task_ids"]
    assert len(ids) == 2
    assert replay.json() == first.json() | {"idempotent": True, "task_ids": ids, "replayed": 2}
    single = await harness.client.post("/v1/tasks", json=TASK | {"callback_url": HOOK, "idempotency_key": "own"})
    assert (single.status_code, single.json()["task_id"]) == (200, ids[1])
    lookup = await harness.client.get(f"/v1/tasks/batch/{first.json()['batch_id']}")
    assert lookup.json()["task_ids"] == ids
    for task_id in ids:
        item = (await harness.client.get(f"/v1/tasks/{task_id}")).json()
        assert item == {"task_id": task_id, "status": "pending", "created_at": lookup.json()["created_at"]}


async def test_id_that_is_not_an_item_of_a_durable_batch_is_not_found(harness: ShimHarness) -> None:
    """The index is that of a keyed item or too large, the batch is unknown, of another customer or not durable yet."""
    body = {"tasks": [TASK, TASK | {"idempotency_key": "own"}], "idempotency_key": "b"}
    batch_id = (await harness.client.post("/v1/tasks/batch", json=body)).json()["batch_id"]
    statuses = [(await harness.client.get(f"/v1/tasks/{item_id(batch_id, i)}")).status_code for i in (0, 1, 2, 1023)]
    assert statuses == [200, 404, 404, 404]
    assert (await harness.client.get(f"/v1/tasks/{item_id(fresh_id(SubmissionKind.BATCH), 0)}")).status_code == 404
    assert (await harness.client.get(f"/v1/tasks/batch/{item_id(batch_id, 0)}")).status_code == 404
    await harness.add_customer(Customer(cust_id="d"), "d-key")
    async with harness.client_of("d-key") as client:
        assert (await client.get(f"/v1/tasks/{item_id(batch_id, 0)}")).status_code == 404
    (entry,) = await harness.store.read([batch_id])
    assert entry
    claimed = msgspec.structs.replace(entry, id=fresh_id(SubmissionKind.BATCH), phase=Phase.CLAIMED)
    await harness.store.claim([claimed])
    assert (await harness.client.get(f"/v1/tasks/{item_id(claimed.id, 0)}")).status_code == 404


async def test_batch_with_one_invalid_item_is_refused_whole(harness: ShimHarness) -> None:
    """Nothing is published, nothing is charged, and the keys of the valid items stay free."""
    body = {"tasks": [TASK | {"idempotency_key": "x"}, TASK | {"data_url": "http://a.example"}]}
    answer = await harness.client.post("/v1/tasks/batch", json=body)
    assert (answer.status_code, answer.json()) == (400, {"error": "tasks[1].data_url must be an https URL"})
    assert await depth(harness.broker, *topology.DEFAULT.http_queues) == 0
    assert await harness.store.used("c", current_month()) == 0
    assert (await harness.client.post("/v1/tasks", json=TASK | {"idempotency_key": "x"})).status_code == 202


async def test_exhausted_quota_is_answered_403_but_replay_200(harness: ShimHarness) -> None:
    await harness.add_customer(Customer(cust_id="poor", monthly_quota=1), "poor-key")
    async with harness.client_of("poor-key") as client:
        assert (await client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})).status_code == 202
        refused = await client.post("/v1/tasks", json=TASK)
        assert (refused.status_code, refused.json()) == (403, {"error": "quota exhausted"})
        assert (await client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})).status_code == 200


async def test_repeated_header_lines_are_joined(harness: ShimHarness) -> None:
    """RFC 9110, section 5.3: two lines of one header are one list."""
    parent = f"00-{'1' * 32}-{'2' * 16}-01"
    lines = [("traceparent", parent), ("tracestate", "a=1"), ("tracestate", "b=2")]
    lines += [("Prefer", "return=representation"), ("Prefer", "wait=1")]
    answer = await harness.client.post("/v1/tasks/batch", json={"tasks": [TASK]}, headers=lines)
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (202, "return=representation")
    consumer = await harness.broker.consumer(topology.DEFAULT.http_queues[0], 1)
    (delivery,) = await consumer.receive()
    assert delivery.headers == {"traceparent": parent, "tracestate": "a=1, b=2"}


async def test_299_of_300_posts_are_answered_202_if_the_record_of_one_cannot_be_decided(
    parts: tuple[SqliteStore, EmbeddedBroker],
) -> None:
    """The other one is answered 503. Once its record can be written, it is admitted."""
    store, broker = PartialStore(parts[0]), parts[1]
    store.undecided = {keyed_id(SubmissionKind.TASK, "c", "k150")}
    async with ShimHarness(store, broker, await broker.publisher()) as harness:

        async def post(number: int) -> httpx.Response:
            return await harness.client.post("/v1/tasks", json=TASK | {"idempotency_key": f"k{number}"})

        answers = await asyncio.gather(*[post(number) for number in range(300)])
        assert [number for number, answer in enumerate(answers) if answer.status_code != 202] == [150]
        assert (answers[150].status_code, answers[150].headers["Retry-After"]) == (503, "1")
        lookup = await harness.client.get(f"/v1/tasks/{keyed_id(SubmissionKind.TASK, 'c', 'k150')}")
        assert lookup.status_code == 503
        store.undecided = set()
        assert (await post(150)).status_code == 202
    assert await depth(broker, *topology.DEFAULT.http_queues) == 300
    assert await store.used("c", current_month()) == 300


class SlowApplyStore(SqliteStore):
    """A store that needs 0.3 s for changes of entries."""

    async def apply(self, changes: Sequence[Change]) -> list[Entry | None]:
        await asyncio.sleep(0.3)
        return await super().apply(changes)


async def test_lookup_and_replay_work_as_soon_as_202_is_sent(tmp_path: Path) -> None:
    """The answer waits for a slow ledger."""
    store = await SlowApplyStore.open(tmp_path / "store.db")
    broker = await EmbeddedBroker.open(tmp_path / "queue.db")
    async with ShimHarness(store, broker, await broker.publisher()) as harness:
        posted = await harness.client.post("/v1/tasks", json={**TASK, "idempotency_key": "k"})
        lookup = await harness.client.get(f"/v1/tasks/{posted.json()['task_id']}")
        repeated = await harness.client.post("/v1/tasks", json={**TASK, "idempotency_key": "k"})
    assert (posted.status_code, lookup.status_code, repeated.status_code) == (202, 200, 200)
    await broker.close()
    await store.close()


async def test_mismatch_of_strict_customer_is_answered_422(harness: ShimHarness) -> None:
    await harness.add_customer(Customer(cust_id="strict", strict=True), "strict-key")
    async with harness.client_of("strict-key") as client:
        assert (await client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})).status_code == 202
        mismatch = await client.post("/v1/tasks", json=TASK | {"type": "moderation", "idempotency_key": "k"})
        assert mismatch.status_code == 422
        assert (await client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})).status_code == 200


async def test_customers_share_neither_keys_nor_lookups(harness: ShimHarness) -> None:
    await harness.add_customer(Customer(cust_id="d"), "d-key")
    mine = await harness.client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})
    async with harness.client_of("d-key") as client:
        theirs = await client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})
        assert theirs.status_code == 202
        assert theirs.json()["task_id"] != mine.json()["task_id"]
        assert (await client.get(f"/v1/tasks/{mine.json()['task_id']}")).status_code == 404
    lookup = await harness.client.get(f"/v1/tasks/{mine.json()['task_id']}")
    assert lookup.json() == mine.json()


@pytest.mark.parametrize(
    ("content", "headers", "status", "error"),
    [
        (b"{", {}, 400, "body is not JSON"),
        (b"\xff", {}, 400, "body is not UTF-8"),
        (b"", {}, 400, "body is empty"),
        (b"[]", {}, 400, "body must be"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "Content-Type must be application/json"),
        (b"{}", {"Content-Type": "application/json; charset=latin-1"}, 415, "Content-Type must be application/json"),
        (b"{}", {"Content-Encoding": "gzip"}, 415, "Content-Encoding must be left out, it is gzip"),
        (b"{}", {"Authorization": "Bearer wrong"}, 401, "the API key is unknown or revoked"),
        (b"{}", {"Authorization": "Basic a2V5"}, 401, "Authorization: Bearer <api_key> is required"),
        (b"{}", {"Authorization": "Bearer"}, 401, "Authorization: Bearer <api_key> is required"),
        (b" " * (8 * 1024 * 1024 + 1), {}, 413, "body is too large"),
        (json.dumps(TASK | {"idempotency_key": "a"}).encode(), {"Idempotency-Key": "b"}, 400, "idempotency_key and"),
        (json.dumps(TASK).encode(), {"Idempotency-Key": "x" * 256}, 400, "Idempotency-Key must be 1 to 255"),
    ],
)
async def test_invalid_request_is_answered_with_status_error_and_request_id(
    harness: ShimHarness, content: bytes, headers: dict[str, str], status: int, error: str
) -> None:
    all_headers = {"Content-Type": "application/json", "X-Request-Id": "r-1"} | headers
    answer = await harness.client.post("/v1/tasks", content=content, headers=all_headers)
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
async def test_unknown_path_is_answered_404_and_wrong_method_405(
    harness: ShimHarness, method: str, path: str, status: int, allow: str | None
) -> None:
    """The answer is JSON. A 405 has the header `Allow`."""
    answer = await harness.client.request(method, path)
    allowed = answer.headers.get("Allow")
    assert answer.status_code == status
    assert (allowed and sorted(allowed.split(", "))) == (allow and sorted(allow.split(", ")))
    assert answer.json()["error"]
    assert answer.headers["X-Request-Id"]


async def test_concurrent_posts_with_one_key_publish_one_task(harness: ShimHarness) -> None:
    answers = await asyncio.gather(
        *[harness.client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"}) for _ in range(200)]
    )
    assert Counter(answer.status_code for answer in answers) == {202: 1, 200: 199}
    assert len({(answer.json()["task_id"], answer.json()["created_at"]) for answer in answers}) == 1
    assert await depth(harness.broker, *topology.DEFAULT.http_queues) == 1


@pytest.mark.parametrize(
    ("outcome", "charged"),
    [
        (PublishOutcome.UNSENT, 0),
        (PublishOutcome.UNROUTABLE, 0),
        (PublishOutcome.TOO_LARGE, 0),
        (PublishOutcome.NACKED, 1),
        (PublishOutcome.UNKNOWN, 1),
    ],
)
async def test_unconfirmed_publish_is_answered_503_and_retry_202(
    parts: tuple[SqliteStore, EmbeddedBroker], outcome: PublishOutcome, charged: int
) -> None:
    """The retry is admitted at once. Both attempts together are charged once."""
    store, broker = parts
    publisher = ScriptedPublisher(outcome)
    async with ShimHarness(store, broker, publisher) as harness:
        refused = await harness.client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert await store.used("c", current_month()) == charged
        assert (await harness.client.get("/readyz")).status_code == 503
        task_id = json.loads(publisher.sent[0].body)["submission"]["id"]
        assert (await harness.client.get(f"/v1/tasks/{task_id}")).status_code == 404
        publisher.outcome = PublishOutcome.CONFIRMED
        retry = await harness.client.post("/v1/tasks", json=TASK | {"idempotency_key": "k"})
        assert retry.status_code == 202
        assert await store.used("c", current_month()) == 1
        assert (await harness.client.get(f"/v1/tasks/{task_id}")).status_code == 200


async def test_unavailable_store_is_answered_503_but_healthz_200(harness: ShimHarness) -> None:
    await harness.client.post("/v1/tasks", json=TASK)
    await harness.store.close()
    for method, path in (
        ("POST", "/v1/tasks"),
        ("GET", "/v1/tasks/tsk_00000000000000000000000000"),
        ("GET", "/readyz"),
    ):
        answer = await harness.client.request(method, path, json=TASK if method == "POST" else None)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    health = await harness.client.get("/healthz")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})


async def test_disabled_customer_is_answered_403_until_it_is_enabled(harness: ShimHarness) -> None:
    """Also for a replay and a look-up. The keys stay."""
    keyed = TASK | {"idempotency_key": "k"}
    accepted = (await harness.client.post("/v1/tasks", json=keyed)).json()
    await harness.store.save_customer(Customer(cust_id="c", disabled=True))
    async with asyncio.timeout(10):
        while (answer := await harness.client.post("/v1/tasks", json=keyed)).status_code != 403:
            await asyncio.sleep(0.1)
    assert answer.json() == {"error": "the customer is disabled"}
    for path in ("/v1/tasks", "/v1/tasks/batch"):
        assert (await harness.client.post(path, json={})).status_code == 403
    assert (await harness.client.get(f"/v1/tasks/{accepted['task_id']}")).status_code == 403
    await harness.store.save_customer(Customer(cust_id="c"))
    async with asyncio.timeout(10):
        while (answer := await harness.client.post("/v1/tasks", json=keyed)).status_code != 200:
            await asyncio.sleep(0.1)
    assert answer.json() == accepted | {"idempotent": True}
