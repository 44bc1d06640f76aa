"""What takes the place of RabbitMQ in the tests of your program."""

from asg_gateway.amqp.testing._producer import FakeProducer, Submission

__all__ = ["FakeProducer", "Submission"]
