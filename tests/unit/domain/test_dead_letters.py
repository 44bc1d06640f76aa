"""Dead letters: written, read back, and what may be submitted again."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.domain import admitted, topology
from ingest.domain.dead_letters import UNKNOWN, dead_letter, read, redrive_blocker, resubmission
from ingest.domain.errors import FieldError, InvalidSubmission, Reason
from ingest.domain.messages import Delivery, Message
from tests.support.deliveries import delivery

SERVICE = frozenset({"ingest"})
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NOW = "2026-04-09T12:00:00Z"
NOW_SECONDS = 1_775_736_000.0
text = st.none() | st.text(max_size=50)


def arrived(message: Message, user_id: str | None = "ingest") -> Delivery:
    """A message as it is found in ingest.dead."""
    return delivery(
        body=message.body,
        queue=topology.INGEST_DEAD,
        routing_key=message.routing_key,
        message_id=message.message_id,
        user_id=user_id,
        headers=message.headers,
    )


@given(st.binary(max_size=200), text, text, text, st.sampled_from(Reason))
def test_what_was_refused_is_read_back(
    body: bytes, message_id: str | None, content_type: str | None, type_: str | None, reason: Reason
) -> None:
    """Law: the envelope gives back the submission, byte for byte, with reason, detail and time."""
    came = delivery(body=body, message_id=message_id, content_type=content_type, type=type_)
    error = InvalidSubmission(reason, "why", (FieldError("f", "f is wrong"),))
    dead = read(arrived(dead_letter(came, error, NOW)), SERVICE)
    assert (dead.reason, dead.error, dead.errors) == (reason, "why", ({"field": "f", "error": "f is wrong"},))
    assert (dead.cust_id, dead.died_at) == ("acme", NOW_SECONDS)
    assert dead.origin is not None
    for name in ("body", "queue", "routing_key", "message_id", "content_type", "type", "user_id"):
        assert getattr(dead.origin, name) == getattr(came, name)


@given(st.binary(max_size=100), st.text(max_size=30), st.sampled_from(["rejected.x", "task.submitted.a", "else"]))
def test_whatever_is_in_the_queue_can_be_read(body: bytes, user: str, routing_key: str) -> None:
    """Law: no message makes reading fail, not even an envelope of our own that is broken."""
    for user_id in (user, "ingest", None):
        dead = read(delivery(body=body, routing_key=routing_key, user_id=user_id), SERVICE)
        assert dead.id == "m1"
        assert (dead.origin is None) == (routing_key != "task.submitted.a")


@pytest.mark.parametrize("time", [datetime.fromtimestamp(NOW_SECONDS, UTC), int(NOW_SECONDS)])
def test_what_the_broker_dead_lettered_is_the_submission_itself(time: object) -> None:
    """Reason, queue and time are of the latest death; RabbitMQ has the time as a datetime, the embedded queue not."""
    deaths = [
        {"queue": "ingest.batches", "reason": "delivery_limit", "time": time},
        {"queue": "x", "reason": "rejected"},
    ]
    headers = {"x-death": deaths, "x-first-death-reason": "rejected", "traceparent": PARENT}
    dead = read(delivery(routing_key="batch.submitted.acme", headers=headers), SERVICE)
    assert (dead.reason, dead.died_at, dead.cust_id) == ("delivery_limit", NOW_SECONDS, "acme")
    again = resubmission(dead)
    assert (again.exchange, again.routing_key, again.message_id) == (topology.SUBMISSIONS, "batch.submitted.acme", "m1")
    assert again.headers == {"traceparent": PARENT}


def test_what_the_service_had_admitted_stays_admitted() -> None:
    """Its type is kept: it was answered with 2xx and is owed."""
    dead = read(delivery(type=admitted.TYPE, user_id="ingest", message_id="tsk_1"), SERVICE)
    assert redrive_blocker(dead, SERVICE) is None
    assert (resubmission(dead).type, resubmission(dead).message_id) == (admitted.TYPE, "tsk_1")


def refused(reason: Reason, **changes: Any) -> Delivery:
    return arrived(dead_letter(delivery(**changes), InvalidSubmission(reason, "why"), NOW))


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (refused(Reason.USER_MISMATCH, user_id="mallory"), "another user than customer acme"),
        (refused(Reason.INVALID, user_id="mallory"), "user mallory sent it in the name of customer acme"),
        (delivery(user_id="mallory"), "user mallory sent it in the name of customer acme"),
        (refused(Reason.FORGED_ADMISSION, type=admitted.TYPE), "another user than customer acme"),
        (delivery(type=admitted.TYPE), "claims to be admitted"),
        (delivery(type=admitted.TYPE, user_id=None), "claims to be admitted"),
        (delivery(routing_key="rejected.invalid", user_id="mallory"), "contains no submission"),
        (refused(Reason.INVALID, message_id="\\xff" * 80), "longer than AMQP allows"),
    ],
)
def test_redriving_never_lends_the_services_name(found: Delivery, why: str) -> None:
    """The service may submit for any customer, so what another user sent in a customer's name stays where it is."""
    reason = redrive_blocker(read(found, SERVICE), SERVICE)
    assert reason is not None
    assert why in reason


def test_an_envelope_of_a_producers_own_making_is_not_opened() -> None:
    """It stands under the producer's routing key, whatever headers and body say: a submission of the producer's."""
    forged = dead_letter(delivery(routing_key="task.submitted.victim"), InvalidSubmission(Reason.INVALID, ""), NOW)
    dead = read(delivery(body=forged.body, headers=forged.headers, user_id="acme"), SERVICE)
    assert dead.cust_id == "acme"
    assert resubmission(dead).routing_key == "task.submitted.acme"
    assert read(arrived(forged, user_id="acme"), SERVICE).reason == UNKNOWN


def test_without_a_message_id_there_is_still_a_name() -> None:
    """The same for the same message, another for another."""
    one, other = (read(delivery(message_id=None, body=body), SERVICE).id for body in (b"1", b"2"))
    assert one.startswith("none:")
    assert one != other
    assert one == read(delivery(message_id=None, body=b"1"), SERVICE).id


@pytest.mark.parametrize("body", [b"\0" * 8 * 1024 * 1024, b"\xff" * 12 * 1024 * 1024, b"x" * (16 * 1024 * 1024 - 1)])
def test_a_dead_letter_fits_where_its_submission_did(body: bytes) -> None:
    """Where JSON would blow it up beyond the 16 MiB of RabbitMQ 4, the body stays as it was, and is read back."""
    errors = tuple([FieldError("f" * 500, "g" * 500) for _ in range(100)])
    message = dead_letter(delivery(body=body), InvalidSubmission(Reason.TOO_LARGE, "too large", errors), NOW)
    assert len(message.body) <= 16 * 1024 * 1024
    assert sum(len(str(value)) for value in message.headers.values()) < 100_000
    dead = read(arrived(message), SERVICE)
    assert (dead.reason, dead.error, dead.cust_id) == ("too_large", "too large", "acme")
    assert resubmission(dead).body == body
