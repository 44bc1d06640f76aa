"""The reports about a producer's own submissions, as an asynchronous iterator."""

import asyncio
import logging
import math
import ssl
from collections import OrderedDict
from types import TracebackType
from typing import Final

from asg_gateway._backoff import Backoff
from asg_gateway._errors import InvalidEventError
from asg_gateway.amqp._connection import Address
from asg_gateway.amqp._consuming.subscription import RabbitDelivery, Subscription
from asg_gateway.amqp._decoding import decode
from asg_gateway.amqp._events import SubmissionDuplicate, SubmissionRejected

_PREFETCH: Final = 20
_REMEMBERED: Final = 10_000
"""Reports of which no copy is returned, at most."""

log = logging.getLogger("asg_gateway.amqp")


class Feedback:
    """Iterates over the reports in the queue `feedback.<cust_id>`: rejected submissions and duplicates.

    ::

        async with Feedback(url) as feedback:
            async for report in feedback:
                print(report.key, report)

    A report is acknowledged when the loop asks for the next one, and when `async with` ends without an exception. After
    an exception it is delivered again. A lost connection is opened again.

    Args:
        url: `amqp[s]://user:password@host:port,host2:port2/vhost`.
        cust_id: the customer; by default the user of the URL.
        timeout: the iteration ends if nothing arrives for so many seconds; None waits without end.
        ssl_context: for `amqps`; by default the system's certificates are trusted.

    Raises:
        ValueError: an argument is invalid.
    """

    def __init__(
        self,
        url: str,
        cust_id: str | None = None,
        *,
        timeout: float | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        if timeout is not None and not 0 < timeout < math.inf:
            raise ValueError("timeout must be a positive number of seconds, or None")
        self._address = Address(url, ssl_context)
        self._queue = f"feedback.{cust_id or self._address.user}"
        self._timeout = timeout
        self._current: tuple[str, RabbitDelivery] | None = None
        self._finished: OrderedDict[str, None] = OrderedDict()

    async def __aenter__(self) -> "Feedback":
        """Connect. Raises BrokerRefusedError; an outage is logged and waited for."""
        self._deliveries: asyncio.Queue[RabbitDelivery | None] = asyncio.Queue()
        advice = "the operator creates it with `ingest producer add`"
        self._subscription = Subscription(
            self._address, self._queue, _PREFETCH, self._deliveries.put, backoff=Backoff(0.5, 30.0), advice=advice
        )
        self._consuming = asyncio.create_task(self._subscription.run())
        self._consuming.add_done_callback(lambda _: self._deliveries.put_nowait(None))
        connected = asyncio.create_task(self._subscription.connected.wait())
        try:
            await asyncio.wait([self._consuming, connected], return_when=asyncio.FIRST_COMPLETED)
            if self._consuming.done():
                self._consuming.result()
        except BaseException:
            await self._close()
            raise
        finally:
            connected.cancel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self._finish()
        await self._close()

    def __aiter__(self) -> "Feedback":
        return self

    async def __anext__(self) -> SubmissionRejected | SubmissionDuplicate:
        """Return the next report. Raises what the subscription raised if it has ended, RuntimeError after the end."""
        await self._finish()
        while True:
            try:
                async with asyncio.timeout(self._timeout):
                    delivery = await self._deliveries.get()
            except TimeoutError:
                raise StopAsyncIteration from None
            if delivery is None:
                self._deliveries.put_nowait(None)  # for the next call
                raise self._end()
            if delivery.alive and (report := await self._report(delivery)) is not None:
                self._current = (report.id, delivery)
                return report

    def _end(self) -> BaseException:
        """Return why nothing arrives any more."""
        error = None if self._consuming.cancelled() else self._consuming.exception()
        return error or RuntimeError("this Feedback is closed: iterate inside `async with`")

    async def _report(self, delivery: RabbitDelivery) -> SubmissionRejected | SubmissionDuplicate | None:
        """Return what a message reports. Acknowledge and skip copies, and what is not a report."""
        try:
            event = decode(delivery.body)
        except InvalidEventError as error:
            log.error("invalid_report queue=%s message_id=%s error=%s", self._queue, delivery.message_id, error)
            await delivery.ack()
            return None
        if isinstance(event, SubmissionRejected | SubmissionDuplicate) and event.id not in self._finished:
            return event
        await delivery.ack()
        return None

    async def _finish(self) -> None:
        """Acknowledge the report that the loop had last."""
        if self._current is None:
            return
        (event_id, delivery), self._current = self._current, None
        self._finished[event_id] = None
        if len(self._finished) > _REMEMBERED:
            self._finished.popitem(last=False)
        await delivery.ack()

    async def _close(self) -> None:
        self._consuming.cancel()
        await asyncio.wait([self._consuming])
        await self._subscription.close()
