"""Isolation of what may kill its consumers, so that it takes no neighbours with it.

When a consumer dies, everything that it held comes back with a higher delivery count, the innocent as well as the
culprit. What has come back twice is a suspect: it is withheld until all else is settled, and then suspects are handed
out one at a time, the least suspicious first and in random order among equals. So a culprit dies with what it was
delivered together with at most a few times, and half of that is settled before its turn each time; alone it goes on
to the delivery limit. Meanwhile the consumer takes no more than one message at a time, until an unsuspicious one has
gone through.

To narrow or widen is to cancel a consumer and, once all is settled, to start another. In between its node must not die:
what a cancelled consumer has not acknowledged then belongs to nobody until the queue has another leader (seen on
RabbitMQ 3.10.8; https://github.com/rabbitmq/rabbitmq-server/issues/15473 tells of the like on 4.x). So where nothing
is settled for a while, as in an outage, all is given back, and the next consumer is narrow from the start.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from ingest.domain.errors import BrokerUnavailable
from ingest.domain.messages import Delivery

SUSPECT: Final = 2
"""Returns that make a suspect: one may happen to anybody."""
PATIENCE: Final = 3.0
"""Seconds for which a cancelled consumer waits until something more of what it holds is settled."""

_log = structlog.get_logger(__name__)


class Channel(Protocol):
    """What is needed of a channel that consumes."""

    @property
    def unacked(self) -> int: ...

    async def consume(self, prefetch: int) -> None: ...

    async def cancel(self) -> None: ...

    def finish(self) -> None: ...


class Suspects:
    """Watches one channel, which consumes already.

    Args:
        channel: is narrowed and widened.
        prefetch: its usual width.
        hand_out: gets one suspect at a time.
        width: how many deliveries at a time it takes now, `prefetch` or 1.
        give_back: ends the channel; the next consumer takes one delivery at a time.
    """

    def __init__(
        self,
        channel: Channel,
        prefetch: int,
        hand_out: Callable[[Delivery], None],
        width: int,
        give_back: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._give_back = give_back
        self._prefetch = prefetch
        self._hand_out = hand_out
        self._withheld: list[Delivery] = []
        self._width = self._wanted = width
        self._changing = False
        self._unsuspicious = False
        self._stopped = False
        self._turn = asyncio.Event()
        self._task = asyncio.create_task(self._regulate())

    @property
    def waiting(self) -> bool:
        """Whether suspects wait for their turn."""
        return bool(self._withheld)

    def withhold(self, delivery: Delivery) -> bool:
        """A delivery has come; whether it is a suspect, to be handed out later."""
        if delivery.deliveries < SUSPECT:
            self._unsuspicious = True
            return False
        if self._wanted != 1:
            _log.warning("suspects are taken one by one", queue=delivery.queue, deliveries=delivery.deliveries)
        self._wanted = 1
        self._unsuspicious = False
        self._withheld.append(delivery)
        self.settled()
        return True

    def settled(self) -> None:
        """Something was settled, or has come."""
        if self._withheld:
            nothing_else_comes = self._changing or self._width == 1
            if nothing_else_comes and self._channel.unacked == len(self._withheld):
                self._hand_out(self._next())
        elif self._wanted == self._width == 1 and self._unsuspicious:
            self._wanted = self._prefetch
        if self._changing or self._wanted != self._width:
            self._turn.set()

    async def stop(self) -> None:
        """Take no more; suspects that are here are still handed out."""
        self._stopped = True
        self._turn.set()
        await asyncio.wait([self._task])

    def close(self) -> None:
        """The channel is gone."""
        self._withheld.clear()
        self._task.cancel()

    def _next(self) -> Delivery:
        least = min(delivery.deliveries for delivery in self._withheld)
        chosen = random.choice([each for each in self._withheld if each.deliveries == least])  # noqa: S311 - fairness
        self._withheld.remove(chosen)
        return chosen

    async def _regulate(self) -> None:
        """Another width takes another consumer: cancel, let all be settled, consume anew."""
        try:
            while True:
                await self._until(lambda: self._wanted != self._width)
                await self._channel.cancel()
                self._changing = True
                self.settled()
                await self._drain()
                if self._stopped:
                    return
                self._changing = False
                self._width = self._wanted
                await self._channel.consume(self._width)
        except TimeoutError:
            _log.warning("nothing is settled, suspects go back to their queue", held=self._channel.unacked)
            self._give_back()
        except BrokerUnavailable:
            self._channel.finish()

    async def _drain(self) -> None:
        """Until nothing is unacknowledged. Raises TimeoutError where that comes no nearer."""
        while not self._stopped and self._channel.unacked:
            async with asyncio.timeout(PATIENCE):
                await self._fewer_than(self._channel.unacked)

    async def _fewer_than(self, unacked: int) -> None:
        await self._until(lambda: self._channel.unacked < unacked)

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not self._stopped and not reached():
            self._turn.clear()
            await self._turn.wait()
