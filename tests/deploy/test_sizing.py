"""Measures the sizes of records that deploy/sizing.md states."""

import re
import uuid
from collections.abc import Callable

import aerospike as aerospike_client
import pytest

from ingest.admission import Admission, Request
from ingest.domain.customers import Customer
from ingest.domain.rates import PermitClaim
from ingest.domain.submissions import Submission, batch_submission, task_submission
from ingest.store.aerospike.store import AerospikeStore
from tests.deploy.files import DEPLOY
from tests.e2e.contract import TASK
from tests.servers import AerospikeServer

PAGE = (DEPLOY / "sizing.md").read_text()


def single_task() -> Submission:
    return task_submission({**TASK, "idempotency_key": new_key()}, "acme", frozenset())


def batch(keyed_items: bool) -> Submission:
    tasks = [{**TASK, **({"idempotency_key": new_key()} if keyed_items else {})} for _ in range(1000)]
    return batch_submission({"tasks": tasks, "idempotency_key": new_key()}, "acme", frozenset())


def new_key() -> str:
    return f"order-{uuid.uuid4().hex[:20]}"


def set_size(server: AerospikeServer, name: str) -> tuple[int, int]:
    """Return (records, bytes) of a set."""
    namespace = server.url.rpartition("/")[2]
    host, _, port = server.url.removeprefix("aerospike://").partition("/")[0].partition(":")
    client = aerospike_client.client({"hosts": [(host, int(port))]})
    info = client.info_random_node(f"sets/{namespace}/{name}").partition("\t")[2]
    client.close()
    values = dict(pair.split("=", 1) for pair in info.strip(" ;\n").split(":") if "=" in pair)
    return int(values.get("objects", 0)), int(values.get("data_used_bytes", 0))


@pytest.mark.parametrize(
    ("row", "new_submission", "submissions"),
    [
        ("a single task", single_task, 200),
        ("a batch of 1,000 without keys of their own", lambda: batch(keyed_items=False), 20),
        ("a batch of 1,000 with a key each", lambda: batch(keyed_items=True), 2),
    ],
)
async def test_accepted_submission_takes_the_stated_records_and_bytes(
    aerospike: AerospikeServer, row: str, new_submission: Callable[[], Submission], submissions: int
) -> None:
    """The bytes may differ by 5 %."""
    match = re.search(rf"^\| {row} \| ([\d,]+) \| ([\d,]+) \|", PAGE, re.MULTILINE)
    assert match
    stated_records, stated_bytes = (int(figure.replace(",", "")) for figure in match.groups())
    store = await AerospikeStore.open(aerospike.url)
    admission = Admission(store)
    records_before, bytes_before = set_size(aerospike, "ledger")
    customer = Customer(cust_id="acme")
    requests = [Request(new_submission(), customer, request_id=f"{number:016x}") for number in range(submissions)]
    decisions = await admission.admit(requests)
    await admission.queued(decisions)
    await admission.accepted([entry for decision in decisions for entry in decision.owned])
    records_after, bytes_after = set_size(aerospike, "ledger")
    await store.close()
    assert (records_after - records_before) / submissions == stated_records
    assert (bytes_after - bytes_before) / submissions == pytest.approx(stated_bytes, rel=0.05)


async def test_counter_of_a_rate_limit_takes_the_stated_bytes_and_time(aerospike: AerospikeServer) -> None:
    store = await AerospikeStore.open(aerospike.url)
    cust_id = f"acme-{uuid.uuid4().hex[:12]}"
    for number in range(100):
        await store.claim_permits([PermitClaim(cust_id, 1, 1_775_000_000 + number, 10)])
    records, size = set_size(aerospike, "rate")
    await store.close()
    times = [PermitClaim(cust_id, seconds, 1, 1).time_to_live for seconds in (1, 60)]
    stated = f"of {round(size / records)} bytes for each second ({times[0]} s long) or minute ({times[1]} s long)"
    assert stated in " ".join(PAGE.split())
