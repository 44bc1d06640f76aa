"""The peers do the same jobs with common libraries, in the way a competent user would write them.

They claim the key (CREATE_ONLY), publish the event with a confirm, and ack. They have no quota, no batches, no dead
letters, no take-over of claims and no settling.

Run one with `python -m tests.bench.peers plain|faststream` or `uvicorn tests.bench.peers:fastapi_app`. BENCH_AMQP (a
URL) and BENCH_AEROSPIKE (host:port) name the servers.
"""

import asyncio
import hashlib
import json
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import aerospike
import aio_pika
from aerospike import exception
from fastapi import FastAPI, Response
from faststream import FastStream
from faststream.middlewares import AckPolicy
from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange, RabbitMessage, RabbitQueue
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, StrictInt

AMQP = os.environ.get("BENCH_AMQP", "")
_host, _, _port = os.environ.get("BENCH_AEROSPIKE", "127.0.0.1:3000").partition(":")
POLICY = {"exists": aerospike.POLICY_EXISTS_CREATE, "ttl": 604_800}
PREFETCH = 1000


class LabelSpec(BaseModel):
    """The question and its options."""

    model_config = ConfigDict(extra="allow")
    question: str
    options: list[str] = Field(min_length=2)


class Task(BaseModel):
    """The body of a task."""

    model_config = ConfigDict(extra="forbid")
    type: str
    data_url: HttpUrl
    label_spec: LabelSpec
    consensus_threshold: Annotated[StrictInt, Field(ge=2, le=10)] = 3
    idempotency_key: str | None = None


def connect() -> Any:
    return aerospike.client({"hosts": [(_host, int(_port))]}).connect()


def claim(client: Any, key: str) -> bool:
    """Claim the key, and return False if it is used already. Blocks."""
    try:
        client.put(("test", "peer", key), {"phase": "claimed", "at": time.time()}, policy=POLICY)
    except exception.RecordExistsError:
        return False
    return True


def event(task: Task, key: str) -> tuple[bytes, str]:
    """Return the acceptance event and its routing key."""
    task_id = "tsk_" + hashlib.sha256(key.encode()).hexdigest()[:26]
    data = task.model_dump(mode="json") | {"task_id": task_id}
    body = {"specversion": "1.0", "id": f"{task_id}:accepted", "source": "/peer", "type": "task.accepted", "data": data}
    return json.dumps(body).encode(), f"task.accepted.{task.type}.none"


async def plain() -> None:
    """Consume with aio-pika. Each claim runs in a thread, and each event is published with a confirm."""
    client = connect()
    connection = await aio_pika.connect_robust(AMQP)
    publishing = await (await aio_pika.connect_robust(AMQP)).channel(publisher_confirms=True)
    exchange = await publishing.get_exchange("asg.events")
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=PREFETCH)
    queue = await channel.get_queue("ingest.tasks")

    async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        async with message.process(requeue=True):
            task = Task.model_validate_json(message.body)
            key = f"c:{message.message_id}"
            if await asyncio.to_thread(claim, client, key):
                body, routing_key = event(task, key)
                outgoing = aio_pika.Message(
                    body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, message_id=uuid.uuid4().hex
                )
                await exchange.publish(outgoing, routing_key, mandatory=True)

    await queue.consume(handle)
    await asyncio.Future()


async def faststream() -> None:
    """Do the same as `plain` in a FastStream application."""
    client = connect()
    broker = RabbitBroker(AMQP, default_channel=Channel(prefetch_count=PREFETCH))
    events = RabbitExchange("asg.events", type=ExchangeType.TOPIC, durable=True, declare=False)
    queue = RabbitQueue("ingest.tasks", durable=True, declare=False)

    @broker.subscriber(queue, ack_policy=AckPolicy.NACK_ON_ERROR)
    async def handle(task: Task, message: RabbitMessage) -> None:
        key = f"c:{message.message_id}"
        if await asyncio.to_thread(claim, client, key):
            body, routing_key = event(task, key)
            await broker.publish(body, exchange=events, routing_key=routing_key, persist=True, mandatory=True)

    await FastStream(broker).run()


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.aerospike = connect()
    connection = await aio_pika.connect_robust(AMQP)
    channel = await connection.channel(publisher_confirms=True)
    app.state.exchange = await channel.get_exchange("asg.submissions")
    yield
    await connection.close()


fastapi_app = FastAPI(lifespan=_lifespan)


@fastapi_app.post("/v1/tasks", status_code=202)
async def submit(task: Task, response: Response) -> dict[str, Any]:
    """Claim the key in a thread, publish with a confirm, and answer."""
    key = f"c:{task.idempotency_key or uuid.uuid4().hex}"
    new = await asyncio.to_thread(claim, fastapi_app.state.aerospike, key)
    if new:
        body = task.model_dump_json().encode()
        persistent = aio_pika.DeliveryMode.PERSISTENT
        message = aio_pika.Message(body, delivery_mode=persistent, message_id=uuid.uuid4().hex)
        await fastapi_app.state.exchange.publish(message, "task.submitted.c", mandatory=True)
    else:
        response.status_code = 200
    task_id = "tsk_" + hashlib.sha256(key.encode()).hexdigest()[:26]
    return {"task_id": task_id, "status": "pending"} | ({} if new else {"idempotent": True})


if __name__ == "__main__":
    import uvloop

    uvloop.run({"plain": plain, "faststream": faststream}[sys.argv[1]]())
