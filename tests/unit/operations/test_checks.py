"""Checks of `ingest doctor` that compare broker and store."""

from ingest.domain.findings import Severity
from ingest.domain.topology import producer_queues
from ingest.operations.checks import producer_findings

ACME, BETA = ([queue.name for queue in producer_queues(cust_id)] for cust_id in ("acme", "beta"))


def test_producers_with_their_queues_are_fine() -> None:
    assert producer_findings(set(), []) == []
    (finding,) = producer_findings({"acme", "beta"}, [*ACME, *BETA])
    assert (finding.severity, finding.what) == (Severity.OK, "2 producers with queues of their own")


def test_missing_queue_and_queue_that_no_worker_consumes_are_errors() -> None:
    """The latter if the store has lost its record of producers: workers leave the queues then."""
    missing, unknown = producer_findings({"acme"}, [ACME[0], ACME[2], *BETA])
    assert {missing.severity, unknown.severity} == {Severity.ERROR}
    assert missing.what.startswith("the queues of acme are missing")
    assert missing.do == "run `ingest producer add acme`"
    assert unknown.what.startswith(f"no worker consumes {BETA[1]}, {BETA[0]}: ")


def test_producer_of_an_earlier_version_has_no_feedback_queue() -> None:
    (finding,) = producer_findings({"acme"}, ACME[:2])
    assert finding.severity is Severity.WARNING
    assert (
        finding.what == "queue feedback.acme is missing: acme gets no reports about rejected and duplicate submissions"
    )
    assert finding.do == "run `ingest producer add acme`"
