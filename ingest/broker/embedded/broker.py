"""The broker on one SQLite file, within one process: the default of `ingest dev`.

It behaves as RabbitMQ's quorum queues, as far as the ports define it: topic routing, durable messages, prefetch,
redelivery with a count, a delivery limit, dead letters. A publish is one durable transaction for its whole list.
"""

import asyncio
import contextlib
import fcntl
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self, TextIO

import structlog

from ingest.broker.embedded import schema
from ingest.broker.embedded.dead_letters import EmbeddedDeadLetters
from ingest.domain import topology
from ingest.domain.errors import BrokerUnavailable, ConfigurationError
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import ConnectionState
from ingest.sqlite.file import BUSY, SqliteFile
from ingest.waiting import Backoff, wait_for_event

USER: Final = "ingest"
"""The AMQP user of everything that is published here: the service's own."""
_PAUSES: Final = (0.1, 5.0)
"""First and longest pause before the file is tried again, in seconds."""

_log = structlog.get_logger(__name__)


class EmbeddedBroker:
    """`domain.ports.Broker` on a file. Use `open`."""

    def __init__(self, file: SqliteFile, lock: TextIO) -> None:
        self._file = file
        self._lock = lock
        self._wakeups: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.is_closed = False

    @classmethod
    async def open(cls, path: Path | str, *, patience: float = BUSY) -> Self:
        """Open the file, or create it. Deliveries that an earlier process did not acknowledge are delivered again.

        `patience`: seconds that a call waits for the transaction of another process.

        Raises:
            ConfigurationError: another process has it open, or its directory cannot be created.
            BrokerUnavailable: the file cannot be opened or is not a database.
        """
        path = Path(path)
        lock = _lock(path)
        file = SqliteFile(path, schema.MIGRATIONS, BrokerUnavailable, patience)
        try:
            await file.connect()
            await file.change(schema.recover)
        except BaseException:
            await file.close()
            lock.close()
            raise
        return cls(file, lock)

    @property
    def user(self) -> str:
        return USER

    def connections(self) -> list[ConnectionState]:
        return []

    async def declare(self) -> None:
        """The topology is built in, so there is nothing to declare."""

    async def depths(self, queues: Sequence[str]) -> dict[str, int | None]:
        depths = await self._file.read(schema.depths)
        return {queue: depths[queue][0] if queue in depths else None for queue in queues}

    async def publisher(self, connections: int = 1) -> "EmbeddedPublisher":
        return EmbeddedPublisher(self._file, self._wakeups)

    async def consumer(self, queue: str, prefetch: int) -> "EmbeddedConsumer":
        return EmbeddedConsumer(self._file, self._wakeups, queue, prefetch)

    def dead_letters(self, *, keep_open: bool = False) -> EmbeddedDeadLetters:
        """Return the dead letters of this file, to change them. Closing them closes the broker, unless `keep_open`."""
        return EmbeddedDeadLetters(self._file, self._lock, keep_open=keep_open)

    async def close(self) -> None:
        self.is_closed = True
        await self._file.close()
        self._lock.close()


class EmbeddedPublisher:
    """`domain.ports.Publisher`. Everything is published as `USER`."""

    def __init__(self, file: SqliteFile, wakeups: dict[str, asyncio.Event]) -> None:
        self._file = file
        self._wakeups = wakeups
        self._closed = False

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        if self._closed:
            return [PublishOutcome.UNSENT] * len(messages)
        outcomes = []
        rows = []
        for message in messages:
            queues = schema.routes(message.exchange, message.routing_key)
            unroutable = message.mandatory and not queues
            outcomes.append(PublishOutcome.UNROUTABLE if unroutable else PublishOutcome.CONFIRMED)
            rows += [schema.row(queue, message, USER) for queue in queues]
        try:
            # Shielded: if the caller is cancelled, the messages are still published.
            await asyncio.shield(self._file.change(lambda db: schema.insert(db, rows)))
        except BrokerUnavailable:
            return [PublishOutcome.UNKNOWN] * len(messages)
        for row in rows:
            self._wakeups[row[0]].set()
        return outcomes

    async def ready(self) -> None:
        if self._closed:
            raise BrokerUnavailable("the publisher is closed")
        await self._file.check()

    async def close(self) -> None:
        self._closed = True


