"""Producers and consumers on RabbitMQ. Needs `pip install asg-gateway[amqp]`.

- ``_connection``  the address of RabbitMQ, and its errors as those of the SDK.
- ``_coalescing``  a connection that writes many messages together.
- ``_identity``    computes the ids of tasks and batches.
- ``_keys``        idempotency keys as AMQP carries them.
- ``_sizes``       the size of a task as the service counts it.
- ``_urls``        the service's rule for URLs.
- ``_messages``    makes messages of tasks and batches.
- ``_room``        bounds what is in flight.
- ``_channels``    publishes one message, and says what became of it.
- ``_link``        replaces lost connections and channels.
- ``_publisher``   publishes messages until they are confirmed.
- ``_many``        submits the tasks of an iterable.
- ``_producer``    `Producer`.
- ``_sync``        `SyncProducer`, the same for code without an event loop.
- ``testing``      what takes the place of RabbitMQ in your tests.
"""

from asg_gateway._errors import (
    ASGGatewayError,
    BrokerRefusedError,
    BrokerUnavailableError,
    InvalidTaskError,
    TransportError,
)
from asg_gateway.amqp._messages import SubmittedBatch, SubmittedTask
from asg_gateway.amqp._producer import Producer
from asg_gateway.amqp._sync import SyncProducer

__all__ = [
    "ASGGatewayError",
    "BrokerRefusedError",
    "BrokerUnavailableError",
    "InvalidTaskError",
    "Producer",
    "SubmittedBatch",
    "SubmittedTask",
    "SyncProducer",
    "TransportError",
]
