"""What the intake leaves behind."""

import gc
import sys
from pathlib import Path

import msgspec
import pytest

from ingest.domain.customers import Customer
from ingest.domain.messages import JSON, Delivery
from ingest.domain.topology import INGEST_TASKS
from ingest.store.sqlite import SqliteStore
from ingest.worker.classify import DeliveryClassifier


@pytest.mark.parametrize(
    ("content", "properties", "why"),
    [
        (b"{", {}, "body is not JSON"),
        (b"\xff", {}, "body is not UTF-8"),
        (b"[" * 3000, {}, "body is nested too deeply"),
        (b'{"type": 1}', {}, "type must be one of"),
        (b"{}", {"message_id": None}, "property message_id"),
        (b"{}", {"message_id": "\0"}, "message_id must be"),
        (b"{}", {"content_type": "text/plain"}, "property content_type"),
        (b"{}", {"routing_key": "task.submitted."}, "the routing key"),
        (b"{}", {"type": "ingest.admitted.v1"}, "type ingest.admitted.v1"),
        (b"{}", {"type": "ingest.admitted.v1", "user_id": "shim"}, "body is no admitted submission"),
    ],
)
async def test_a_refused_body_goes_with_its_refusal(
    tmp_path: Path, content: bytes, properties: dict[str, str | None], why: str
) -> None:
    """Nothing waits for the garbage collector: a refusal's error does not hold the deliveries that came with it."""
    store = await SqliteStore.open(tmp_path / "store.db")
    await store.save_customer(Customer(cust_id="c"))
    intake = DeliveryClassifier(store, frozenset({"shim"}))
    body = bytes(bytearray(content + b" " * 1000))
    plain = Delivery(
        body=body,
        queue=INGEST_TASKS,
        routing_key="task.submitted.c",
        message_id="m",
        content_type=JSON,
        user_id=None,
        type=None,
        headers={},
        redelivered=False,
        deliveries=0,
        token=None,
    )
    gc.disable()
    try:
        before = sys.getrefcount(body)
        for _ in range(2):
            delivery = msgspec.structs.replace(plain, **properties)
            (refused,) = (await intake.classify([delivery])).rejected
            assert refused.error.message.startswith(why), refused.error.message
            del delivery, refused
        assert sys.getrefcount(body) == before
    finally:
        gc.enable()
        await store.close()
