"""Isolation of what may kill its consumers, so that it takes no neighbours with it.

When a consumer dies, everything that it held comes back with a higher delivery count, the innocent as well as the
culprit. What has come back twice is a suspect. From the first suspect on everything is withheld, and handed out in
rounds: what has come by then, the unsuspicious together, and after them one suspect at a time, the least suspicious
first and in random order among equals. What comes meanwhile waits for the next round; a round without suspects is the
last. So all that came with a culprit is settled before its turn but for its equals, of which half are; alone it goes on
to the delivery limit.

The consumer is not cancelled to make it hold less: what a cancelled consumer has not acknowledged when its node dies
belongs to nobody until the queue has another leader (seen on RabbitMQ 3.10.8;
https://github.com/rabbitmq/rabbitmq-server/issues/15473 tells of the like on 4.x).
"""

import asyncio
import random
from collections.abc import Callable, Collection, KeysView, Sequence
from typing import Final, Protocol

import structlog

from ingest.domain.errors import BrokerUnavailable
from ingest.domain.messages import Delivery

SUSPECT: Final = 2
"""Returns that make a suspect: one may happen to anybody."""
QUIET: Final = 0.3
"""Seconds without a delivery after which all is taken to have come that was given back together."""
PATIENCE: Final = 3.0
"""Seconds after which nobody waits any more for what is to come, nor for what is handed out and not settled: it may
wait for another's lease."""

_log = structlog.get_logger(__name__)


class Channel(Protocol):
    """What is needed of a channel that consumes."""

    @property
    def unacked(self) -> KeysView[int]: ...

    async def consume(self, prefetch: int) -> None: ...

    def finish(self) -> None: ...


class PoisonQuarantine:
    """Watches one channel, which consumes already.

    Args:
        channel: its deliveries are to be shown to `withhold`.
        prefetch: how many deliveries at a time it may hold.
        hand_out: gets what was withheld.
        narrow: it takes only one at a time so far, until something unsuspicious is settled.
    """

    def __init__(
        self, channel: Channel, prefetch: int, hand_out: Callable[[Sequence[Delivery]], None], *, narrow: bool = False
    ) -> None:
        self._channel = channel
        self._hand_out = hand_out
        self._width = 1 if narrow else prefetch
        self._prefetch = prefetch
        self._unsuspicious = False
        self._withheld: list[Delivery] = []
        self._round: list[Delivery] = []
        self._isolating: asyncio.Task[None] | None = None
        self._widening: asyncio.Task[None] | None = None
        self._stopped = False
        self._change = asyncio.Event()

    @property
    def waiting(self) -> bool:
        """Whether something is withheld."""
        return bool(self._withheld or self._round)

    def withhold(self, delivery: Delivery) -> bool:
        """A delivery has come; whether it is handed out later."""
        suspicious = _suspicious(delivery)
        self._unsuspicious = not suspicious
        if self._isolating is None:
            if not suspicious:
                return False
            if self._width > 1:
                _log.warning("suspects are taken one by one", queue=delivery.queue, deliveries=delivery.deliveries)
            self._isolating = asyncio.create_task(self._isolate())
        self._withheld.append(delivery)
        self._change.set()
        return True

    def settled(self) -> None:
        """Something was settled."""
        self._change.set()
        if self._width < self._prefetch and self._unsuspicious and not self._stopped:
            more, self._width = self._prefetch - self._width, self._prefetch
            self._widening = asyncio.create_task(self._widen(more))

    async def stop(self) -> None:
        """No more is to come; what is withheld is still handed out, as long as it is settled."""
        self._stopped = True
        self._change.set()
        if self._widening is not None:
            await asyncio.wait([self._widening])

    def close(self) -> None:
        """The channel is gone."""
        self._withheld.clear()
        self._round.clear()
        for task in (self._isolating, self._widening):
            if task is not None:
                task.cancel()

    async def _isolate(self) -> None:
        await self._settled_in_time(self._channel.unacked - {_tag(each) for each in self._withheld})
        while any(map(_suspicious, self._withheld)):
            await self._all_come()
            here, self._withheld = self._withheld, []
            self._round = [each for each in here if _suspicious(each)]
            random.shuffle(self._round)
            self._round.sort(key=lambda each: each.deliveries, reverse=True)
            await self._turn([each for each in here if not _suspicious(each)])
            while self._round:
                await self._turn([self._round.pop()])
        self._hand_out(self._withheld)
        self._withheld = []
        self._isolating = None

    async def _turn(self, deliveries: Sequence[Delivery]) -> None:
        self._hand_out(deliveries)
        await self._settled_in_time([_tag(each) for each in deliveries])

    async def _settled_in_time(self, tags: Collection[int]) -> None:
        end = _now() + PATIENCE
        while not self._channel.unacked.isdisjoint(tags):
            if not await self._changes_before(end):
                if self._stopped:  # whoever stops settles at once or not at all: the rest comes again elsewhere
                    self._withheld, self._round = [], []
                return

    async def _all_come(self) -> None:
        """Until nothing more comes, for now or because it holds all that it may; under steady traffic, for a while."""
        end = _now() + PATIENCE
        while not self._stopped and len(self._channel.unacked) < self._width:
            if not await self._changes_before(min(_now() + QUIET, end)):
                return

    async def _changes_before(self, end: float) -> bool:
        self._change.clear()
        try:
            async with asyncio.timeout_at(end):
                await self._change.wait()
        except TimeoutError:
            return False
        return True

    async def _widen(self, more: int) -> None:
        try:
            await self._channel.consume(more)
        except BrokerUnavailable:
            self._channel.finish()


def _suspicious(delivery: Delivery) -> bool:
    return delivery.deliveries >= SUSPECT


def _tag(delivery: Delivery) -> int:
    tag: int = delivery.token[1]
    return tag


def _now() -> float:
    return asyncio.get_running_loop().time()
