"""Deliveries without a broker, for tests of what a consumer does with them."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from asg_gateway import BrokerUnavailableError
from asg_gateway._backoff import Backoff
from asg_gateway.amqp import ConsumerStats, Dedupe, Event
from asg_gateway.amqp._consuming.processing import Processor
from asg_gateway.amqp._consuming.rules import Rules
from asg_gateway.amqp._consuming.threads import Threads
from asg_gateway.amqp._dedupe.strategy import NoDedupe
from asg_gateway.amqp.testing import encode


@dataclass
class FakeDelivery:
    """A delivery that notes what happens to it.

    Attributes:
        failures: how often parking fails.
        parking_error: what it raises then.
        ack_errors: what the next acknowledgements raise.
        at_parking: called when it is parked.
    """

    body: bytes
    earlier_deliveries: int = 0
    alive: bool = True
    acks: int = 0
    parked: list[tuple[BaseException, int]] = field(default_factory=list)
    failures: int = 0
    parking_error: Exception = field(default_factory=lambda: BrokerUnavailableError("no confirm"))
    ack_errors: list[Exception] = field(default_factory=list)
    wait: float = 0.0
    at_parking: Callable[[], Awaitable[None]] | None = None

    async def ack(self) -> bool:
        if self.ack_errors:
            raise self.ack_errors.pop()
        self.acks += self.alive
        return self.alive

    async def park(self, error: BaseException, attempts: int) -> None:
        if self.failures:
            self.failures -= 1
            raise self.parking_error
        self.parked.append((error, attempts))
        if self.at_parking is not None:
            await self.at_parking()


def delivery(event: Event, earlier: int = 0, **fields: Any) -> FakeDelivery:
    return FakeDelivery(encode(event), earlier, **fields)


class Pauses:
    """A clock that a test moves: pauses end when the test says so."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._go_on = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await self._go_on.wait()

    def end(self) -> None:
        """End all pauses now."""
        self._go_on.set()
        self._go_on = asyncio.Event()


class Bench:
    """A processor with everything around it."""

    def __init__(
        self,
        handler: Any,
        *,
        dedupe: Dedupe | None = None,
        max_attempts: int | None = 3,
        concurrency: int = 2,
        queue: str = "consensus.tasks",
    ) -> None:
        self.pauses = Pauses()
        self.stats = ConsumerStats()
        self.ended: list[tuple[bool, bool]] = []
        rules = Rules(
            queue,
            handler,
            dedupe or NoDedupe(),
            max_attempts,
            lambda: Backoff(1.0, 4.0, jitter=lambda: 1.0),
            self.pauses.sleep,
        )
        self.processor = Processor(
            rules, concurrency, Threads(concurrency).run, self.stats, lambda *ended: self.ended.append(ended)
        )

    async def accept(self, *deliveries: FakeDelivery) -> None:
        for each in deliveries:
            await self.processor.accept(each)
        await settle()


async def settle() -> None:
    """Let everything run that is ready."""
    for _ in range(30):
        await asyncio.sleep(0)
