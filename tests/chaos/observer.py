"""Consumes all events and dead letters, as downstream services would, and records them."""

import asyncio
import contextlib
import itertools
import json
from typing import Any, Final

import aio_pika

from tests.chaos.history import History, Seen
from tests.chaos.producer import close_connection, raise_if_cancelled
from tests.chaos.workload import FEEDBACK, SPY

QUEUES: Final = ("consensus.tasks", "webhook.dispatch", "ingest.dead", SPY, FEEDBACK)


class Observer:
    """Has one consumer per queue, which reconnects."""

    def __init__(self, history: History, ports: list[int]) -> None:
        self._history = history
        self._ports = itertools.cycle(ports)
        self._active = asyncio.Event()
        self._active.set()

    def pause(self) -> None:
        """Stop consuming, so that the queues fill."""
        self._active.clear()

    def resume(self) -> None:
        self._active.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for queue in QUEUES:
                group.create_task(self._follow(queue))

    async def _follow(self, queue: str) -> None:
        while True:
            await self._active.wait()
            try:
                connection = await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{next(self._ports)}/", timeout=5)
                try:
                    await self._consume(connection, queue)
                finally:
                    await close_connection(connection)
            except (Exception, asyncio.CancelledError):  # noqa: BLE001
                raise_if_cancelled()
            await asyncio.sleep(0.3)

    async def _consume(self, connection: aio_pika.abc.AbstractConnection, queue: str) -> None:
        """Consume until the observer is paused, the channel is closed, or the queue does not exist any more."""
        channel_closed = asyncio.Event()
        async with asyncio.timeout(10):
            channel = await connection.channel()
            channel.close_callbacks.add(lambda *_: channel_closed.set())
            await channel.set_qos(prefetch_count=200)
            if queue == SPY:
                spy = await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
                for key in ("submission.#", "batch.accepted.none"):
                    await spy.bind("asg.events", key)
            consumed = await channel.get_queue(queue, ensure=False)
            await consumed.consume(lambda message: self._record(queue, message))
        tasks = [
            asyncio.create_task(self._paused()),
            asyncio.create_task(channel_closed.wait()),
            asyncio.create_task(self._queue_missing(connection, queue)),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    async def _queue_missing(self, connection: aio_pika.abc.AbstractConnection, queue: str) -> None:
        """Return when a passive declare of the queue has failed."""
        with contextlib.suppress(Exception):
            while True:
                await asyncio.sleep(3)
                async with asyncio.timeout(5):
                    channel = await connection.channel()
                    await channel.declare_queue(queue, passive=True)
                    await channel.close()

    async def _paused(self) -> None:
        """Return when the observer is paused."""
        while self._active.is_set():
            await asyncio.sleep(0.1)

    async def _record(self, queue: str, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        body: dict[str, Any] = json.loads(message.body)
        headers = message.headers
        reason = headers.get("x-ingest-reason") or headers.get("x-first-death-reason") or ""
        data = body.get("data") or body.get("submission") or body
        event_id = str(body.get("id", ""))
        seen = Seen(queue, message.routing_key or "", event_id, data, str(reason), bool(message.redelivered))
        self._history.seen.append(seen)
        with contextlib.suppress(Exception):
            await message.ack()
