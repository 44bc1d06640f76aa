"""Delivers the submissions of bundles one by one.

A bundle is acknowledged when all its submissions are finished. One that fails must not take the others with it. So a
returned submission, or a submission of a bundle that was returned twice, is published as a message of its own, and
counts as finished in the bundle. If the process crashes before the bundle is acknowledged, it is delivered again, and
the worker drops the copies as duplicates.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import msgspec
import structlog

from ingest.broker.decorators import ConsumerDecorator
from ingest.domain import bundles
from ingest.domain.dead_letters import submit_again
from ingest.domain.errors import InvalidSubmission
from ingest.domain.messages import Delivery, PublishOutcome
from ingest.domain.ports import Consumer, Publisher
from ingest.domain.topology import SUSPECT
from ingest.waiting import Backoff, TimeSlices

_PAUSES: Final = (0.2, 30.0)
"""First and longest pause, in seconds, before unconfirmed submissions are published again."""

_log = structlog.get_logger(__name__)


class _OpenBundle:
    """A bundle that is not finished."""

    __slots__ = ("delivery", "remaining", "set_apart")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        """Without its body, which its submissions have copied."""
        self.remaining: set[int] = set()
        self.set_apart: set[int] = set()


class _Token(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Names a submission of a bundle."""

    bundle: _OpenBundle
    index: int


def is_bundled(delivery: Delivery) -> bool:
    """Return whether a delivery was in a bundle."""
    return isinstance(delivery.token, _Token)


class UnbundlingConsumer(ConsumerDecorator):
    """`domain.ports.Consumer` that delivers submissions. `prefetch` limits messages, and a bundle is one message.

    Args:
        consumer: of a queue that may have bundles.
        trusted_users: the service's own users. Bundles of others are delivered as they are.
        publisher: returns the publisher of separated submissions.
    """

    def __init__(
        self, consumer: Consumer, trusted_users: frozenset[str], publisher: Callable[[], Awaitable[Publisher]]
    ) -> None:
        super().__init__(consumer)
        self._trusted = trusted_users
        self._publisher = publisher
        self._open: dict[_OpenBundle, None] = {}
        """Bundles that are not finished, in the order of their delivery."""
        self._extra_held = 0
        """Unfinished submissions in them, without one for each bundle."""
        self._separating: set[asyncio.Task[None]] = set()

    async def receive(self) -> list[Delivery]:
        while received := await self._consumer.receive():
            self._forget_lost()
            if submissions := await self._unpacked(received):
                return submissions
        return []

    @property
    def held(self) -> int:
        self._forget_lost()
        return self._consumer.held + self._extra_held

    def alive(self, delivery: Delivery) -> bool:
        token = delivery.token
        if not isinstance(token, _Token):
            return self._consumer.alive(delivery)
        return token.index in token.bundle.remaining and self._consumer.alive(token.bundle.delivery)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        finished: list[Delivery] = []
        waiting: list[Delivery] = []
        for delivery in deliveries:
            token = delivery.token
            if not isinstance(token, _Token):
                finished.append(delivery)
            elif token.index in token.bundle.remaining:
                bundle = token.bundle
                bundle.remaining.remove(token.index)
                if not bundle.remaining:
                    self._open.pop(bundle, None)
                    finished.append(bundle.delivery)
                elif bundle in self._open:
                    self._extra_held -= 1
                    if bundle.set_apart and bundle.remaining <= bundle.set_apart:
                        waiting.append(bundle.delivery)
        if finished:
            await self._consumer.ack(finished)
        if waiting:
            await self._consumer.set_apart(waiting, 0)

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        self._separate([delivery for delivery in deliveries if is_bundled(delivery)])
        if others := [delivery for delivery in deliveries if not is_bundled(delivery)]:
            await self._consumer.requeue(others)

    async def set_apart(self, deliveries: Sequence[Delivery], extra: int) -> None:
        waiting: list[Delivery] = []
        for delivery in deliveries:
            token = delivery.token
            if isinstance(token, _Token):
                token.bundle.set_apart.add(token.index)
                if token.bundle.remaining <= token.bundle.set_apart:
                    waiting.append(token.bundle.delivery)
            else:
                waiting.append(delivery)
        await self._consumer.set_apart(waiting, extra)

    async def close(self) -> None:
        for task in self._separating:
            task.cancel()
        if self._separating:
            await asyncio.wait(self._separating)
        await super().close()

    async def _unpacked(self, received: Sequence[Delivery]) -> list[Delivery]:
        """Return the deliveries, each bundle replaced by its submissions."""
        deliveries: list[Delivery] = []
        slices = TimeSlices()
        for delivery in received:
            if not bundles.is_bundle(delivery, self._trusted):
                deliveries.append(delivery)
                continue
            await slices.between()
            try:
                submissions = self._open_bundle(delivery)
            except InvalidSubmission:
                deliveries.append(delivery)  # it is rejected as a whole
                continue
            if delivery.deliveries >= SUSPECT:
                _log.warning("bundle_taken_apart", queue=delivery.queue, submissions=len(submissions))
                self._separate(submissions)
            else:
                deliveries += submissions
        return deliveries

    def _open_bundle(self, delivery: Delivery) -> list[Delivery]:
        """Return the submissions of a bundle. Raises InvalidSubmission."""
        bundle = _OpenBundle(msgspec.structs.replace(delivery, body=b""))
        submissions = bundles.unpack(delivery, partial(_Token, bundle))
        bundle.remaining.update(range(len(submissions)))
        self._open[bundle] = None
        self._extra_held += len(submissions) - 1
        return submissions

    def _forget_lost(self) -> None:
        """Forget bundles of a lost connection, which are the oldest: the broker delivers them again."""
        while self._open:
            bundle = next(iter(self._open))
            if self._consumer.alive(bundle.delivery):
                return
            del self._open[bundle]
            self._extra_held -= len(bundle.remaining) - 1

    def _separate(self, submissions: Sequence[Delivery]) -> None:
        """Separate submissions from their bundles, in the background."""
        if submissions:
            task = asyncio.create_task(self._publish_separately(submissions))
            self._separating.add(task)
            task.add_done_callback(self._separating.discard)

    async def _publish_separately(self, submissions: Sequence[Delivery]) -> None:
        publisher = await self._publisher()
        backoff = Backoff(*_PAUSES)
        while alive := [submission for submission in submissions if self.alive(submission)]:
            outcomes = await publisher.publish([submit_again(submission, submission.headers) for submission in alive])
            confirmed = [outcome is PublishOutcome.CONFIRMED for outcome in outcomes]
            await self.ack([submission for submission, taken in zip(alive, confirmed, strict=True) if taken])
            if all(confirmed):
                return
            _log.warning("submissions_not_separated", submissions=confirmed.count(False), queue=alive[0].queue)
            await asyncio.sleep(backoff.next())
