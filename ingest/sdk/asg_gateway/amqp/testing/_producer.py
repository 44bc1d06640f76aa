"""`FakeProducer`: a producer without RabbitMQ."""

import json
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from asg_gateway._errors import ASGGatewayError
from asg_gateway.amqp._producing.many import Pair, submit_each
from asg_gateway.amqp._producing.messages import Composer, Message, Origin, SubmittedBatch, SubmittedTask


@dataclass(frozen=True)
class Submission:
    """A message that `Producer` would have published.

    Attributes:
        routing_key: `task.submitted.<cust_id>` or `batch.submitted.<cust_id>`.
        key: the idempotency key, which is the `message_id`.
        body: the decoded body.
        created_at: the `timestamp`.
        headers: the trace context.
    """

    routing_key: str
    key: str
    body: Mapping[str, Any]
    created_at: datetime
    headers: Mapping[str, Any]


class FakeProducer:
    """Has the methods of `Producer`, its checks and ids, and records what it would publish. It connects to nothing.

    Args:
        cust_id: the customer.

    Attributes:
        submitted: what was submitted, in order; the parts of a split batch are one entry each.
    """

    def __init__(self, cust_id: str = "acme") -> None:
        self.submitted: list[Submission] = []
        self._composer = Composer(cust_id, cust_id)
        self._failures: list[ASGGatewayError] = []
        self._closed = False

    @property
    def cust_id(self) -> str:
        """The customer."""
        return self._composer.cust_id

    def fail_next(self, *errors: ASGGatewayError) -> None:
        """Make the next submissions fail with these errors, one each, instead of being recorded.

        For example `fail_next(BrokerUnavailableError("no confirm"))`.
        """
        self._failures += errors

    async def submit(
        self,
        task: Mapping[str, Any],
        *,
        key: str,
        created_at: datetime | int | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> SubmittedTask:
        """Record a task. As `Producer.submit`."""
        message, submitted = self._composer.task(task, key, Origin(created_at, traceparent, tracestate))
        self._record([message], key)
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
        """Record a batch. As `Producer.submit_batch`."""
        origin = Origin(created_at, traceparent, tracestate)
        messages, submitted = self._composer.batch(tasks, key, callback_url, origin)
        self._record(messages, key)
        return submitted

    async def submit_many(
        self, tasks: Iterable[Pair] | AsyncIterable[Pair], *, created_at: datetime | int | None = None
    ) -> AsyncGenerator[SubmittedTask, None]:
        """Record any number of tasks. As `Producer.submit_many`."""

        def submit(key: str, task: Mapping[str, Any]) -> Any:
            return self.submit(task, key=key, created_at=created_at)

        async for submitted in submit_each(submit, tasks, 1):
            yield submitted

    async def connect(self) -> None:
        """Do nothing."""
        self._check_usable()

    async def close(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as `Producer`
        """Refuse further submissions, as `Producer` does."""
        self._closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _record(self, messages: Sequence[Message], key: str) -> None:
        self._check_usable()
        if self._failures:
            error = self._failures.pop(0)
            error.idempotency_key = key
            raise error
        for message in messages:
            at = message.properties.timestamp
            self.submitted.append(
                Submission(
                    message.routing_key,
                    message.key,
                    json.loads(message.body),
                    (at or datetime.now(UTC)).replace(microsecond=0),
                    message.properties.headers or {},
                )
            )

    def _check_usable(self) -> None:
        if self._closed:
            raise RuntimeError("this producer is closed: create another one")
