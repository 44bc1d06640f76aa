"""Differences between RabbitMQ 3.10 and 4.x.

========================== =========================== ============================ ================================
version                    3.10 to 3.13                4.0 to 4.2                   4.3 and later
========================== =========================== ============================ ================================
counts as failed delivery  every return: reject, nack, as before                    `basic.reject` only, and neither
                           a lost channel or consumer                               a nack nor a lost channel
default delivery limit     none                        20                           20
headers of a delivery      `x-delivery-count`          as before                    also `x-acquired-count`
maximum message size       128 MiB                     16 MiB                       16 MiB
forged header `x-death`    its time is kept, it can    ignored                      ignored
                           crash queues
permission of header `CC`  not checked                 checked                      checked
statistic of bytes         bodies                      not known                    bodies, properties and headers
priority                   ignored                     above 4 before 0 to 4, 2:1   strict order of 0 to 31
global QoS                 not on quorum queues        not on quorum queues         an error
delivery held too long     an error on the channel     as before                    the consumer is cancelled
held by a dead node        returned at once            returned at once             returned after 60 seconds
========================== =========================== ============================ ================================

Consequences for this service:

- A failed delivery is rejected, never nacked, so that every version counts it. Up to 4.2 a delivery that is returned
  without a failure counts, too. So an outage returns a delivery at most once (`ingest.worker.outage`), and the limit is
  20.
- A producer can set the headers that its version of RabbitMQ does not set, so only `attempt_headers` are read.
- From 4.3 on a submission that kills its consumers would be redelivered without end. So `attempts` counts acquisitions,
  and the worker itself rejects what exceeds the limit (`Reason.DELIVERY_LIMIT`). Up to 4.2 the queue does it first.
- A publisher refuses messages above the smallest maximum size (`ingest.domain.messages.MAX_MESSAGE`), and dead letters
  are kept below it.
- If a full queue (reject-publish) has nacked messages of a channel and its limit is then lifted, RabbitMQ 3.10.8
  continues to nack on that channel. So a publisher that is nacked for long opens another channel
  (`ingest.broker.rabbitmq.publisher`).
- A priority above 4, the one of a message without the property, is rejected (`Reason.BAD_PROPERTY`). The message has
  overtaken others by then; only the time to reject it delays them.
- QoS is per consumer; another prefetch needs another consumer. Classic mirrored queues, removed in 4.0, are not used.

https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling, https://www.rabbitmq.com/docs/4.3/nack,
https://www.rabbitmq.com/docs/4.3/quorum-queues#priorities
"""

from collections.abc import Mapping
from typing import Any, Final

_DELIVERY_COUNT: Final = "x-delivery-count"
_ACQUIRED_COUNT: Final = "x-acquired-count"


def version_of(server_properties: Mapping[str, Any]) -> str:
    """Return the version in the properties that a server sends; empty if it sends none."""
    version = server_properties.get("version", "")
    return version.decode("utf-8", "replace") if isinstance(version, bytes) else str(version)


def parse(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version; 0 for a part that is not a number."""
    major, minor, *_ = [*version.split("."), "", ""]
    return int(major) if major.isdigit() else 0, int(minor) if minor.isdigit() else 0


def attempt_headers(version: str) -> tuple[str, ...]:
    """Return the names of the headers in which this version of RabbitMQ counts deliveries."""
    return (_DELIVERY_COUNT, _ACQUIRED_COUNT) if parse(version) >= (4, 3) else (_DELIVERY_COUNT,)


def checks_deaths(version: str) -> bool:
    """Return whether this version of RabbitMQ replaces a header `x-death` that a producer has sent.

    RabbitMQ 3 adds to it: if the producer forges an entry for the same queue and reason, its time stays.
    """
    return parse(version) >= (4, 0)


def counts_all_bytes(version: str) -> bool:
    """Return whether the statistics of a queue count the properties and headers of its messages, too."""
    return parse(version) >= (4, 3)


def attempts(headers: Mapping[str, Any]) -> int:
    """Return how often a message was delivered before and returned.

    Args:
        headers: of the headers that count deliveries, only those of `attempt_headers`.
    """
    counts = [headers.get(name) for name in (_DELIVERY_COUNT, _ACQUIRED_COUNT)]
    return max([count for count in counts if isinstance(count, int)], default=0)
