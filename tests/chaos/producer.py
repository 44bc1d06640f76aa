"""A direct producer, written with plain aio-pika: nothing of the code under test is trusted here."""

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
_PATIENCE = 20
"""Refused publishes before another channel is tried: RabbitMQ 3.10 may nack on one for ever, see rabbitmq_versions."""


class Producer:
    """One customer's connection. Publishes are confirmed, persistent and mandatory."""

    def __init__(self, cust_id: str, ports: list[int]) -> None:
        self._cust_id = cust_id
        self._ports = itertools.cycle(ports)
        self._connection: aio_pika.abc.AbstractConnection | None = None
        self._exchange: aio_pika.abc.AbstractExchange | None = None
        self._connecting = asyncio.Lock()
        self._refused = 0

    async def publish(self, kind: str, body: dict[str, Any], attempt: Attempt) -> None:
        """Publish once; the outcome stands in the attempt."""
        message = aio_pika.Message(
            json.dumps(body).encode(),
            message_id=attempt.message_id,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        try:
            exchange = await self._channel()
        except (Exception, asyncio.CancelledError):  # noqa: BLE001
            raise_if_ours()
            attempt.finish("unavailable")
            return
        key = f"{kind}.submitted.{self._cust_id}"
        try:
            answer = await exchange.publish(message, key, mandatory=True, timeout=_TIMEOUT)
        except DeliveryError as error:
            # Returned, or nacked: then it may all the same be in the queue.
            attempt.finish("unavailable" if isinstance(error, PublishError) else "unknown")
            self._refused += 1
            if self._refused % _PATIENCE == 0:
                await self._drop()
        except (Exception, asyncio.CancelledError):  # noqa: BLE001
            raise_if_ours()
            attempt.finish("unknown")
            await self._drop()
        else:
            attempt.finish("confirmed" if isinstance(answer, Basic.Ack) else "unknown")

    async def close(self) -> None:
        await self._drop()

    async def _channel(self) -> aio_pika.abc.AbstractExchange:
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
            await let_go(connection)


def raise_if_ours() -> None:
    """aiormq cancels whoever waits on a connection that breaks, or raises a bare Exception; a real cancel goes on."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


_closing: set[asyncio.Task[None]] = set()


async def let_go(connection: aio_pika.abc.AbstractConnection) -> None:
    """Close it, but wait no longer than two seconds: on a broken connection it may take for ever."""

    async def close() -> None:
        with contextlib.suppress(Exception):
            await connection.close()

    task = asyncio.create_task(close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)
    await asyncio.wait([task], timeout=2)
