"""A delivery that cannot be accepted, and why. `domain.dead_letters` says what becomes of it."""

import msgspec

from ingest.domain.errors import InvalidSubmission
from ingest.domain.messages import Delivery


class Refusal(msgspec.Struct, frozen=True, eq=False):
    """A delivery and why it is refused; `cust_id` as far as the routing key told it."""

    delivery: Delivery
    error: InvalidSubmission
    cust_id: str


def refusal(delivery: Delivery, error: InvalidSubmission, cust_id: str) -> Refusal:
    """Of an error that was caught.

    Without its frames: they hold all that was delivered together, the refusals among it, and so the error itself. Such
    a cycle, with bodies of 8 MiB in it, stays until the garbage collector looks at everything, which is rare.
    """
    error.__traceback__ = error.__context__ = None
    return Refusal(delivery, error, cust_id)
