"""A process's consumer of one queue: prefetch, acks, and connections that break."""

import asyncio
from collections.abc import Sequence
from typing import Final

from ingest.domain.messages import Delivery
from tests.simulation.machines import Process
from tests.simulation.queues import QueueState, Stored

_RECONNECT: Final = 0.5


class SimulatedConsumer:
    """`domain.ports.Consumer` on one queue."""

    def __init__(self, queue: QueueState, process: Process, prefetch: int) -> None:
        self._queue = queue
        self._process = process
        self._life = process.life
        self._network = process.network
        self._prefetch = prefetch
        self._extra = 0
        self._connection = 0
        self._connected = False
        self._consuming = True
        self._stopped = False
        self._tag = 0
        self._unacknowledged: dict[tuple[int, int], Stored] = {}
        self._finished: set[tuple[int, int]] = set()
        """Acknowledged or requeued by the process; the broker may not know yet."""
        self._arrived: list[Delivery] = []
        self._arrival = asyncio.Event()
        self._connect()
        process.on_crash(self._break)
        process.on_silence(self.lose_connection)

    @property
    def wants_more(self) -> bool:
        """Whether the broker may deliver another message."""
        has_room = len(self._unacknowledged) < self._prefetch + self._extra
        return self._connected and self._consuming and not self._stopped and has_room

    def deliver(self, stored: Stored) -> None:
        """Send a message to the process."""
        self._tag += 1
        token = (self._connection, self._tag)
        self._unacknowledged[token] = stored
        delivery = stored.delivery(self._queue.definition.name, token)
        self._network.later(self._network.delay(), lambda: self._arrive(delivery))

    def lose_connection(self) -> None:
        """Break the connection; the broker delivers again what was not acknowledged."""
        if self._connected:
            self._break()
            self._network.later(_RECONNECT, self._connect)

    async def receive(self) -> list[Delivery]:
        while True:
            await self._process.runs(self._life)
            if self._arrived:
                deliveries, self._arrived = self._arrived, []
                return deliveries
            if self._stopped:
                return []
            self._arrival.clear()
            await self._arrival.wait()

    @property
    def held(self) -> int:
        return len(self._unacknowledged)

    def alive(self, delivery: Delivery) -> bool:
        is_current = self._connected and delivery.token[0] == self._connection
        return is_current and delivery.token not in self._finished

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await self._process.runs(self._life)
        tokens = self._take_tokens(deliveries)
        self._network.later(self._network.delay(), lambda: self._finish(tokens))

    async def set_apart(self, deliveries: Sequence[Delivery], extra: int) -> None:
        await self._process.runs(self._life)
        self._extra = max(self._extra, extra)
        self._queue.dispatch()

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        await self._process.runs(self._life)
        tokens = self._take_tokens(deliveries)
        self._network.later(self._network.delay(), lambda: self._return(tokens))

    async def pause(self) -> None:
        await self._process.runs(self._life)
        self._consuming = False
        self._return(list(self._unacknowledged))
        self._connection += 1
        self._arrived.clear()

    async def resume(self) -> None:
        await self._process.runs(self._life)
        self._consuming = True
        self._queue.dispatch()

    async def stop(self) -> None:
        self._stopped = True
        self._arrival.set()

    async def close(self) -> None:
        self._break()

    def _take_tokens(self, deliveries: Sequence[Delivery]) -> list[tuple[int, int]]:
        """Return the tokens of the deliveries that can still be acknowledged, which ends that."""
        tokens = [delivery.token for delivery in deliveries if self.alive(delivery)]
        self._finished.update(tokens)
        return tokens

    def _connect(self) -> None:
        if not self._process.alive or self._process.life != self._life or self._connected or self._stopped:
            return
        if self._process.is_paused:
            self._network.later(_RECONNECT, self._connect)
        else:
            self._connection += 1
            self._connected = True
            self._queue.consumers.append(self)
            self._queue.dispatch()

    def _break(self) -> None:
        if not self._connected:
            return
        self._connected = False
        self._extra = 0
        self._queue.consumers.remove(self)
        self._arrived.clear()
        unacknowledged = list(self._unacknowledged.values())
        self._unacknowledged.clear()
        self._queue.put_back(unacknowledged)

    def _arrive(self, delivery: Delivery) -> None:
        if self.alive(delivery) and delivery.token in self._unacknowledged:
            self._arrived.append(delivery)
            self._arrival.set()

    def _finish(self, tokens: Sequence[tuple[int, int]]) -> None:
        for token in tokens:
            self._unacknowledged.pop(token, None)
        self._queue.dispatch()

    def _return(self, tokens: Sequence[tuple[int, int]]) -> None:
        self._queue.put_back([self._unacknowledged.pop(token) for token in tokens if token in self._unacknowledged])
