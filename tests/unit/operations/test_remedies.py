"""The advice for dead letters."""

from ingest.domain.errors import Reason
from ingest.operations.remedies import REMEDIES


def test_every_reason_has_a_remedy() -> None:
    assert [str(reason) for reason in Reason if not REMEDIES.get(reason)] == []
