"""A delivery that cannot be accepted, and why. `ingest.worker.plan` publishes it as a dead letter."""

import msgspec

from ingest.domain.customers import is_cust_id
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.messages import Delivery


class Rejection(msgspec.Struct, frozen=True, eq=False):
    """A delivery and the error.

    `cust_id` is empty if the routing key does not name a customer, `key` is None if the body was not read.
    """

    delivery: Delivery
    error: InvalidSubmission
    cust_id: str
    key: str | None = None


def producer_of(rejection: Rejection) -> str:
    """Return the producer that receives the report about a rejection; empty if it is unknown.

    It is the customer in the routing key, unless another user sent the submission: then that user receives it, so that
    it cannot fill the feedback queue of the customer.
    """
    user = rejection.delivery.user_id
    if rejection.error.reason in (Reason.USER_MISMATCH, Reason.BAD_ROUTING_KEY) and user and is_cust_id(user):
        return user
    return rejection.cust_id


def rejection(delivery: Delivery, error: InvalidSubmission, cust_id: str) -> Rejection:
    """Make a rejection of an error that was caught.

    The error's traceback is removed, because its frames refer to all deliveries of the micro-batch and to the error
    itself. Such a cycle keeps bodies of up to 8 MiB in memory until a full garbage collection, which is rare.
    """
    error.__traceback__ = error.__context__ = None
    return Rejection(delivery, error, cust_id)
