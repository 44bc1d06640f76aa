"""The outage brake: stops a worker's attempts while store or broker is away, and finds out when they are back."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import structlog

from ingest.domain.errors import Unavailable
from ingest.domain.ports import Consumer

PAUSES: Final = (0.1, 5.0)
"""First and longest pause before another try, in seconds."""

_log = structlog.get_logger(__name__)


class BreakerState(msgspec.Struct, frozen=True):
    """`since`: monotonic seconds, None while the brake is off; `tries`: attempts let through since then."""

    since: float | None = None
    tries: int = 0

    @property
    def on(self) -> bool:
        return self.since is not None


class CircuitBreaker:
    """One for all queues of a worker: they share store and publisher.

    On after an attempt that got nowhere, off after one that got somewhere. While it is on, one attempt at a time is let
    through, after a pause that doubles: the rest waits, so an outage costs a call every few seconds, whatever is held.
    """

    def __init__(self) -> None:
        self.state = BreakerState()
        self._pause = PAUSES[0]
        self._trier: asyncio.Task[object] | None = None
        self._stopped = False
        self._change = asyncio.Event()

    async def passed(self) -> bool:
        """Wait until an attempt may be made, whose outcome is then to be told; False: it is on, and time to stop."""
        while self.state.on:
            if self._stopped:
                return False
            if self._trier is not None:
                await self._changes_within(None)
                continue
            self._trier = asyncio.current_task()
            try:
                await self.over_within(self._pause * _jitter())
            except BaseException:
                self._give_up()
                raise
            if self.state.on and not self._stopped:
                self.state = BreakerState(self.state.since, self.state.tries + 1)
                return True
            self._give_up()
        return True

    def tell(self, got_somewhere: bool | None) -> None:
        """The outcome of an attempt; None: there was nothing to attempt."""
        if not self.state.on and self._trier is None and got_somewhere is not False:
            return
        mine = self._trier is asyncio.current_task()
        if got_somewhere is False:
            if not self.state.on:
                _log.warning("brake on: store or broker is away, one attempt at a time until one gets somewhere")
                self.state = BreakerState(time.monotonic())
            elif mine:
                self._pause = min(self._pause * 2, PAUSES[1])
        elif got_somewhere and self.state.since is not None:
            seconds = round(time.monotonic() - self.state.since, 1)
            _log.warning("brake off", seconds=seconds, tries=self.state.tries)
            self.state = BreakerState()
            self._pause = PAUSES[0]
        if mine:
            self._trier = None
        self._changed()

    def stop(self) -> None:
        """Nobody is to wait any more."""
        self._stopped = True
        self._changed()

    async def on_for(self, seconds: float) -> bool:
        """Wait until it has been on for so long without a break; False: it is time to stop."""
        while not self._stopped:
            if self.state.since is None:
                await self._changes_within(None)
                continue
            left = self.state.since + seconds - time.monotonic()
            if left <= 0:
                return True
            await self._changes_within(left)
        return False

    async def over_within(self, seconds: float) -> bool:
        """Sleep, but no longer than until the brake is off or it is time to stop; whether that came first."""
        end = time.monotonic() + seconds
        while self.state.on and not self._stopped and (left := end - time.monotonic()) > 0:
            await self._changes_within(left)
        return not self.state.on or self._stopped

    async def _changes_within(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._change.wait()
        except TimeoutError:
            return

    def _give_up(self) -> None:
        self._trier = None
        self._changed()

    def _changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()


async def keep_hands_free(
    breaker: CircuitBreaker, consumers: Sequence[Consumer], ready: Sequence[Callable[[], Awaitable[None]]], hold: float
) -> None:
    """Give everything back where an outage lasts longer than `hold` seconds, and consume again once all is ready.

    What is held too long makes RabbitMQ close the channel (`consumer_timeout`, 30 minutes by default), again and again,
    and each time counts towards the delivery limit. Given back once, it counts once, however long the outage.
    """
    while await breaker.on_for(hold):
        _log.warning("the outage lasts, submissions go back to their queues until it is over", seconds=hold)
        for consumer in consumers:
            await consumer.pause()
        pause = PAUSES[0]
        while not await _all(ready) and not await breaker.over_within(pause * _jitter()):
            pause = min(pause * 2, PAUSES[1])
        for consumer in consumers:
            await consumer.resume()
        breaker.tell(True)


async def _all(ready: Sequence[Callable[[], Awaitable[None]]]) -> bool:
    try:
        for each in ready:
            await each()
    except Unavailable:
        return False
    return True


def _jitter() -> float:
    return random.uniform(0.5, 1.5)  # noqa: S311 - not a secret
