"""How often a submission was redriven, and when it died first, is kept from one dead letter to the next."""

from typing import Any

import pytest

from ingest.domain.dead_letters import DeadLetter, dead_letter, read, resubmission, rewritten, submit_again
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.messages import Delivery, Message
from ingest.domain.redrives import NONE, Redrives, redrives_of
from ingest.domain.trimming import trimmed_letter
from tests.support.deliveries import delivery, in_dead_queue

SERVICE = frozenset({"ingest"})
FIRST, SECOND = "2026-04-09T12:00:00Z", "2026-04-10T12:00:00Z"
FIRST_SECONDS = 1_775_736_000.0
IMPOSSIBLE = ("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-00:01")
"""Times that a producer may send, and that cannot be written in UTC."""


def delivered(message: Message, user_id: str = "ingest") -> Delivery:
    return delivery(
        body=message.body,
        routing_key=message.routing_key,
        message_id=message.message_id,
        headers=message.headers,
        user_id=user_id,
    )


def rejected(submission: Delivery, now: str) -> DeadLetter:
    return read(in_dead_queue(dead_letter(submission, InvalidSubmission(Reason.INVALID, "why"), now)), SERVICE)


def test_first_death_and_number_of_redrives_are_kept() -> None:
    first = rejected(delivery(), FIRST)
    assert first.redrives == NONE
    second = rejected(delivered(resubmission(first)), SECOND)
    assert (second.redrives, second.id) == (Redrives(1, FIRST_SECONDS), first.id)
    third = rejected(delivered(resubmission(second)), SECOND)
    assert third.redrives == Redrives(2, FIRST_SECONDS)


def test_redriven_submission_that_the_broker_dead_letters_keeps_them() -> None:
    again = delivered(resubmission(rejected(delivery(), FIRST)))
    assert read(again, SERVICE).redrives == Redrives(1, FIRST_SECONDS)
    assert submit_again(again, again.headers, redrives_of(again.headers)).headers == again.headers


def test_trimmed_and_rewritten_dead_letters_keep_them() -> None:
    dead = rejected(delivered(resubmission(rejected(delivery(), FIRST))), SECOND)
    for message in (trimmed_letter(dead, SECOND), rewritten(dead)):
        assert read(in_dead_queue(message), SERVICE).redrives == Redrives(1, FIRST_SECONDS)


def test_producer_cannot_claim_that_its_submission_was_redriven() -> None:
    forged = delivered(resubmission(rejected(delivery(), FIRST)), user_id="acme")
    assert read(forged, SERVICE).redrives == NONE
    assert rejected(forged, SECOND).redrives == NONE


def test_forged_time_of_the_first_death_is_not_passed_on() -> None:
    """RabbitMQ 3 does not check the header x-death, so the time of this death is unknown."""
    headers = {"x-death": [], "x-ingest-redrives": "7", "x-ingest-first-died-at": FIRST}
    dead = read(delivery(headers=headers), SERVICE)
    assert resubmission(dead).headers == {"x-ingest-redrives": "1"}
    assert submit_again(delivery(headers=headers), headers).headers == {}


def test_time_of_the_first_death_may_be_unknown() -> None:
    submission = read(delivery(routing_key="task.submitted.acme", headers={"x-death": []}), SERVICE)
    assert resubmission(submission).headers == {"x-ingest-redrives": "1"}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, NONE),
        ({"x-ingest-first-died-at": FIRST}, NONE),
        ({"x-ingest-redrives": 3}, NONE),
        ({"x-ingest-redrives": "0"}, NONE),
        ({"x-ingest-redrives": "9" * 5000}, NONE),
        ({"x-ingest-redrives": "٣"}, NONE),
        ({"x-ingest-redrives": "3"}, Redrives(3)),
        ({"x-ingest-redrives": "3", "x-ingest-first-died-at": "yesterday"}, Redrives(3)),
        ({"x-ingest-redrives": "3", "x-ingest-first-died-at": 7}, Redrives(3)),
        *[({"x-ingest-redrives": "3", "x-ingest-first-died-at": time}, Redrives(3)) for time in IMPOSSIBLE],
        ({"x-ingest-redrives": "3", "x-ingest-first-died-at": FIRST}, Redrives(3, FIRST_SECONDS)),
    ],
)
def test_invalid_headers_do_not_count(headers: dict[str, Any], expected: Redrives) -> None:
    assert redrives_of(headers) == expected
    submission = delivery(headers=headers)
    dead_letter(submission, InvalidSubmission(Reason.INVALID, "why"), FIRST)
    submit_again(submission, headers, redrives_of(headers))