class EmbeddedConsumer:
    """`domain.ports.Consumer` of one queue.

    While the file cannot be written (the disk is full, another process has locked it), acks and requeues wait until it
    can. If the process ends before, the messages are delivered again.
    """

    def __init__(self, file: SqliteFile, wakeups: dict[str, asyncio.Event], queue: str, prefetch: int) -> None:
        self._file = file
        self._wakeups = wakeups
        self._queue = queue
        self._prefetch = prefetch
        self._extra = 0
        self._unacked: set[int] = set()
        self._acked: list[int] = []
        self._requeued: list[int] = []
        self._backoff = Backoff(*_PAUSES)
        self._paused = False
        self._stopping = False

    async def receive(self) -> list[Delivery]:
        wakeup = self._wakeups[self._queue]
        while not self._stopping:
            wakeup.clear()
            limit = self._prefetch + self._extra - len(self._unacked)
            try:
                await self._write_finished()
                rows = await self._take(limit) if limit and not self._paused else []
            except BrokerUnavailable as error:
                _log.warning("broker_unavailable", error=str(error))
                await wait_for_event(wakeup, self._backoff.next())
                continue
            self._backoff.reset()
            if rows:
                if len(rows) == limit:
                    wakeup.set()  # there may be more for another consumer
                self._unacked.update(row[0] for row in rows)
                return [schema.delivery(self._queue, *row) for row in rows]
            await wakeup.wait()
        wakeup.set()
        return []

    async def _take(self, limit: int) -> list[schema.Taken]:
        return await self._file.change(lambda db: schema.take(db, self._queue, limit))

    @property
    def held(self) -> int:
        return len(self._unacked)

    def alive(self, delivery: Delivery) -> bool:
        return delivery.token in self._unacked

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._acked += self._release(deliveries)
        await self._try_to_write_finished()

    async def set_apart(self, deliveries: Sequence[Delivery], extra: int) -> None:
        self._extra = max(self._extra, extra)
        self._wakeups[self._queue].set()

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        self._requeued += self._release(deliveries)
        await self._try_to_write_finished()

    async def pause(self) -> None:
        self._paused = True
        await self._requeue_all()

    async def resume(self) -> None:
        self._paused = False
        self._wakeups[self._queue].set()

    async def stop(self) -> None:
        self._stopping = True
        self._wakeups[self._queue].set()

    async def close(self) -> None:
        await self.stop()
        await self._requeue_all()

    async def _requeue_all(self) -> None:
        self._requeued += sorted(self._unacked)
        self._unacked = set()
        await self._try_to_write_finished()

    async def _try_to_write_finished(self) -> None:
        with contextlib.suppress(BrokerUnavailable):
            await self._write_finished()
        self._wakeups[self._queue].set()  # there is room for more, or `receive` tries to write again

    async def _write_finished(self) -> None:
        """Delete what was acked and put back what was requeued. Raises BrokerUnavailable; then both stay pending."""
        acked, requeued = self._acked, self._requeued
        if not acked and not requeued:
            return
        self._acked, self._requeued = [], []

        def write(db: sqlite3.Connection) -> None:
            schema.delete(db, acked)
            schema.requeue(db, requeued)

        try:
            await self._file.change(write)
        except (BrokerUnavailable, asyncio.CancelledError):
            self._acked += acked
            self._requeued += requeued
            raise
        if requeued:
            self._wake_all()

    def _release(self, deliveries: Sequence[Delivery]) -> list[int]:
        """Remove deliveries from the unacknowledged ones; return the ids of those that were among them."""
        ids = [delivery.token for delivery in deliveries if delivery.token in self._unacked]
        self._unacked.difference_update(ids)
        return ids

    def _wake_all(self) -> None:
        for queue in topology.QUEUES:
            self._wakeups[queue.name].set()


def _lock(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(path.name + ".lock").open("w")
    except OSError as error:
        raise ConfigurationError(f"cannot write to the directory of {path}: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigurationError(
            f"{path} is in use by another process: stop it, or give this one another --data-dir"
        ) from error
    return lock
