"""What `ingest doctor` says about the queues of reports to producers."""

from typing import Any

import pytest

from ingest.broker.rabbitmq.management import policies
from ingest.broker.rabbitmq.topology_checks import full_feedback, policy_findings
from ingest.domain.findings import Severity
from ingest.domain.topology import MAX_FEEDBACK, MAX_FEEDBACK_BYTES

POLICY: dict[str, Any] = policies()["feedback"]["definition"]


@pytest.mark.parametrize(
    ("queue", "share"),
    [
        ({"messages": MAX_FEEDBACK * 0.95, "message_bytes": 1}, "95%"),
        ({"messages": 1, "message_bytes": MAX_FEEDBACK_BYTES * 2}, "100%"),
        ({"messages": MAX_FEEDBACK * 0.5, "message_bytes": MAX_FEEDBACK_BYTES * 0.5}, None),
        ({}, None),
    ],
)
def test_feedback_that_its_producer_does_not_read_is_a_warning(queue: dict[str, float], share: str | None) -> None:
    other = {"messages": MAX_FEEDBACK * 2, "message_bytes": MAX_FEEDBACK_BYTES * 2}
    findings = list(full_feedback({"feedback.acme": queue, "consensus.tasks": other}))
    assert [finding.what.partition(":")[0] for finding in findings] == (
        [] if share is None else [f"feedback.acme is {share} full"]
    )


def test_correct_policy_of_feedback_is_fine_although_it_drops_the_oldest_reports() -> None:
    findings = list(policy_findings({"feedback.acme": POLICY}, 4, 600))
    assert {finding.severity for finding in findings} == {Severity.OK}


def test_unbounded_feedback_is_reported() -> None:
    (warning,) = [
        finding
        for finding in policy_findings({"feedback.acme": POLICY | {"max-length": 10**9}}, 4, 600)
        if finding.severity is not Severity.OK
    ]
    assert (warning.severity, warning.what) == (
        Severity.WARNING,
        f"feedback.acme: max-length is 1000000000 instead of {MAX_FEEDBACK}",
    )
    (error,) = [
        finding for finding in policy_findings({"feedback.acme": {}}, 4, 600) if finding.severity is not Severity.OK
    ]
    assert error.what.endswith("the number of unread reports to producers is not bounded")
