"""The port between `asg-submit` and what carries its chunks to the service: HTTP (`http`) or RabbitMQ (`broker`)."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from asg_gateway._bulk.items import Item
from asg_gateway._bulk.progress import Counts
from asg_gateway._results import BatchResult

Accepted = tuple[BatchResult, Sequence[Item]]
"""A result, and the items that it is about."""


class Sender(Protocol):
    """Sends batches."""

    async def send(self, items: Sequence[Item], key: str) -> list[Accepted]:
        """Send the items as one batch with this key; return a result for each part of it.

        Raises:
            InvalidRequestError, InvalidTaskError: some items are invalid, which its `errors` name. None was accepted.
            ASGGatewayError: another problem. Sending the same again is safe.
        """

    def notice(self) -> str | None:
        """Return a sentence about why sending is slow; None if it is not."""


class Transport(Protocol):
    """Opens a sender.

    Attributes:
        identity: what identifies service, customer and webhook, without secrets.
    """

    @property
    def identity(self) -> Sequence[str]: ...

    def counts(self) -> Counts:
        """Return the counts of a run, all 0."""

    def connect(self) -> AbstractAsyncContextManager[Sender]:
        """Open a sender. Raises UsageError."""

    def conclusion(self, counts: Counts) -> str | None:
        """Return a sentence for the end of a run; None if the counts say everything."""
