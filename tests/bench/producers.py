"""The SDK's producers beside plain aio-pika. Each publishes single tasks until it is terminated.

Run one with `python -m tests.bench.producers plain|submit|submit_many|sync`. BENCH_AMQP (a URL) names the broker.
"""

import asyncio
import itertools
import json
import os
import sys
import time
from typing import Final

import aio_pika
from asg_gateway.amqp import Producer, SyncProducer

from tests.bench.harness import TASK

AMQP: Final = os.environ.get("BENCH_AMQP", "")
CALLS: Final = 1_000
"""Calls of `submit` in progress."""


async def plain() -> None:
    """Await each publish, as in the example of deploy/producers.md. Nothing is checked, retried or timed out."""
    connection = await aio_pika.connect(AMQP)
    channel = await connection.channel(on_return_raises=True)
    exchange = await channel.get_exchange("asg.submissions", ensure=False)
    for number in itertools.count():
        message = aio_pika.Message(
            json.dumps(TASK).encode(),
            message_id=f"k{number}",
            timestamp=int(time.time()),
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            priority=4,
        )
        await exchange.publish(message, "task.submitted.c", mandatory=True)


async def submit() -> None:
    """Gather calls of `submit`, a thousand at a time."""
    async with Producer(AMQP, "c") as producer:
        for first in itertools.count(0, CALLS):
            await asyncio.gather(*[producer.submit(TASK, key=f"k{first + number}") for number in range(CALLS)])


async def submit_many() -> None:
    """Iterate over `submit_many`."""
    async with Producer(AMQP, "c") as producer:
        async for _ in producer.submit_many((f"k{number}", TASK) for number in itertools.count()):
            pass


def sync() -> None:
    """Iterate over `SyncProducer.submit_many`."""
    with SyncProducer(AMQP, "c") as producer:
        for _ in producer.submit_many((f"k{number}", TASK) for number in itertools.count()):
            pass


if __name__ == "__main__":
    name = sys.argv[1]
    if name == "sync":
        sync()
    else:
        asyncio.run({"plain": plain, "submit": submit, "submit_many": submit_many}[name]())
