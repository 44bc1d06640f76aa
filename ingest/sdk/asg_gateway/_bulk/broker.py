"""Publishes chunks to RabbitMQ. It needs the extra `amqp`, so this module imports that only when it is used."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from asg_gateway._bulk.items import Item
from asg_gateway._bulk.options import UsageError
from asg_gateway._bulk.progress import Counts
from asg_gateway._bulk.transport import Accepted, Sender
from asg_gateway._results import BatchResult

if TYPE_CHECKING:
    from asg_gateway.amqp import Producer
    from asg_gateway.amqp.testing import FakeProducer

PUBLISHED = "published"
"""The status of a batch that RabbitMQ has confirmed."""


class BrokerSender:
    """Publishes batches with a producer. `callback_url` is for each task without one.

    If a run is killed, a repeated chunk has another timestamp. It is a duplicate for the service nevertheless, because
    its keys are the same.
    """

    def __init__(self, producer: "Producer | FakeProducer", callback_url: str | None) -> None:
        self._producer = producer
        self._callback_url = callback_url

    async def send(self, items: Sequence[Item], key: str) -> list[Accepted]:
        tasks = [item.task for item in items]
        batch = await self._producer.submit_batch(tasks, key=key, callback_url=self._callback_url)
        accepted: list[Accepted] = []
        first = 0
        for part in batch.parts or (batch,):
            count = len(part.task_ids)
            result = BatchResult(part.batch_id, count, PUBLISHED, task_ids=part.task_ids)
            accepted.append((result, items[first : first + count]))
            first += count
        return accepted

    def notice(self) -> str | None:
        return None


class BrokerTransport:
    """Publishes to the RabbitMQ at `--amqp-url`.

    Args:
        url: `amqp[s]://user:password@host:port/vhost`.
        customer: the customer; None for the user of the URL.
        callback_url: a webhook URL for each task without one.
        patience: seconds for which a chunk is retried.
        concurrency: the number of chunks in flight.

    Raises:
        UsageError: the extra `amqp` is not installed, or an argument is invalid.
    """

    def __init__(
        self, url: str, customer: str | None, callback_url: str | None, patience: float, concurrency: int
    ) -> None:
        try:
            from asg_gateway.amqp import Producer
        except ImportError as error:
            raise UsageError(f"--amqp-url needs more packages: pip install asg-gateway[amqp] ({error})") from error
        logging.getLogger("aiormq").setLevel(logging.CRITICAL)  # the producer says the same
        try:
            self._producer = Producer(url, customer, deadline=patience, max_in_flight=concurrency)
        except ValueError as error:
            raise UsageError(f"--amqp-url, ASG_AMQP_URL or --customer: {error}") from error
        self._broker = url.rpartition("@")[2]  # without user and password
        self._callback_url = callback_url

    @property
    def identity(self) -> Sequence[str]:
        return ["amqp", self._broker, self._producer.cust_id, self._callback_url or ""]

    def counts(self) -> Counts:
        return Counts(published=0)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Sender]:
        async with self._producer:
            yield BrokerSender(self._producer, self._callback_url)

    def conclusion(self, counts: Counts) -> str | None:
        if not counts.published:
            return None
        queue = f"feedback.{self._producer.cust_id}"
        return f"published lines are in RabbitMQ. What the service rejects later is reported in the queue {queue}"
