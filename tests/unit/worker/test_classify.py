"""The delivery classifier: which deliveries it rejects, and that a rejection does not keep their bodies in memory."""

import gc
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ingest.domain import bundles
from ingest.domain.customers import Customer
from ingest.domain.errors import Reason
from ingest.parsing.parser import SubmissionParser
from ingest.store.sqlite import SqliteStore
from ingest.worker.classify import UNTRUSTED_FOR, DeliveryClassifier
from tests.support.deliveries import delivery, direct_delivery
from tests.support.fakes import Clock


@pytest.mark.parametrize(
    ("content", "properties", "message"),
    [
        (b"{", {}, "body is not JSON"),
        (b"\xff", {}, "body is not UTF-8"),
        (b"[" * 3000, {}, "body is nested too deeply: at most 64 levels"),
        (b'{"type": 1}', {}, "type must be one of"),
        (b"{}", {"message_id": None}, "property message_id"),
        (b"{}", {"message_id": "\0"}, "message_id must be"),
        (b"{}", {"content_type": "text/plain"}, "property content_type"),
        (b"{}", {"priority": 5}, "property priority must be at most 4, it is 5"),
        (b"{}", {"content_encoding": "gzip"}, "property content_encoding"),
        (b"{}", {"routing_key": "task.submitted."}, "the routing key"),
        (b"{}", {"type": "ingest.admitted.v1"}, "type ingest.admitted.v1"),
        (b"{}", {"type": "ingest.admitted.v1", "user_id": "shim"}, "body is not an admitted submission"),
    ],
)
async def test_body_of_rejected_delivery_is_freed_without_the_garbage_collector(
    tmp_path: Path, content: bytes, properties: dict[str, str | None], message: str
) -> None:
    """The error of a rejection does not refer to the deliveries of its micro-batch."""
    store = await SqliteStore.open(tmp_path / "store.db")
    await store.save_customer(Customer(cust_id="c"))
    classifier = DeliveryClassifier(store, frozenset({"shim"}), SubmissionParser())
    body = bytes(bytearray(content + b" " * 1000))
    valid: dict[str, Any] = {"body": body, "routing_key": "task.submitted.c", "user_id": None}
    gc.disable()
    try:
        before = sys.getrefcount(body)
        for _ in range(2):
            (rejection,) = (await classifier.classify([delivery(**(valid | properties))])).rejected
            assert rejection.error.message.startswith(message), rejection.error.message
            del rejection
        assert sys.getrefcount(body) == before
    finally:
        gc.enable()
        await store.close()


async def test_admitted_submission_of_an_unknown_service_user_is_kept_and_a_forged_one_rejected(
    tmp_path: Path,
) -> None:
    """The shim's clients were answered 202. A direct producer can only use its own name."""
    store = await SqliteStore.open(tmp_path / "store.db")
    kept = delivery(type="ingest.admitted.v1", routing_key="task.submitted.c", user_id="shim-2")
    forged = delivery(type="ingest.admitted.v1", routing_key="task.submitted.c", user_id="c")
    clock = Clock(1000.0)
    classifier = DeliveryClassifier(store, frozenset({"shim"}), SubmissionParser(), clock)
    with capture_logs() as logs:
        classified = await classifier.classify([kept, kept, forged])
    assert classified.untrusted == [kept, kept]
    assert classifier.untrusted_users == ["shim-2"]
    clock.now += UNTRUSTED_FOR
    assert classifier.untrusted_users == [], "its submissions are attempted more often than that"
    assert [rejection.error.reason for rejection in classified.rejected] == [Reason.FORGED_ADMISSION]
    assert [(log["event"], log["user"]) for log in logs] == [("untrusted_service_user", "shim-2")]
    await store.close()


async def test_bundle_that_cannot_be_unpacked_waits_or_is_rejected(tmp_path: Path) -> None:
    """A worker that does not trust the shim must not reject what its clients were answered 202 for."""
    store = await SqliteStore.open(tmp_path / "store.db")
    bundle = partial(delivery, type=bundles.TYPE, routing_key="http.0.bundle", message_id="bundle:tsk_1")
    kept = bundle(user_id="shim-2")
    forged = delivery(type=bundles.TYPE, routing_key="task.submitted.c", user_id="c")
    classifier = DeliveryClassifier(store, frozenset({"shim"}), SubmissionParser())
    classified = await classifier.classify([kept, forged, bundle(user_id="shim"), bundle(user_id=None)])
    assert classified.untrusted == [kept]
    reasons = [rejection.error.reason for rejection in classified.rejected]
    assert reasons == [Reason.FORGED_ADMISSION, Reason.MALFORMED, Reason.FORGED_ADMISSION]
    assert [rejection.cust_id for rejection in classified.rejected] == ["c", "", ""]
    await store.close()


@pytest.mark.parametrize(("priority", "accepted"), [(None, True), (0, True), (4, True), (5, False), (255, False)])
async def test_priority_above_the_normal_one_is_rejected(tmp_path: Path, priority: int | None, accepted: bool) -> None:
    """RabbitMQ 4 delivers it before the messages of other customers. The default of aio-pika is 0."""
    store = await SqliteStore.open(tmp_path / "store.db")
    await store.save_customer(Customer(cust_id="c"))
    classifier = DeliveryClassifier(store, frozenset(), SubmissionParser())
    classified = await classifier.classify([direct_delivery("m", priority=priority)])
    assert [request.origin for _, request in classified.direct] == ["m"] * accepted
    reasons = [rejection.error.reason for rejection in classified.rejected]
    assert reasons == [Reason.BAD_PROPERTY] * (not accepted)
    await store.close()


async def test_direct_submission_needs_no_content_type_and_no_user_id(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "store.db")
    await store.save_customer(Customer(cust_id="c"))
    direct = direct_delivery("m", content_type=None, user_id=None)
    classified = await DeliveryClassifier(store, frozenset({"shim"}), SubmissionParser()).classify([direct])
    assert [request.origin for _, request in classified.direct] == ["m"]
    assert classified.rejected == []
    await store.close()


@pytest.mark.parametrize(("user_id", "accepted"), [("acme", False), (None, False), ("shim", True)])
async def test_direct_submission_to_a_queue_of_the_shim_must_come_from_the_service(
    tmp_path: Path, user_id: str | None, accepted: bool
) -> None:
    """A producer with loose permissions cannot get ahead of others. A redriven dead letter keeps its routing key."""
    store = await SqliteStore.open(tmp_path / "store.db")
    await store.save_customer(Customer(cust_id="acme"))
    classifier = DeliveryClassifier(store, frozenset({"shim"}), SubmissionParser())
    key = "http.0.task.submitted.acme"
    classified = await classifier.classify([direct_delivery("m", cust_id="acme", routing_key=key, user_id=user_id)])
    await store.close()
    assert len(classified.direct) == accepted
    assert [rejection.error.reason for rejection in classified.rejected] == [Reason.BAD_ROUTING_KEY] * (not accepted)
