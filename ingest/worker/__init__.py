"""The consumer pool: validate, admit what the shim has not, expand, emit, settle, ack.

- ``worker``    consumes and keeps cohorts of deliveries going; `Worker` is all that others need.
- ``cohort``    one attempt at a list of deliveries, from reading to ack.
- ``intake``    what a delivery is: work that the shim admitted, a direct submission, or a refusal.
- ``work``      one submission on its way out: its events and its ledger entries.
- ``tally``     what a finished cohort adds to the metrics.
- ``refusals``  dead letters and `submission.rejected` events.
"""

from ingest.worker.worker import Worker

__all__ = ["Worker"]
