"""A direct producer, written with plain aio-pika, so that it shares no defect with the code under test."""

import asyncio
import contextlib
import itertools
import json
from typing import Any

import aio_pika
from aio_pika.exceptions import DeliveryError, PublishError
from pamqp.commands import Basic

from tests.chaos.history import Attempt

_TIMEOUT = 6.0
_REFUSALS_PER_CONNECTION = 20
"""Returned or nacked publishes after which the producer reconnects: RabbitMQ 3.10.8 may continue to nack on a channel
without need (`ingest/broker/rabbitmq/versions.py`)."""


class Producer:
    """One customer's connection. Publishes are confirmed, persistent and mandatory."""

    def __init__(self, cust_id: str, ports: list[int]) -> None:
        self._cust_id = cust_id
        self._ports = itertools.cycle(ports)
        self._connection: aio_pika.abc.AbstractConnection | None = None
        self._exchange: aio_pika.abc.AbstractExchange | None = None
        self._connecting = asyncio.Lock()
        self._refused = 0

    async def publish(self, kind: str, body: dict[str, Any], timestamp: int | None, attempt: Attempt) -> None:
        """Publish once; store the outcome in the attempt."""
        message = aio_pika.Message(
            json.dumps(body).encode(),
            message_id=attempt.message_id,
            timestamp=timestamp,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        try:
            exchange = await self._connected_exchange()
        except (Exception, asyncio.CancelledError):  # noqa: BLE001
            raise_if_cancelled()
            attempt.finish("unavailable")
            return
        key = f"{kind}.submitted.{self._cust_id}"
        try:
            answer = await exchange.publish(message, key, mandatory=True, timeout=_TIMEOUT)
        except DeliveryError as error:
            # Returned (a PublishError) or nacked. A nacked message may still be in one of the queues.
            attempt.finish("unavailable" if isinstance(error, PublishError) else "unknown")
            self._refused += 1
            if self._refused % _REFUSALS_PER_CONNECTION == 0:
                await self._drop()
        except (Exception, asyncio.CancelledError):  # noqa: BLE001
            raise_if_cancelled()
            attempt.finish("unknown")
            await self._drop()
        else:
            attempt.finish("confirmed" if isinstance(answer, Basic.Ack) else "unknown")

    async def close(self) -> None:
        await self._drop()

    async def _connected_exchange(self) -> aio_pika.abc.AbstractExchange:
        async with self._connecting:
            if self._exchange is not None and self._connection is not None and not self._connection.is_closed:
                return self._exchange
            await self._drop()
            url = f"amqp://{self._cust_id}:{self._cust_id}@127.0.0.1:{next(self._ports)}/"
            self._connection = await aio_pika.connect(url, timeout=5)
            channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
            self._exchange = await channel.get_exchange("asg.submissions", ensure=False)
            return self._exchange

    async def _drop(self) -> None:
        connection, self._connection, self._exchange = self._connection, None, None
        if connection is not None:
            await close_connection(connection)


def raise_if_cancelled() -> None:
    """Raise CancelledError if the current task was really cancelled.

    If a connection breaks, aiormq also cancels what waits for it, or raises a bare Exception.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


_closing: set[asyncio.Task[None]] = set()


async def close_connection(connection: aio_pika.abc.AbstractConnection) -> None:
    """Close a connection, but wait at most two seconds: close() may never return if the connection is broken."""

    async def close() -> None:
        with contextlib.suppress(Exception):
            await connection.close()

    task = asyncio.create_task(close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)
    await asyncio.wait([task], timeout=2)
