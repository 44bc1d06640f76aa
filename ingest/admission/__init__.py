"""Admission: claim the idempotency key, then charge the quota. The shim and the worker share this package.

A claim is created first; existing entries are read only if the claim fails. A claim is a lease: if its owner crashes, a
retry is delayed by the rest of the lease. Nothing is lost, because ids are computed and every later step can be
repeated; only the charge may then count twice.

The order makes it safe: claim, charge, publish, confirm, then `queued` (shim) or `accepted` (worker). A crash between
two steps can charge twice what was in flight, but never publishes what was not charged.

A claim whose lease has ended without `queued`, `accepted` or a deletion is *in doubt*: its owner may have published the
submission. Another attempt with the same body takes it over, because a second copy is harmless. An attempt with another
body waits until a worker has accepted the first body or its charge was refunded, at the latest for `DOUBT`. If a worker
could not publish all events of a direct submission, there is no refund, and another body waits for the acceptance: the
broker delivers the message again until it is finished.

A submission that stays `queued` for `REPUBLISH_AFTER` has probably lost its message. A repeat with the same body takes
the right to publish it again, by a lease in the entry, which stays `queued`.

- ``decision``      what admission is asked, and what it answers.
- ``admission``     `Admission`: admit, then record the outcome.
- ``attempt``       one admission of a list of requests.
- ``charging``      its charges.
- ``republishing``  its replays whose messages are probably lost.
- ``calls``         its calls of the store.
- ``progress``      what it knows about one request.
- ``refunds``       takes back charges of submissions that never became tasks.
- ``pending``       changes that the store has not taken yet.
"""

from ingest.admission.admission import DEFAULT_LEASE, DOUBT, REPUBLISH_AFTER, Admission
from ingest.admission.decision import Decision, Request, Verdict

__all__ = ["DEFAULT_LEASE", "DOUBT", "REPUBLISH_AFTER", "Admission", "Decision", "Request", "Verdict"]
