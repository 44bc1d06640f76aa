"""Counts every event and every dead letter."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from ingest.domain.dead_letters import REASON_HEADER


class Watch:
    """Consumes all events of asg.events since its start, and all dead letters of ingest.dead.

    `tasks` counts acceptance events by task id, `outcomes` events by kind, `dead` dead letters by reason.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.tasks: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.dead: Counter[str] = Counter()

    async def start(self) -> None:
        self._connection = await aio_pika.connect(self._url)
        channel = await self._connection.channel()
        await channel.set_qos(1000)
        events = await channel.declare_queue(exclusive=True)
        await events.bind("asg.events", "#")
        await events.consume(self._event)
        await (await channel.get_queue("ingest.dead")).consume(self._dead)

    async def close(self) -> None:
        await self._connection.close()

    @property
    def submissions(self) -> int:
        """How many direct submissions are finished: accepted, reported as duplicates or rejected."""
        outcomes = ("task", "batch.accepted", "submission.duplicate")
        return sum(self.dead.values()) + sum(self.outcomes[outcome] for outcome in outcomes)

    async def until(self, count: int, seconds: float) -> None:
        """Wait until `count` submissions are finished, or none was finished for `seconds`."""
        await self._wait_for(lambda: self.submissions, count, seconds)

    async def until_tasks(self, count: int, seconds: float) -> None:
        """Wait until `count` tasks are accepted, or none was accepted for `seconds`."""
        await self._wait_for(lambda: len(self.tasks), count, seconds)

    async def _wait_for(self, current: Callable[[], int], count: int, seconds: float) -> None:
        last, idle = -1, 0.0
        while current() < count and idle < seconds:
            idle = idle + 0.1 if current() == last else 0.0
            last = current()
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)  # surplus events would arrive now

    async def _event(self, message: AbstractIncomingMessage) -> None:
        event = json.loads(message.body)
        kind = (message.routing_key or "").split(".")
        if kind[:2] == ["task", "accepted"]:
            self.tasks[event["data"]["task_id"]] += 1
            self.outcomes["item" if "batch_id" in event["data"] else "task"] += 1
        else:
            self.outcomes[".".join(kind[:2])] += 1
        await message.ack()

    async def _dead(self, message: AbstractIncomingMessage) -> None:
        self.dead[str(message.headers.get(REASON_HEADER))] += 1
        await message.ack()
