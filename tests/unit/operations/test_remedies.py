"""The advice for dead letters."""

from typing import Any

import msgspec
import pytest

from ingest.domain.dead_letters import Trimmed, read
from ingest.domain.errors import Reason
from ingest.operations.dead_letters import Group, add_to
from ingest.operations.remedies import REMEDIES, remedy
from tests.support.deliveries import delivery


def expired(checked: Any = True, **fields: Any) -> Any:
    """Return a submission that expired in its queue, with further fields in RabbitMQ's record of it."""
    death = {"queue": "ingest.tasks", "reason": "expired"} | fields
    return read(delivery(headers={"x-death": [death]}, deaths_checked=checked), frozenset())


def test_every_reason_has_a_remedy() -> None:
    assert [str(reason) for reason in Reason if not REMEDIES.get(reason)] == []


def test_remedy_for_an_expired_submission_names_the_setting_that_made_it_expire() -> None:
    own, policy = expired(**{"original-expiration": "60000"}), expired()
    assert own.error == "dead-lettered by the broker: expired; its producer set the property expiration to 60000 ms"
    assert "ask the customer to leave it out" in remedy(own)
    assert policy.error == "dead-lettered by the broker: expired; a policy or the queue sets a message-ttl"
    assert "remove it from the policy" in remedy(policy)
    assert expired(checked=False).error.endswith("; its producer, a policy or the queue limits how long it may wait")


@pytest.mark.parametrize("forged", ["9" * 100, "1\n", 5, [], None])
def test_expiration_that_rabbitmq_cannot_have_written_is_ignored(forged: object) -> None:
    """RabbitMQ 3 keeps the fields of an x-death header that the producer has sent."""
    dead = expired(**{"original-expiration": forged})
    assert dead.expiration is None
    assert len(dead.error) < 100


def test_remedy_for_a_trimmed_dead_letter_is_to_ask_the_customer() -> None:
    """Whatever its reason: it cannot be redriven."""
    dead = msgspec.structs.replace(expired(), trimmed=Trimmed("2026-04-09T12:00:00Z", 5, "ab"))
    assert remedy(dead).startswith("Never redriven")


def test_group_counts_its_dead_letters_by_remedy() -> None:
    groups: dict[str, Group] = {}
    own, policy = expired(**{"original-expiration": "100"}), expired()
    add_to(groups, [own, policy, own])
    assert groups["expired"].remedies == {remedy(own): 2, remedy(policy): 1}
