"""What deliveries cost, from their size and their tasks."""

import json

import pytest

from ingest.worker.cost import cost_of
from tests.support.deliveries import delivery
from tests.support.tasks import TASK

BATCH = "http.bulk.batch.submitted.acme"
NESTED = TASK | {"label_spec": {"question": "q?", "types": [{"type": "type"}] * 100_000}}


@pytest.mark.parametrize(
    ("body", "routing_key", "cost"),
    [
        (b"", "task.submitted.acme", 1),
        (json.dumps(TASK).encode(), "task.submitted.acme", 1),
        (json.dumps({"tasks": [TASK] * 100}).encode(), BATCH, 100),
        (json.dumps({"tasks": [TASK]}).encode(), "batch.submitted.acme", 1),
        (json.dumps(TASK | {"label_spec": "x" * 10_240}).encode(), "task.submitted.acme", 11),
        (json.dumps({"tasks": [TASK] * 100}).replace('"type"', '"\\u0074ype"').encode(), BATCH, 12),
        (b'"type"' * 100, "neither", 1),
    ],
)
def test_cost_is_the_number_of_tasks_or_of_kib(body: bytes, routing_key: str, cost: int) -> None:
    assert cost_of(delivery(body=body, routing_key=routing_key)) == cost


def test_names_inside_tasks_cost_no_more_than_the_largest_batch_or_the_bytes() -> None:
    body = json.dumps({"tasks": [NESTED]}).encode()
    assert cost_of(delivery(body=body, routing_key=BATCH)) == 1 + len(body) // 1024
    body = b'{"tasks":[' + b'"type",' * 10_000
    assert cost_of(delivery(body=body, routing_key=BATCH)) == 1024
