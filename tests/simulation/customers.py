"""The customers of a simulation."""

from typing import Final

from ingest.domain.customers import Customer
from tests.simulation.bodies import WEBHOOK
from tests.simulation.machines import LEASE

FREE: Final = "free"
PAYING: Final = "paying"
STRICT: Final = "strict"
BRIEF: Final = "brief"
QUIET: Final = "quiet"
WITH_QUEUES: Final = PAYING
"""It has queues of its own as a direct producer."""
RETENTION: Final = int(2 * LEASE) + 1
"""Of `brief`, in seconds: about the least that is allowed."""


def _customer(cust_id: str, *, quota: int | None = None, strict: bool = False) -> Customer:
    return Customer(cust_id=cust_id, monthly_quota=quota, strict=strict, webhooks=frozenset({WEBHOOK}))


CUSTOMERS: Final = {
    FREE: _customer(FREE, quota=4),
    PAYING: _customer(PAYING),
    STRICT: _customer(STRICT, quota=1_000_000, strict=True),
    BRIEF: Customer(cust_id=BRIEF, retention=RETENTION, webhooks=frozenset({WEBHOOK})),
    QUIET: _customer(QUIET),
}
"""`free` has a quota of a few tasks, `paying` has none. `strict` wants conflicts refused. The keys of `brief` are
forgotten after a minute. `quiet` submits a little, without faults of its own: nothing of others may delay it."""
