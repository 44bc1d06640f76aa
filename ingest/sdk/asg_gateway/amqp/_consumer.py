"""A consumer of events that handles each one once."""

import asyncio
import logging
import math
import ssl
from typing import Final

from asg_gateway.amqp._connection import Address, Backoff
from asg_gateway.amqp._dedupe import Dedupe, DedupeUnavailableError, Handler, NoDedupe
from asg_gateway.amqp._parking import ParkingPublisher, advice
from asg_gateway.amqp._processing import PARKED, ConsumerStats, Processor, Rules
from asg_gateway.amqp._signals import on_signals
from asg_gateway.amqp._subscription import Subscription
from asg_gateway.amqp._threads import Threads

_RECONNECT: Final = (0.5, 30.0)
_RETRY: Final = (0.5, 60.0)
"""The first and the longest pause before a further attempt at an event, in seconds."""

log = logging.getLogger("asg_gateway.amqp")


class Consumer:
    """Calls a handler for each event of a queue, at least once; with `dedupe`, its effects happen once.

    An event is acknowledged after its transaction was committed. If the handler raises, the event is tried again after
    a pause, while others go on: their order is not kept. After `max_attempts` failures it is parked: a copy goes to the
    queue `<queue>.parked`. If the handler raises `Park`, it is parked at once. If the handler crashes the process, the
    event is handled alone at the next deliveries, and parked after `max_attempts` of them.

    Args:
        url: `amqp[s]://user:password@host:port,host2:port2/vhost`.
        queue: the queue, such as `consensus.tasks` or `consensus.tasks.parked`.
        handler: with `SqlDedupe` and `SqlAlchemyDedupe`, called as `handler(event, connection)`, otherwise as
            `handler(event)`. A function runs in a thread, a coroutine function in the event loop.
        dedupe: `SqlDedupe`, `SqlAlchemyDedupe`, or, for tests, `MemoryDedupe`. None: the handler is idempotent, and
            called for each copy.
        prefetch: the most events that are held, those that wait for a further attempt included.
        concurrency: the most handlers that run at once.
        max_attempts: failures of the handler after which an event is parked; None retries without end.
        ssl_context: for `amqps`; by default the system's certificates are trusted.
        drain_timeout: seconds that running handlers have to end after SIGTERM, SIGINT or `stop`.
        handle_signals: whether SIGTERM and SIGINT stop the consumer, if it runs in the main thread.

    Raises:
        TypeError: the handler does not suit `dedupe`.
        ValueError: an argument is invalid.
    """

    def __init__(
        self,
        url: str,
        queue: str,
        handler: Handler,
        *,
        dedupe: Dedupe | None,
        prefetch: int = 20,
        concurrency: int = 4,
        max_attempts: int | None = 10,
        ssl_context: ssl.SSLContext | None = None,
        drain_timeout: float = 25.0,
        handle_signals: bool = True,
    ) -> None:
        if not isinstance(queue, str) or not queue:
            raise ValueError("queue must be the name of a queue, such as consensus.tasks")
        if not isinstance(dedupe, Dedupe | None):
            raise TypeError("dedupe must be SqlDedupe(...), SqlAlchemyDedupe(...), MemoryDedupe() or None")
        if not 0 <= drain_timeout < math.inf:
            raise ValueError("drain_timeout must be a number of seconds, at least 0")
        _check_count("concurrency", concurrency)
        _check_count("prefetch", prefetch, 65_535)
        if max_attempts is not None:
            _check_count("max_attempts", max_attempts)
        if prefetch < concurrency:
            raise ValueError("prefetch must be at least concurrency: a handler needs an event that is held")
        self._address = Address(url, ssl_context)
        self._dedupe = dedupe or NoDedupe()
        self._dedupe.check(handler)
        self._rules = Rules(queue, handler, self._dedupe, max_attempts, lambda: Backoff(*_RETRY))
        self._prefetch = prefetch
        self._concurrency = concurrency
        self._drain_timeout = drain_timeout
        self._handle_signals = handle_signals
        self._run: _Run | None = None
        self.stats = ConsumerStats()

    async def run(self) -> None:
        """Consume until SIGTERM, SIGINT or `stop`; then let running handlers end, and return.

        A second SIGTERM, SIGINT or `stop` ends it at once. A blocking handler cannot be interrupted: its thread goes
        on, and its transaction is committed or rolled back as usual, but its event is not acknowledged.

        Raises:
            BrokerRefusedError: at the first connection, RabbitMQ refuses the login or a permission, or the queue or its
                parking queue does not exist. An outage is logged and waited for.
            Exception: the dedupe strategy cannot be used as it is configured.
            RuntimeError: it is running already.
        """
        if self._run is not None:
            raise RuntimeError("this consumer is running already")
        self._run = run = _Run(self._rules, self._address, self._prefetch, self._concurrency, self.stats)
        try:
            if self._handle_signals:
                with on_signals(run.stop):
                    await run.run(self._drain_timeout)
            else:
                await run.run(self._drain_timeout)
        finally:
            self._run = None

    def run_forever(self) -> None:
        """Do as `run`, in an event loop of its own, for a program that only consumes."""
        asyncio.run(self.run())

    def stop(self) -> None:
        """Stop as SIGTERM does. It can be called from any thread; it returns at once."""
        if (run := self._run) is not None:
            run.loop.call_soon_threadsafe(run.stop)


class _Run:
    """One call of `Consumer.run`."""

    def __init__(self, rules: Rules, address: Address, prefetch: int, concurrency: int, stats: ConsumerStats) -> None:
        self.loop = asyncio.get_running_loop()
        self._rules = rules
        self._threads = Threads(concurrency, rules.dedupe.release_thread)
        self._parking = ParkingPublisher(address, rules.source)
        required = [(f"{rules.source}{PARKED}", advice())] if rules.max_attempts is not None else []
        self._processor = Processor(
            rules, concurrency, self._threads.run, stats, lambda *ended: self._subscription.ended(*ended)
        )
        self._subscription = Subscription(
            address,
            rules.queue,
            prefetch,
            self._processor.accept,
            backoff=Backoff(*_RECONNECT),
            cautious=True,
            parking=self._parking,
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

    async def run(self, drain_timeout: float) -> None:
        consuming = asyncio.create_task(self._consume())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([consuming, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not consuming.done():
                await self._drain(drain_timeout)
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
        backoff = Backoff(*_RECONNECT)
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


def _check_count(name: str, value: int, most: int = 1_000_000) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{name} must be a whole number from 1 to {most}")
