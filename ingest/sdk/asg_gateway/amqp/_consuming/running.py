"""One run of a consumer: everything that it opens, and its end."""

import asyncio
import logging
from typing import Final

from asg_gateway._backoff import Backoff
from asg_gateway.amqp._connection import Address
from asg_gateway.amqp._consuming.parking import ParkingPublisher, advice
from asg_gateway.amqp._consuming.processing import Processor
from asg_gateway.amqp._consuming.rules import PARKED, ConsumerStats, Limits, Rules
from asg_gateway.amqp._consuming.subscription import Subscription
from asg_gateway.amqp._consuming.threads import Threads
from asg_gateway.amqp._dedupe.strategy import DedupeUnavailableError

RECONNECT: Final = (0.5, 30.0)
"""The first and the longest pause before an attempt to connect, in seconds."""

log = logging.getLogger("asg_gateway.amqp")


class Run:
    """One call of `Consumer.run`."""

    def __init__(self, rules: Rules, limits: Limits, address: Address, stats: ConsumerStats) -> None:
        self.loop = asyncio.get_running_loop()
        self._rules = rules
        self._drain_timeout = limits.drain_timeout
        self._threads = Threads(limits.concurrency, rules.dedupe.release_thread)
        self._parking = ParkingPublisher(address, rules.source)
        required = [(f"{rules.source}{PARKED}", advice())] if rules.max_attempts is not None else []
        self._processor = Processor(
            rules, limits.concurrency, self._threads.run, stats, lambda *ended: self._subscription.ended(*ended)
        )
        self._subscription = Subscription(
            address,
            rules.queue,
            limits.prefetch,
            self._processor.accept,
            backoff=Backoff(*RECONNECT),
            cautious=True,
            parking=self._parking,
            parked_pause=limits.parked_pause,
            required=required,
        )
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()

    def stop(self) -> None:
        """Stop; at the second call, at once."""
        if self._stopping.is_set():
            log.warning("consumer_stops_at_once queue=%s", self._rules.queue)
            self._processor.abort()
            self._at_once.set()
        self._stopping.set()

    async def run(self) -> None:
        """Do as `Consumer.run`."""
        consuming = asyncio.create_task(self._consume())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([consuming, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not consuming.done():
                await self._drain(self._drain_timeout)
        finally:
            self._processor.abort()
            consuming.cancel()
            stopping.cancel()
            await asyncio.wait([consuming])
            await self._subscription.close()
            await self._parking.close()
            self._threads.close()
        if not consuming.cancelled():
            consuming.result()

    async def _consume(self) -> None:
        backoff = Backoff(*RECONNECT)
        while True:
            try:
                await self._rules.dedupe.open(self._rules.source, self._threads.run)
                break
            except DedupeUnavailableError as error:
                log.warning("dedupe_unavailable queue=%s error=%s", self._rules.queue, error)
                await asyncio.sleep(backoff.next())
        await self._subscription.run()

    async def _drain(self, seconds: float) -> None:
        log.info("consumer_drains queue=%s seconds=%g", self._rules.queue, seconds)
        draining = asyncio.create_task(self._processor.drain(seconds))
        at_once = asyncio.create_task(self._at_once.wait())
        try:
            await asyncio.wait([draining, at_once], return_when=asyncio.FIRST_COMPLETED)
        finally:
            at_once.cancel()
        if draining.done() and (cut := draining.result()):
            log.warning("drain_timeout_exceeded queue=%s unfinished=%d", self._rules.queue, cut)
        draining.cancel()
