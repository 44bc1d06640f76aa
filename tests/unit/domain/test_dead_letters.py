"""Dead letters: how they are written and read, and which of them can be redriven."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.domain import admitted, topology
from ingest.domain.dead_letters import UNKNOWN, dead_letter, read, redrive_blocker, resubmission
from ingest.domain.errors import FieldError, InvalidSubmission, Reason
from ingest.domain.messages import MAX_MESSAGE, Delivery
from ingest.domain.submissions import MAX_BODY
from tests.support.deliveries import delivery, in_dead_queue

SERVICE = frozenset({"ingest"})
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NOW = "2026-04-09T12:00:00Z"
NOW_SECONDS = 1_775_736_000.0
optional_text = st.none() | st.text(max_size=50)


def rejected(reason: Reason, **changes: Any) -> Delivery:
    """Return the dead letter of a rejected delivery, as it is in ingest.dead."""
    return in_dead_queue(dead_letter(delivery(**changes), InvalidSubmission(reason, "why"), NOW))


@given(
    st.binary(max_size=200),
    optional_text,
    optional_text,
    optional_text,
    st.none() | st.integers(0, 2**64 - 1),
    st.sampled_from(Reason),
)
def test_rejected_submission_is_read_back_unchanged(
    body: bytes,
    message_id: str | None,
    content_type: str | None,
    message_type: str | None,
    timestamp: int | None,
    reason: Reason,
) -> None:
    """Property: the dead letter contains the submission byte for byte, with reason, details and time."""
    submission = delivery(
        body=body, message_id=message_id, content_type=content_type, type=message_type, timestamp=timestamp
    )
    error = InvalidSubmission(reason, "why", (FieldError("f", "f is wrong"),))
    dead = read(in_dead_queue(dead_letter(submission, error, NOW)), SERVICE)
    assert (dead.reason, dead.error, dead.errors) == (reason, "why", ({"field": "f", "error": "f is wrong"},))
    assert (dead.cust_id, dead.died_at) == ("acme", NOW_SECONDS)
    assert dead.origin is not None
    for name in ("body", "queue", "routing_key", "message_id", "content_type", "type", "user_id", "timestamp"):
        assert getattr(dead.origin, name) == getattr(submission, name)
    assert resubmission(dead).timestamp == timestamp


def test_dead_letter_of_an_earlier_version_has_no_timestamp() -> None:
    """It may still be in the queue after an upgrade."""
    message = dead_letter(delivery(timestamp=5), InvalidSubmission(Reason.INVALID, "why"), NOW)
    envelope = msgspec.json.decode(message.body)
    del envelope["submission"]["timestamp"]
    dead = read(in_dead_queue(msgspec.structs.replace(message, body=msgspec.json.encode(envelope))), SERVICE)
    assert (dead.reason, resubmission(dead).timestamp) == ("invalid", None)


@given(st.binary(max_size=100), st.text(max_size=30), st.sampled_from(["rejected.x", "task.submitted.a", "else"]))
def test_any_message_in_the_dead_queue_can_be_read(body: bytes, user: str, routing_key: str) -> None:
    """Property: reading never fails, even if the service's user sent a broken envelope."""
    for user_id in (user, "ingest", None):
        dead = read(delivery(body=body, routing_key=routing_key, user_id=user_id), SERVICE)
        assert dead.id == "m1"
        assert (dead.origin is None) == (routing_key != "task.submitted.a")


@pytest.mark.parametrize("time", [datetime.fromtimestamp(NOW_SECONDS, UTC), int(NOW_SECONDS)])
def test_submission_dead_lettered_by_the_broker_has_reason_and_time_of_its_latest_death(time: object) -> None:
    """RabbitMQ gives the time as a datetime, the embedded queue as a number."""
    deaths = [
        {"queue": "ingest.batches", "reason": "delivery_limit", "time": time},
        {"queue": "x", "reason": "rejected"},
    ]
    headers = {"x-death": deaths, "x-first-death-reason": "rejected", "traceparent": PARENT}
    dead = read(
        delivery(routing_key="batch.submitted.acme", headers=headers, timestamp=5, deaths_checked=True), SERVICE
    )
    assert (dead.reason, dead.died_at, dead.cust_id) == ("delivery_limit", NOW_SECONDS, "acme")
    assert dead.origin is not None
    assert dead.origin.queue == "ingest.batches"
    redriven = resubmission(dead)
    assert redriven.exchange == topology.SUBMISSIONS
    assert (redriven.routing_key, redriven.message_id) == ("batch.submitted.acme", "m1")
    history = {"x-ingest-redrives": "1", "x-ingest-first-died-at": "2026-04-09T12:00:00Z"}
    assert (redriven.headers, redriven.timestamp) == ({"traceparent": PARENT} | history, 5)


@pytest.mark.parametrize(
    ("user_id", "deaths_checked", "died_at"),
    [
        ("acme", False, None),
        (None, False, None),
        ("acme", True, NOW_SECONDS),
        ("ingest", False, NOW_SECONDS),
    ],
)
@pytest.mark.parametrize("routing_key", ["task.submitted.acme", "anything"])
def test_time_of_death_that_a_producer_may_have_forged_is_unknown(
    user_id: str | None, deaths_checked: bool, died_at: float | None, routing_key: str
) -> None:
    headers = {"x-death": [{"queue": "ingest.tasks", "reason": "expired", "time": NOW_SECONDS}]}
    forged = delivery(routing_key=routing_key, headers=headers, user_id=user_id, deaths_checked=deaths_checked)
    assert read(forged, SERVICE).died_at == died_at


