"""Producers and consumers on RabbitMQ. Needs `pip install asg-gateway[amqp]`."""

try:
    import aio_pika as _aio_pika  # noqa: F401 - only to say what is missing
except ModuleNotFoundError as error:
    raise ImportError("asg_gateway.amqp needs aio-pika: pip install asg-gateway[amqp]") from error

from asg_gateway._errors import (
    ASGGatewayError,
    BrokerRefusedError,
    BrokerUnavailableError,
    InvalidEventError,
    InvalidTaskError,
    TransportError,
)
from asg_gateway.amqp._consuming.consumer import Consumer
from asg_gateway.amqp._consuming.feedback import Feedback
from asg_gateway.amqp._consuming.rules import ConsumerStats, Park, PoisonError
from asg_gateway.amqp._decoding import decode
from asg_gateway.amqp._dedupe.sql import SqlDedupe
from asg_gateway.amqp._dedupe.sqlalchemy import SqlAlchemyDedupe
from asg_gateway.amqp._dedupe.strategy import Dedupe, DedupeUnavailableError, MemoryDedupe
from asg_gateway.amqp._events import (
    BatchAccepted,
    Event,
    SubmissionDuplicate,
    SubmissionRejected,
    TaskAccepted,
    UnknownEvent,
)
from asg_gateway.amqp._producing.messages import SubmittedBatch, SubmittedTask
from asg_gateway.amqp._producing.producer import Producer
from asg_gateway.amqp._producing.sync import SyncProducer

__all__ = [
    "ASGGatewayError",
    "BatchAccepted",
    "BrokerRefusedError",
    "BrokerUnavailableError",
    "Consumer",
    "ConsumerStats",
    "Dedupe",
    "DedupeUnavailableError",
    "Event",
    "Feedback",
    "InvalidEventError",
    "InvalidTaskError",
    "MemoryDedupe",
    "Park",
    "PoisonError",
    "Producer",
    "SqlAlchemyDedupe",
    "SqlDedupe",
    "SubmissionDuplicate",
    "SubmissionRejected",
    "SubmittedBatch",
    "SubmittedTask",
    "SyncProducer",
    "TaskAccepted",
    "TransportError",
    "UnknownEvent",
    "decode",
]
