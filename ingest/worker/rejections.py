"""A delivery that cannot be accepted, and why. `ingest.worker.plan` publishes it as a dead letter."""

import msgspec

from ingest.domain.errors import InvalidSubmission
from ingest.domain.messages import Delivery


class Rejection(msgspec.Struct, frozen=True, eq=False):
    """A delivery and the error; `cust_id` is empty if the routing key does not name a customer."""

    delivery: Delivery
    error: InvalidSubmission
    cust_id: str


def rejection(delivery: Delivery, error: InvalidSubmission, cust_id: str) -> Rejection:
    """Make a rejection of an error that was caught.

    The error's traceback is removed, because its frames refer to all deliveries of the micro-batch and to the error
    itself. Such a cycle keeps bodies of up to 8 MiB in memory until a full garbage collection, which is rare.
    """
    error.__traceback__ = error.__context__ = None
    return Rejection(delivery, error, cust_id)
