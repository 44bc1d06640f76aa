"""A consumer of events that handles each one once."""

import asyncio
import contextlib
import math
import ssl
from typing import Final

from asg_gateway._backoff import Backoff
from asg_gateway.amqp._connection import Address
from asg_gateway.amqp._consuming.rules import PARKED, ConsumerStats, Limits, Rules
from asg_gateway.amqp._consuming.running import Run
from asg_gateway.amqp._consuming.signals import on_signals
from asg_gateway.amqp._dedupe.strategy import Dedupe, Handler, NoDedupe

_RETRY: Final = (0.5, 60.0)
"""The first and the longest pause before a further attempt at an event, in seconds."""


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
        parked_pause: seconds after the parking of an event before a consumer of its parking queue handles it. An event
            that it parks again is handled once more after that.
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
        parked_pause: float = 60.0,
        drain_timeout: float = 25.0,
        handle_signals: bool = True,
    ) -> None:
        if not isinstance(queue, str) or not queue:
            raise ValueError("queue must be the name of a queue, such as consensus.tasks")
        if not isinstance(dedupe, Dedupe | None):
            raise TypeError("dedupe must be SqlDedupe(...), SqlAlchemyDedupe(...), MemoryDedupe() or None")
        for name, seconds in (("parked_pause", parked_pause), ("drain_timeout", drain_timeout)):
            if not 0 <= seconds < math.inf:
                raise ValueError(f"{name} must be a number of seconds, at least 0")
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
        self._limits = Limits(prefetch, concurrency, parked_pause if queue.endswith(PARKED) else 0.0, drain_timeout)
        self._handle_signals = handle_signals
        self._run: Run | None = None
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
        self._run = run = Run(self._rules, self._limits, self._address, self.stats)
        try:
            if self._handle_signals:
                with on_signals(run.stop):
                    await run.run()
            else:
                await run.run()
        finally:
            self._run = None

    def run_forever(self) -> None:
        """Do as `run`, in an event loop of its own, for a program that only consumes."""
        asyncio.run(self.run())

    def stop(self) -> None:
        """Stop as SIGTERM does. It can be called from any thread; it returns at once."""
        if (run := self._run) is not None:
            with contextlib.suppress(RuntimeError):  # its event loop was closed meanwhile
                run.loop.call_soon_threadsafe(run.stop)


def _check_count(name: str, value: int, most: int = 1_000_000) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{name} must be a whole number from 1 to {most}")
