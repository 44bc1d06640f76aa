"""Isolates deliveries that may crash their consumers, so that they do not affect their neighbours.

If a consumer crashes, RabbitMQ redelivers everything it held with a higher delivery count: the harmless deliveries as
well as the poison message. A delivery that was redelivered twice is a suspect. From the first suspect on, all
deliveries are withheld and handed out in rounds: first all others that have arrived, together; then one suspect at a
time, those with the fewest deliveries first, in random order among equals. Deliveries that arrive during a round wait
for the next one; the first round without suspects ends the quarantine. So what was delivered together with a poison
message is finished before the poison has its turn, except for suspects with the same count, of which half are
finished. Only the poison message reaches the delivery limit. A turn also ends when the delivery is set apart: its
attempt has crashed nothing, and it waits for something else.

The consumer is not cancelled to make it hold less: if the node of a cancelled consumer dies, its unacknowledged
deliveries belong to no consumer until the queue has another leader (seen on RabbitMQ 3.10.8;
https://github.com/rabbitmq/rabbitmq-server/issues/15473 describes the same on 4.x).
"""

import asyncio
import random
from collections.abc import Callable, Collection, KeysView, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, Protocol

import structlog

from ingest.domain.errors import BrokerUnavailable
from ingest.domain.messages import Delivery
from ingest.domain.topology import SUSPECT
from ingest.waiting import wait_for_event

QUIET: Final = 0.3
"""Seconds without a delivery after which everything that was returned together has probably arrived."""
PATIENCE: Final = 3.0
"""Seconds to wait for further deliveries, or for deliveries that were handed out: they may wait for another's lease."""

_log = structlog.get_logger(__name__)


class Channel(Protocol):
    """What the quarantine needs from a consuming channel."""

    @property
    def unacked(self) -> KeysView[int]: ...

    async def consume(self, prefetch: int) -> None: ...

    def finish(self) -> None: ...


class PoisonQuarantine:
    """Watches one channel that is already consuming.

    Args:
        channel: every delivery of it must be passed to `withhold`.
        prefetch: the most deliveries that it may hold.
        hand_out: receives the deliveries that were withheld.
        single_delivery: the channel consumes with a prefetch of 1 until a delivery that is not a suspect is finished.
    """

    def __init__(
        self,
        channel: Channel,
        prefetch: int,
        hand_out: Callable[[Sequence[Delivery]], None],
        *,
        single_delivery: bool = False,
    ) -> None:
        self._channel = channel
        self._hand_out = hand_out
        self._current_prefetch = 1 if single_delivery else prefetch
        self._prefetch = prefetch
        self._last_was_harmless = False
        self._withheld: list[Delivery] = []
        self._suspects: list[Delivery] = []
        """The suspects of the current round, in the reverse order of their turns."""
        self._isolating: asyncio.Task[None] | None = None
        self._raising: asyncio.Task[None] | None = None
        self._stopped = False
        self._apart: set[int] = set()
        """Tags of deliveries that survived an attempt and wait for something else. Nothing waits for them."""
        self._change = asyncio.Event()

    @property
    def holds_deliveries(self) -> bool:
        """Whether deliveries are withheld."""
        return bool(self._withheld or self._suspects)

    def withhold(self, delivery: Delivery) -> bool:
        """Take note of a delivery; return whether it is withheld, to be handed out later."""
        suspect = _is_suspect(delivery)
        self._last_was_harmless = not suspect
        if self._isolating is None:
            if not suspect:
                return False
            if self._current_prefetch > 1:
                _log.warning("quarantine_started", queue=delivery.queue, earlier_attempts=delivery.deliveries)
            self._isolating = asyncio.create_task(self._isolate())
        self._withheld.append(delivery)
        self._change.set()
        return True

    def deliveries_finished(self) -> None:
        """Take note that deliveries were acknowledged or requeued."""
        self._change.set()
        if self._current_prefetch < self._prefetch and self._last_was_harmless and not self._stopped:
            more, self._current_prefetch = self._prefetch - self._current_prefetch, self._prefetch
            self._raising = asyncio.create_task(self._raise_prefetch(more))

    def set_apart(self, tags: Collection[int]) -> None:
        """Take note that deliveries survived an attempt and wait for something else: their turn ends."""
        self._apart = self._apart & self._channel.unacked | set(tags)
        self._change.set()

    async def stop(self) -> None:
        """Expect no more deliveries. What is withheld is still handed out, as long as it is finished in time."""
        self._stopped = True
        self._change.set()
        if self._raising is not None:
            await asyncio.wait([self._raising])

    def close(self) -> None:
        """Forget all deliveries, because the channel is lost."""
        self._withheld.clear()
        self._suspects.clear()
        self._apart.clear()
        for task in (self._isolating, self._raising):
            if task is not None:
                task.cancel()

    @property
    def _in_progress(self) -> AbstractSet[int]:
        """Tags of the deliveries that are neither finished nor set apart."""
        return self._channel.unacked - self._apart if self._apart else self._channel.unacked

    async def _isolate(self) -> None:
        await self._wait_until_finished(self._in_progress - {_tag(delivery) for delivery in self._withheld})
        while any(map(_is_suspect, self._withheld)):
            await self._wait_for_arrivals()
            arrived, self._withheld = self._withheld, []
            self._suspects = [delivery for delivery in arrived if _is_suspect(delivery)]
            random.shuffle(self._suspects)
            self._suspects.sort(key=lambda delivery: delivery.deliveries, reverse=True)
            await self._take_turn([delivery for delivery in arrived if not _is_suspect(delivery)])
            while self._suspects:
                await self._take_turn([self._suspects.pop()])
        self._hand_out(self._withheld)
        self._withheld = []
        self._isolating = None

    async def _take_turn(self, deliveries: Sequence[Delivery]) -> None:
        self._hand_out(deliveries)
        await self._wait_until_finished([_tag(delivery) for delivery in deliveries])

    async def _wait_until_finished(self, tags: Collection[int]) -> None:
        end = _now() + PATIENCE
        while not self._in_progress.isdisjoint(tags):
            if not await self._changed_before(end):
                if self._stopped:  # a stopping worker finishes a delivery at once or not at all; the broker redelivers
                    self._withheld, self._suspects = [], []
                return

    async def _wait_for_arrivals(self) -> None:
        """Wait until nothing more arrives or the prefetch is used up; under steady traffic, for a limited time."""
        end = _now() + PATIENCE
        while not self._stopped and len(self._in_progress) < self._current_prefetch:
            if not await self._changed_before(min(_now() + QUIET, end)):
                return

    async def _changed_before(self, end: float) -> bool:
        self._change.clear()
        return await wait_for_event(self._change, end - _now())

    async def _raise_prefetch(self, more: int) -> None:
        try:
            await self._channel.consume(more)
        except BrokerUnavailable:
            self._channel.finish()


def _is_suspect(delivery: Delivery) -> bool:
    return delivery.deliveries >= SUSPECT


def _tag(delivery: Delivery) -> int:
    tag: int = delivery.token.tag
    return tag


def _now() -> float:
    return asyncio.get_running_loop().time()
