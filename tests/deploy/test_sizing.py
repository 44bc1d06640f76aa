"""The figures of deploy/sizing.md that can be measured in a moment, measured."""

import re
import uuid
from collections.abc import Callable

import aerospike as client
import pytest

from ingest.admission import Admission, Request
from ingest.domain.customers import Customer
from ingest.domain.submissions import Submission, batch_submission, task_submission
from ingest.store.aerospike.store import AerospikeStore
from tests.deploy.files import DEPLOY
from tests.e2e.contract import TASK
from tests.servers import AerospikeServer

PAGE = (DEPLOY / "sizing.md").read_text()


def single() -> Submission:
    return task_submission({**TASK, "idempotency_key": key()}, "acme", frozenset())


def batch(own_keys: bool) -> Submission:
    tasks = [{**TASK, **({"idempotency_key": key()} if own_keys else {})} for _ in range(1000)]
    return batch_submission({"tasks": tasks, "idempotency_key": key()}, "acme", frozenset())


def key() -> str:
    return f"order-{uuid.uuid4().hex[:20]}"


def stored(server: AerospikeServer) -> tuple[int, int]:
    """(records, bytes) of the ledger."""
    namespace = server.url.rpartition("/")[2]
    host, _, port = server.url.removeprefix("aerospike://").partition("/")[0].partition(":")
    connection = client.client({"hosts": [(host, int(port))]})
    shown = connection.info_random_node(f"sets/{namespace}/ledger").partition("\t")[2]
    connection.close()
    values = dict(pair.split("=", 1) for pair in shown.strip(" ;\n").split(":") if "=" in pair)
    return int(values.get("objects", 0)), int(values.get("data_used_bytes", 0))


@pytest.mark.parametrize(
    ("row", "make", "times"),
    [
        ("a single task", single, 200),
        ("a batch of 1,000 without keys of their own", lambda: batch(own_keys=False), 20),
        ("a batch of 1,000 with a key each", lambda: batch(own_keys=True), 2),
    ],
)
async def test_records_are_as_large_as_the_page_says(
    aerospike: AerospikeServer, row: str, make: Callable[[], Submission], times: int
) -> None:
    """Claimed by the shim and accepted by the worker, as Aerospike counts them; within 10 %."""
    match = re.search(rf"^\| {row} \| ([\d,]+) \| ([\d,]+) \|", PAGE, re.MULTILINE)
    assert match
    records, size = (int(each.replace(",", "")) for each in match.groups())
    store = await AerospikeStore.open(aerospike.url)
    admission = Admission(store)
    before = stored(aerospike)
    decisions = await admission.admit([Request(make(), Customer(cust_id="acme")) for _ in range(times)])
    await admission.queued(decisions)
    await admission.accepted([entry for decision in decisions for entry in decision.owned])
    after = stored(aerospike)
    await store.close()
    assert (after[0] - before[0]) / times == records
    assert (after[1] - before[1]) / times == pytest.approx(size, rel=0.1)
