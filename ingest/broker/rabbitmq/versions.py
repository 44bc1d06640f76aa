"""What differs between RabbitMQ 3.10 and 4.x, in one place.

========================== =========================== ============================ ================================
what                       3.10 to 3.13                4.0 to 4.2                   4.3 and later
========================== =========================== ============================ ================================
counts as failed delivery  every return: reject, nack, as before                    `basic.reject` only, and neither
                           a lost channel or consumer                               a nack nor a lost channel
delivery limit, no policy  none                        20                           20
what a delivery tells      `x-delivery-count`          also `x-acquired-count`      also `x-acquired-count`
largest message            128 MiB                     16 MiB                       16 MiB
global QoS                 not on quorum queues        not on quorum queues         an error
========================== =========================== ============================ ================================

What follows from it here:

- Failures are rejected, never nacked, so they count everywhere. Whoever gives back what did not fail cannot avoid that
  it counts up to 4.2; so nothing is given back more than once an outage (`worker.outage`), and the limit is 20.
- From 4.3 on a submission that kills its consumers would come again for ever. So `attempts` counts what was acquired,
  and the worker refuses what is beyond the limit by itself (`Reason.DELIVERY_LIMIT`); up to 4.2 the queue was quicker.
- Dead letters are kept below the smallest limit of a message (`domain.dead_letters`).
- A channel to which a full queue (reject-publish) has nacked goes on to nack, seen on 3.10.8, where the limit is
  lifted instead of the queue emptied. So a publisher that is nacked for long opens another (`rabbitmq_publisher`).
- QoS is per consumer; another prefetch takes another consumer. Classic mirrored queues, gone in 4.0, are never used.

https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling, https://www.rabbitmq.com/docs/4.3/nack
"""

from collections.abc import Mapping
from typing import Any


def attempts(headers: Mapping[str, Any]) -> int:
    """How often a message was delivered before and came back."""
    counts = [headers.get(name) for name in ("x-delivery-count", "x-acquired-count")]
    return max([count for count in counts if isinstance(count, int)], default=0)
