"""Which queue takes what the shim admits."""

import pytest

from ingest.admission import Decision, Request, Verdict
from ingest.domain import topology
from ingest.domain.addresses import Address, parse, routing_key
from ingest.domain.customers import Customer
from ingest.domain.identity import SubmissionKind
from ingest.domain.ledger import Entry
from ingest.domain.submissions import Submission, batch_submission, task_submission
from ingest.shim.heavy import FLOOR, HeavyCustomers
from ingest.shim.traffic import BULK, TrafficRouter
from tests.support.tasks import TASK


def decision(submission: Submission, weight: float = 1.0) -> Decision:
    entry = Entry(id=submission.id, cust_id=submission.cust_id, created_at=1, fingerprint=b"", retention=60)
    return Decision(Verdict.ADMITTED, Request(submission, Customer(cust_id=submission.cust_id, weight=weight)), entry)


def task(cust_id: str = "c", padding: int = 0) -> Submission:
    body = TASK | {"label_spec": TASK["label_spec"] | {"note": "x" * padding}}
    return task_submission(body, cust_id, frozenset())


def batch(count: int, cust_id: str = "c") -> Submission:
    return batch_submission({"tasks": [TASK] * count}, cust_id, frozenset())


class Harness:
    """A router, and the queues of the topology."""

    def __init__(self) -> None:
        self._router = TrafficRouter(HeavyCustomers(clock=lambda: 0.0))

    def queues(self, *submissions: Submission, weight: float = 1.0) -> list[str]:
        """Return the queue of each submission of one micro-batch of customers with this weight."""
        routes = self._router.routes([decision(submission, weight) for submission in submissions])
        queues = []
        for submission, route in zip(submissions, routes, strict=True):
            key = routing_key(submission.kind, submission.cust_id, route)
            assert parse(key) == Address(submission.kind, submission.cust_id, route)
            (queue,) = [
                queue.name
                for queue in topology.QUEUES
                if queue.exchange == topology.SUBMISSIONS and topology.matches(queue.binding, key)
            ]
            queues.append(queue)
        return queues


@pytest.fixture
def harness() -> Harness:
    return Harness()


def test_micro_batch_of_ordinary_customers_goes_to_one_queue_and_the_next_to_another(harness: Harness) -> None:
    assert [set(harness.queues(task("a"), task("b"), batch(10))) for _ in range(3)] == [
        {"ingest.http.0"},
        {"ingest.http.1"},
        {"ingest.http.0"},
    ]


def test_submission_with_many_bytes_goes_to_a_bulk_queue(harness: Harness) -> None:
    assert harness.queues(task(padding=BULK), batch(1000), task()) == [
        "ingest.http.bulk",
        "ingest.http.bulk",
        "ingest.http.0",
    ]


def test_heavy_customer_has_queues_of_its_own(harness: Harness) -> None:
    harness.queues(*[batch(1000, "heavy")] * (FLOOR // 1000 + 1))
    assert harness.queues(task("heavy"), batch(1000, "heavy"), task("quiet"), batch(1000, "quiet")) == [
        "ingest.heavy.0",
        "ingest.heavy.bulk",
        "ingest.http.0",
        "ingest.http.bulk",
    ]


def test_large_tasks_count_by_their_bytes(harness: Harness) -> None:
    """A task of 200 KiB takes as long as 200 usual ones."""
    large = task("heavy", 200 * 1024)
    assert harness.queues(*[large] * 11)[-1] == "ingest.heavy.bulk"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "task.submitted",
        "x.task.submitted.c",
        "http.task.submitted.c",
        "http.x.task.submitted.c",
        "direct.0.task.submitted.c",
        "http.0.http.0.task.submitted.c",
        "http.0.task.accepted.c",
        "task.submitted.c\n.d",
        "task.submitted.c.d",
    ],
)
def test_other_routing_keys_are_no_addresses(key: str) -> None:
    assert parse(key) is None


def test_routing_key_without_a_route_is_that_of_a_direct_producer() -> None:
    assert parse(routing_key(SubmissionKind.BATCH, "c")) == Address(SubmissionKind.BATCH, "c")


def test_weight_of_a_customer_is_how_much_more_it_may_submit(harness: Harness) -> None:
    assert "ingest.heavy.0" not in harness.queues(*[task("c")] * (4 * FLOOR), weight=4.0)
    assert harness.queues(task("c"), weight=4.0) == ["ingest.heavy.0"]
