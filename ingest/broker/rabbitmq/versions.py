"""Differences between RabbitMQ 3.10 and 4.x.

========================== =========================== ============================ ================================
version                    3.10 to 3.13                4.0 to 4.2                   4.3 and later
========================== =========================== ============================ ================================
counts as failed delivery  every return: reject, nack, as before                    `basic.reject` only, and neither
                           a lost channel or consumer                               a nack nor a lost channel
default delivery limit     none                        20                           20
headers of a delivery      `x-delivery-count`          also `x-acquired-count`      also `x-acquired-count`
maximum message size       128 MiB                     16 MiB                       16 MiB
global QoS                 not on quorum queues        not on quorum queues         an error
========================== =========================== ============================ ================================

Consequences for this service:

- A failed delivery is rejected, never nacked, so that every version counts it. Up to 4.2 a delivery that is returned
  without a failure counts, too. So an outage returns a delivery at most once (`ingest.worker.outage`), and the limit is
  20.
- From 4.3 on a submission that kills its consumers would be redelivered without end. So `attempts` counts acquisitions,
  and the worker itself rejects what exceeds the limit (`Reason.DELIVERY_LIMIT`). Up to 4.2 the queue does it first.
- A publisher refuses messages above the smallest maximum size (`ingest.domain.messages.MAX_MESSAGE`), and dead letters
  are kept below it.
- If a full queue (reject-publish) has nacked messages of a channel and its limit is then lifted, RabbitMQ 3.10.8
  continues to nack on that channel. So a publisher that is nacked for long opens another channel
  (`ingest.broker.rabbitmq.publisher`).
- QoS is per consumer; another prefetch needs another consumer. Classic mirrored queues, removed in 4.0, are not used.

https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling, https://www.rabbitmq.com/docs/4.3/nack
"""

from collections.abc import Mapping
from typing import Any, Final

ATTEMPT_HEADERS: Final = ("x-delivery-count", "x-acquired-count")


def attempts(headers: Mapping[str, Any]) -> int:
    """Return how often a message was delivered before and returned."""
    counts = [headers.get(name) for name in ATTEMPT_HEADERS]
    return max([count for count in counts if isinstance(count, int)], default=0)
