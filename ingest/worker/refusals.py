"""A delivery that cannot be accepted, and why. `domain.dead_letters` says what becomes of it."""

import msgspec

from ingest.domain.errors import InvalidSubmission
from ingest.domain.messages import Delivery


class Refusal(msgspec.Struct, frozen=True, eq=False):
    """A delivery and why it is refused; `cust_id` as far as the routing key told it."""

    delivery: Delivery
    error: InvalidSubmission
    cust_id: str
