"""For tests of producers and consumers: sample events, and stand-ins that need no RabbitMQ."""

from asg_gateway.amqp.testing._consumer import FakeConsumer, Outcome, ParkedEvent, deliver
from asg_gateway.amqp.testing._producer import FakeProducer, Submission
from asg_gateway.amqp.testing._samples import (
    batch_accepted,
    encode,
    sample_events,
    submission_duplicate,
    submission_rejected,
    task_accepted,
)

__all__ = [
    "FakeConsumer",
    "FakeProducer",
    "Outcome",
    "ParkedEvent",
    "Submission",
    "batch_accepted",
    "deliver",
    "encode",
    "sample_events",
    "submission_duplicate",
    "submission_rejected",
    "task_accepted",
]
