"""Takes everything that comes out, as downstream services would, and remembers it."""

import asyncio
import contextlib
import itertools
import json
from typing import Any, Final

import aio_pika

from tests.chaos.history import History, Seen
from tests.chaos.producer import let_go, raise_if_ours

SPY: Final = "chaos.spy"
"""Bound to what has no queue of its own; not to `task.accepted`, which would then always have one."""
QUEUES: Final = ("consensus.tasks", "webhook.dispatch", "ingest.dead", SPY)


class Observer:
    """One consumer a queue, reconnecting."""

    def __init__(self, history: History, ports: list[int]) -> None:
        self._history = history
        self._ports = itertools.cycle(ports)
        self._going = asyncio.Event()
        self._going.set()
        self.ids: set[str] = set()
        """CloudEvents ids seen."""

    def pause(self) -> None:
        """Take nothing, so that queues fill."""
        self._going.clear()

    def resume(self) -> None:
        self._going.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for queue in QUEUES:
                group.create_task(self._follow(queue))

    async def _follow(self, queue: str) -> None:
        while True:
            await self._going.wait()
            try:
                connection = await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{next(self._ports)}/", timeout=5)
                try:
                    await self._consume(connection, queue)
                finally:
                    await let_go(connection)
            except (Exception, asyncio.CancelledError):  # noqa: BLE001
                raise_if_ours()
            await asyncio.sleep(0.3)

    async def _consume(self, connection: aio_pika.abc.AbstractConnection, queue: str) -> None:
        ended = asyncio.Event()
        async with asyncio.timeout(10):
            channel = await connection.channel()
            channel.close_callbacks.add(lambda *_: ended.set())
            await channel.set_qos(prefetch_count=200)
            if queue == SPY:
                declared = await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
                for key in ("submission.*", "batch.accepted.none"):
                    await declared.bind("asg.events", key)
            taken = await channel.get_queue(queue, ensure=False)
            await taken.consume(lambda message: self._take(queue, message))
        stopping = asyncio.create_task(self._paused())
        dead = asyncio.create_task(ended.wait())
        looking = asyncio.create_task(self._still_there(connection, queue))
        await asyncio.wait([stopping, dead, looking], return_when=asyncio.FIRST_COMPLETED)
        for task in (stopping, dead, looking):
            task.cancel()

    async def _still_there(self, connection: aio_pika.abc.AbstractConnection, queue: str) -> None:
        """Ends when the queue was deleted, or is not consumed any more."""
        with contextlib.suppress(Exception):
            while True:
                await asyncio.sleep(3)
                async with asyncio.timeout(5):
                    channel = await connection.channel()
                    await channel.declare_queue(queue, passive=True)
                    await channel.close()

    async def _paused(self) -> None:
        while self._going.is_set():
            await asyncio.sleep(0.1)

    async def _take(self, queue: str, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        body: dict[str, Any] = json.loads(message.body)
        headers = message.headers
        reason = headers.get("x-ingest-reason") or headers.get("x-first-death-reason") or ""
        data = body.get("data") or body.get("submission") or body
        event_id = str(body.get("id", ""))
        seen = Seen(queue, message.routing_key or "", event_id, data, str(reason), bool(message.redelivered))
        self._history.seen.append(seen)
        self.ids.add(event_id)
        with contextlib.suppress(Exception):
            await message.ack()
