"""`Producer`: publishes tasks and batches to RabbitMQ."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from asg_gateway._backoff import Backoff
from asg_gateway._errors import ASGGatewayError
from asg_gateway.amqp._connection import Address
from asg_gateway.amqp._producing.link import AioPikaConnector, Connector, Link
from asg_gateway.amqp._producing.many import Pair, submit_each
from asg_gateway.amqp._producing.messages import NOW, Composer, Message, Origin, SubmittedBatch, SubmittedTask
from asg_gateway.amqp._producing.publisher import Publisher
from asg_gateway.amqp._producing.room import Room

DEADLINE: Final = 120.0
MAX_IN_FLIGHT: Final = 1_000
CONFIRM_TIMEOUT: Final = 30.0
_MAX_BYTES: Final = 16 * 1024 * 1024
"""Bytes of bodies in flight."""


class Producer:
    """Publishes tasks and batches to RabbitMQ, and waits until it has confirmed them. It belongs to one event loop.

    A confirmed submission is durable. Whether the service accepts it, the events say: `task.accepted`,
    `submission.duplicate`, `submission.rejected`.

    Whatever fails is published again, with the same key and timestamp, so the service drops copies. If a call fails
    nevertheless, repeat it with the same key. After a crash, repeat it with the same `created_at`, too: store it with
    your record of the task.

    It connects with the first submission. The password never appears in errors and logs.

    Args:
        url: `amqp[s]://user:password@host:5671,host2:5671/vhost`. Special characters of user, password and virtual host
            must be percent-encoded.
        cust_id: the customer; by default, and normally, the user of the URL.
        ssl_context: for `amqps`; by default the system's certificates are trusted.
        deadline: seconds for a submission, with all attempts. Time in which a call waits for its turn, while others are
            confirmed, does not count.
        max_in_flight: how many submissions may be unconfirmed. Further calls wait for their turn, as they do while the
            submissions in flight have 16 MiB.
        confirm_timeout: seconds for one attempt.

    Raises:
        ValueError: an argument is invalid.
    """

    def __init__(
        self,
        url: str,
        cust_id: str | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        deadline: float = DEADLINE,
        max_in_flight: int = MAX_IN_FLIGHT,
        confirm_timeout: float = CONFIRM_TIMEOUT,
    ) -> None:
        address = Address(url, ssl_context)
        self._composer = Composer(address.user if cust_id is None else cust_id, address.user)
        connector = AioPikaConnector(address, f"asg-gateway producer {self.cust_id}")
        self._prepare(connector, deadline, max_in_flight, confirm_timeout)

    def _prepare(self, connector: Connector, deadline: float, max_in_flight: int, confirm_timeout: float) -> None:
        if not deadline > 0 or not confirm_timeout > 0:
            raise ValueError("deadline and confirm_timeout must be greater than 0 seconds")
        if max_in_flight < 1:
            raise ValueError("max_in_flight must be 1 or more")
        self._deadline = deadline
        self._max_in_flight = max_in_flight
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._link = Link(connector, Backoff(0.2, 5.0))
        pauses = partial(Backoff, 0.05, 5.0)
        self._publisher = Publisher(self._link, Room(max_in_flight, _MAX_BYTES), deadline, confirm_timeout, pauses)

    @property
    def cust_id(self) -> str:
        """The customer."""
        return self._composer.cust_id

    async def submit(
        self,
        task: Mapping[str, Any],
        *,
        key: str,
        created_at: datetime | int | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> SubmittedTask:
        """Submit one task. Many calls at once share the channel, so `asyncio.gather` is fast.

        Args:
            task: the body, as for `POST /v1/tasks`. Its `idempotency_key`, if it has one, must be `key`.
            key: the idempotency key, 1 to 255 printable characters and at most 255 bytes in UTF-8.
            created_at: when the submission was made: a datetime with a time zone, or whole Unix seconds; now by
                default.
            traceparent: a W3C trace context, which the events continue.
            tracestate: belongs to `traceparent`.

        Raises:
            InvalidTaskError: the service would certainly reject the task. Nothing was published.
            BrokerUnavailableError: RabbitMQ did not confirm it before the deadline; it may be published.
            BrokerRefusedError: RabbitMQ refuses login or permission, or something does not exist.
            ValueError, TypeError: the key or another argument is invalid, or JSON cannot represent a value.
            RuntimeError: the producer is closed, or belongs to another event loop.
        """
        message, submitted = self._composer.task(task, key, _origin(created_at, traceparent, tracestate))
        await self._publish(message)
        return submitted

    async def submit_batch(
        self,
        tasks: Iterable[Mapping[str, Any]],
        *,
        key: str,
        callback_url: str | None = None,
        created_at: datetime | int | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> SubmittedBatch:
        """Submit tasks; the service accepts all or none of them.

        Above 1,000 tasks or 8 MiB they are published in parts, each with its own key and id, and each all or nothing.
        If the call fails, some parts may be published: repeat it with the same tasks and key.

        Args:
            tasks: the tasks. Those without an `idempotency_key` get ids from the batch and their index.
            key: the idempotency key of the batch, as of `submit`.
            callback_url: a registered webhook URL for each task without one.
            created_at, traceparent, tracestate: as of `submit`.

        Raises:
            InvalidTaskError: the service would certainly reject it; the errors have the indexes of the tasks. Nothing
                was published. Otherwise as `submit`; `idempotency_key` of an error is `key`.
        """
        origin = _origin(created_at, traceparent, tracestate)
        messages, submitted = self._composer.batch(tasks, key, callback_url, origin)
        outcomes = await asyncio.gather(*[self._publish(message) for message in messages], return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, ASGGatewayError):
                outcome.idempotency_key = key
            if outcome is not None:
                raise outcome
        return submitted

    async def submit_many(
        self, tasks: Iterable[Pair] | AsyncIterable[Pair], *, created_at: datetime | int | None = None
    ) -> AsyncGenerator[SubmittedTask, None]:
        """Submit any number of tasks, up to `max_in_flight` at a time. Memory does not grow with their number.

        Args:
            tasks: (key, task) pairs. An iterable is read in the event loop, so it should not block; use an
                asynchronous one, or `SyncProducer`, if it does.
            created_at: as of `submit`, for all of them.

        Yields:
            The result of each task, in order.

        Raises:
            As `submit`, in the task's turn, after the results of those before it. The `idempotency_key` of the error is
            that of the task. Tasks after it may be published: repeat the call with the same keys.
        """

        def submit(key: str, task: Mapping[str, Any]) -> Any:
            return self.submit(task, key=key, created_at=created_at)

        async for submitted in submit_each(submit, tasks, self._max_in_flight):
            yield submitted

    async def connect(self) -> None:
        """Connect now, to find a wrong URL or password early. Optional; one attempt.

        Raises:
            BrokerUnavailableError, BrokerRefusedError: there is no connection.
        """
        self._check_usable()
        await self._link.shared()

    async def close(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - calls in progress need the time
        """Wait for the calls in progress, and close the connection.

        Leaving `async with` calls it. If that is because of Ctrl-C or a cancellation, it does not wait.

        Args:
            timeout: for how many seconds to wait; None for the deadline. Calls that are still in progress then raise
                BrokerUnavailableError.
        """
        if self._closed:
            return
        self._check_usable()
        self._closed = True
        try:
            async with asyncio.timeout(self._deadline if timeout is None else timeout):
                await self._idle.wait()
        except TimeoutError:
            pass  # the calls in progress fail when the link closes
        finally:
            await self._link.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close(time_to_close(error))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._link)!r}, cust_id={self.cust_id!r})"

    async def _publish(self, message: Message) -> None:
        self._check_usable()
        self._calls += 1
        self._idle.clear()
        try:
            await self._publisher.publish(message)
        except ASGGatewayError as error:
            error.idempotency_key = message.key
            raise
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    def _check_usable(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("this producer belongs to another event loop: create a producer in each event loop")
        if self._closed:
            raise RuntimeError("this producer is closed: create another one")


def time_to_close(error: BaseException | None) -> float | None:
    """Return the `timeout` of `close` when the producer's block ends with this error."""
    return None if error is None or isinstance(error, Exception) else 0.0


def _origin(created_at: datetime | int | None, traceparent: str | None, tracestate: str | None) -> Origin:
    if created_at is None and traceparent is None and tracestate is None:
        return NOW
    return Origin(created_at, traceparent, tracestate)
