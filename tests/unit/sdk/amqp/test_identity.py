"""The ids that the SDK computes are those of the service."""

from typing import Any

from asg_gateway.amqp._producing.identity import batch_id, item_ids, task_id
from hypothesis import given
from hypothesis import strategies as st

from ingest.domain.identity import SubmissionKind, keyed_id
from ingest.domain.submissions import batch_submission
from tests.unit.sdk.bulk.gateway import task

CUSTOMERS = st.from_regex(r"\A[A-Za-z0-9_-]{1,64}\Z")
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=255)
PRINTABLE = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=255)


@given(CUSTOMERS, KEYS)
def test_ids_are_those_of_the_service(cust_id: str, key: str) -> None:
    assert task_id(cust_id, key) == keyed_id(SubmissionKind.TASK, cust_id, key)
    assert batch_id(cust_id, key) == keyed_id(SubmissionKind.BATCH, cust_id, key)


@given(CUSTOMERS, PRINTABLE, st.lists(st.none() | PRINTABLE, min_size=1, max_size=40))
def test_ids_of_items_are_those_of_the_service(cust_id: str, key: str, own_keys: list[str | None]) -> None:
    tasks: list[dict[str, Any]] = [task("a") | ({"idempotency_key": own} if own else {}) for own in own_keys]
    submission = batch_submission({"tasks": tasks}, cust_id, None, key)
    assert item_ids(cust_id, batch_id(cust_id, key), tasks) == tuple(item.task_id for item in submission.tasks)


def test_last_item_of_the_largest_batch_has_an_id() -> None:
    tasks = [task("a")] * 1000
    submission = batch_submission({"tasks": tasks}, "acme", None, "k")
    assert item_ids("acme", batch_id("acme", "k"), tasks)[-1] == submission.tasks[-1].task_id
