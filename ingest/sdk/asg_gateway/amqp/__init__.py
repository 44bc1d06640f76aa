"""Producers and consumers on RabbitMQ. Needs `pip install asg-gateway[amqp]`."""

from asg_gateway.amqp._consumer import Consumer
from asg_gateway.amqp._decoding import decode
from asg_gateway.amqp._dedupe import Dedupe, DedupeUnavailableError, MemoryDedupe
from asg_gateway.amqp._events import (
    BatchAccepted,
    Event,
    SubmissionDuplicate,
    SubmissionRejected,
    TaskAccepted,
    UnknownEvent,
)
from asg_gateway.amqp._feedback import Feedback
from asg_gateway.amqp._rules import ConsumerStats, Park, PoisonError
from asg_gateway.amqp._sql_dedupe import SqlDedupe
from asg_gateway.amqp._sqlalchemy_dedupe import SqlAlchemyDedupe

__all__ = [
    "BatchAccepted",
    "Consumer",
    "ConsumerStats",
    "Dedupe",
    "DedupeUnavailableError",
    "Event",
    "Feedback",
    "MemoryDedupe",
    "Park",
    "PoisonError",
    "SqlAlchemyDedupe",
    "SqlDedupe",
    "SubmissionDuplicate",
    "SubmissionRejected",
    "TaskAccepted",
    "UnknownEvent",
    "decode",
]