def test_redriven_submission_of_the_service_stays_admitted() -> None:
    """The shim answered it with 2xx, so it must still be accepted."""
    dead = read(delivery(type=admitted.TYPE, user_id="ingest", message_id="tsk_1"), SERVICE)
    assert redrive_blocker(dead, SERVICE) is None
    assert (resubmission(dead).type, resubmission(dead).message_id) == (admitted.TYPE, "tsk_1")


def test_submission_of_a_service_user_can_be_redriven_once_the_user_is_trusted() -> None:
    dead = read(rejected(Reason.FORGED_ADMISSION, type=admitted.TYPE, user_id="shim-2"), SERVICE)
    assert redrive_blocker(dead, SERVICE) is not None
    assert redrive_blocker(dead, SERVICE | {"shim-2"}) is None


@pytest.mark.parametrize(
    ("letter", "blocker"),
    [
        (rejected(Reason.USER_MISMATCH, user_id="mallory"), "another user than customer acme"),
        (rejected(Reason.INVALID, user_id="mallory"), "user mallory sent it in the name of customer acme"),
        (delivery(user_id="mallory"), "user mallory sent it in the name of customer acme"),
        (rejected(Reason.FORGED_ADMISSION, type=admitted.TYPE), "another user than customer acme"),
        (delivery(type=admitted.TYPE), "claims to be admitted"),
        (delivery(type=admitted.TYPE, user_id=None), "claims to be admitted"),
        (delivery(routing_key="rejected.invalid", user_id="mallory"), "contains no submission"),
        (rejected(Reason.INVALID, message_id="\\xff" * 80), "longer than AMQP allows"),
        (delivery(body=bytes(MAX_MESSAGE + 1)), "more than 16,777,216 bytes"),
    ],
)
def test_dead_letter_that_must_not_be_redriven_is_blocked(letter: Delivery, blocker: str) -> None:
    """The service's user may submit for any customer, so it must not redrive what another user sent in that name."""
    sentence = redrive_blocker(read(letter, SERVICE), SERVICE)
    assert sentence is not None
    assert blocker in sentence


def test_envelope_forged_by_a_producer_is_read_as_its_own_submission() -> None:
    """A producer can only use its own routing key, so its headers and body cannot name another customer."""
    forged = dead_letter(delivery(routing_key="task.submitted.victim"), InvalidSubmission(Reason.INVALID, ""), NOW)
    dead = read(delivery(body=forged.body, headers=forged.headers, user_id="acme"), SERVICE)
    assert dead.cust_id == "acme"
    assert resubmission(dead).routing_key == "task.submitted.acme"
    assert read(in_dead_queue(forged, user_id="acme"), SERVICE).reason == UNKNOWN


def test_dead_letter_without_message_id_is_identified_by_its_content() -> None:
    first, other = (read(delivery(message_id=None, body=body), SERVICE).id for body in (b"1", b"2"))
    assert first.startswith("none:")
    assert first != other
    assert first == read(delivery(message_id=None, body=b"1"), SERVICE).id


@pytest.mark.parametrize("body", [b"\0" * 8 * 1024 * 1024, b"\xff" * 12 * 1024 * 1024, b"x" * (16 * 1024 * 1024 - 1)])
def test_dead_letter_is_within_the_message_limit_of_rabbitmq(body: bytes) -> None:
    """If the body as JSON would exceed 16 MiB, the dead letter has it unchanged, and it is read back."""
    errors = tuple([FieldError("f" * 500, "g" * 500) for _ in range(100)])
    message = dead_letter(delivery(body=body), InvalidSubmission(Reason.TOO_LARGE, "too large", errors), NOW)
    assert len(message.body) <= 16 * 1024 * 1024
    assert sum(len(str(value)) for value in message.headers.values()) < 100_000
    dead = read(in_dead_queue(message), SERVICE)
    assert (dead.reason, dead.error, dead.cust_id) == ("too_large", "too large", "acme")
    assert resubmission(dead).body == body


def test_dead_letter_of_a_body_that_the_publisher_refuses_has_its_beginning() -> None:
    """RabbitMQ 3 takes 128 MiB by default. The rejection could never be published, and would be retried forever."""
    body = bytes(MAX_MESSAGE) + b"x"
    message = dead_letter(delivery(body=body), InvalidSubmission(Reason.TOO_LARGE, "too large"), NOW)
    assert message.body == bytes(MAX_MESSAGE)
    assert len(message.body) > MAX_BODY, "redriven, it would no longer be too large"
    dead = read(in_dead_queue(message), SERVICE)
    assert (dead.reason, dead.cust_id) == ("too_large", "acme")
    assert redrive_blocker(dead, SERVICE) is None


@pytest.mark.parametrize("routing_key", ["http.0.task.submitted.acme", "heavy.bulk.batch.submitted.acme"])
def test_dead_letter_of_a_queue_of_the_shim_is_redriven_to_it(routing_key: str) -> None:
    """Whether a worker or the broker has put it there."""
    from_worker = rejected(Reason.INVALID, routing_key=routing_key, user_id="ingest")
    from_broker = in_dead_queue(resubmission(read(from_worker, SERVICE)))
    for letter in (from_worker, from_broker):
        dead = read(letter, SERVICE)
        assert (dead.cust_id, redrive_blocker(dead, SERVICE)) == ("acme", None)
        assert resubmission(dead).routing_key == routing_key
