"""Dead letters of bundles, as the submissions in them.

Workers unpack bundles before they reject a submission. So only the broker dead-letters a readable bundle: it expired
because of a policy, or could not be taken apart before the delivery limit.
"""

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import IO

import msgspec
import structlog

from ingest.domain import bundles, dead_letters
from ingest.domain.errors import BrokerUnavailable, ConfigurationError, InvalidSubmission
from ingest.domain.messages import Delivery, PublishOutcome
from ingest.domain.ports import DeadLetterQueue, Publisher

_log = structlog.get_logger(__name__)


class _DeadBundle(msgspec.Struct, eq=False):
    """A dead bundle. `delivery` is without its body, which begins at `offset` of the file."""

    delivery: Delivery
    size: int
    offset: int = 0
    remaining: set[int] = msgspec.field(default_factory=set)


class _Token(msgspec.Struct, frozen=True, eq=False):
    bundle: _DeadBundle
    index: int


class UnbundledDeadLetters:
    """`domain.ports.DeadLetterQueue` around another. Submissions of bundles are dead letters of their own.

    If only some of a bundle's submissions are removed, `close` puts each of the others back as a message of its own. If
    that is not possible, all of them stay; submitting one again that was accepted adds nothing.

    Args:
        queue: the dead letters.
        trusted_users: the service's own users. Bundles of others are shown as they are.
        publisher: returns a publisher; None if the queue is opened only to read. If it is set, a temporary file keeps
            the bodies of browsed bundles, because `close` may have to publish a part of them again.
    """

    def __init__(
        self,
        queue: DeadLetterQueue,
        trusted_users: frozenset[str],
        publisher: Callable[[], Awaitable[Publisher]] | None,
    ) -> None:
        self._queue = queue
        self._trusted = trusted_users
        self._publisher = publisher
        self._changed: dict[_DeadBundle, None] = {}
        """Bundles of which a part was removed."""
        self._bodies: IO[bytes] | None = None
        """A temporary file with the bodies of browsed bundles, which may exceed the memory."""

    async def count(self) -> int:
        return await self._queue.count()

    async def size(self) -> int | None:
        return await self._queue.size()

    async def browse(self) -> AsyncIterator[list[Delivery]]:
        async for deliveries in self._queue.browse():
            yield [submission for delivery in deliveries for submission in self._unpacked(delivery)]

    async def remove(self, deliveries: Sequence[Delivery]) -> None:
        finished = [delivery for delivery in deliveries if not isinstance(delivery.token, _Token)]
        tokens = [delivery.token for delivery in deliveries if isinstance(delivery.token, _Token)]
        removed: dict[_DeadBundle, set[int]] = {}
        for token in tokens:
            removed.setdefault(token.bundle, set()).add(token.index)
        finished += [bundle.delivery for bundle, indexes in removed.items() if bundle.remaining <= indexes]
        await self._queue.remove(finished)
        for bundle, indexes in removed.items():
            bundle.remaining -= indexes
            self._changed[bundle] = None

    async def close(self) -> None:
        try:
            if partly_removed := [bundle for bundle in self._changed if bundle.remaining]:
                await self._put_back(partly_removed)
        except BrokerUnavailable as error:
            _log.warning("dead_bundles_kept", error=str(error))
        finally:
            if self._bodies is not None:
                self._bodies.close()
            await self._queue.close()

    def _unpacked(self, delivery: Delivery) -> list[Delivery]:
        if not bundles.is_bundle(delivery, self._trusted):
            return [delivery]
        bundle = _DeadBundle(msgspec.structs.replace(delivery, body=b""), len(delivery.body))
        try:
            submissions = bundles.unpack(delivery, partial(_Token, bundle))
        except InvalidSubmission:
            return [delivery]
        bundle.remaining.update(range(len(submissions)))
        bundle.offset = self._keep(delivery.body)
        return submissions

    def _keep(self, body: bytes) -> int:
        """Keep the body of a bundle for `_put_back`; return its offset. Raises ConfigurationError."""
        if self._publisher is None:
            return 0
        try:
            if self._bodies is None:
                self._bodies = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
            offset = self._bodies.seek(0, os.SEEK_END)
            self._bodies.write(body)
            self._bodies.flush()
        except OSError as error:
            raise ConfigurationError(
                f"cannot write bundles of ingest.dead to a temporary file: {error}: set TMPDIR to a directory with "
                "more space"
            ) from error
        return offset

    async def _put_back(self, partly_removed: Sequence[_DeadBundle]) -> None:
        """Publish the remaining submissions of each bundle, then remove the bundle. Raises BrokerUnavailable."""
        if self._publisher is None or self._bodies is None:
            raise BrokerUnavailable("the dead letters were opened only to read")
        publisher = await self._publisher()
        for bundle in partly_removed:
            self._bodies.seek(bundle.offset)
            whole = msgspec.structs.replace(bundle.delivery, body=self._bodies.read(bundle.size))
            rest = [
                dead_letters.rewritten(dead_letters.read(submission, self._trusted))
                for index, submission in enumerate(bundles.unpack(whole))
                if index in bundle.remaining
            ]
            outcomes = await publisher.publish(rest)
            if set(outcomes) != {PublishOutcome.CONFIRMED}:
                raise BrokerUnavailable("the broker did not confirm what remains of a dead bundle: all of it is kept")
            await self._queue.remove([bundle.delivery])
