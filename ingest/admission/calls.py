"""Calls of the store whose failure leaves only the requests undecided that depend on them."""

from collections.abc import Awaitable, Sequence
from typing import Protocol, TypeVar

import structlog

from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import UNDECIDED, Undecided
from ingest.domain.ports import Ledger, Quotas

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class AdmissionStore(Ledger, Quotas, Protocol):
    """What admission needs from a store."""


class StoreCalls:
    """The calls of one attempt. `failure` is the latest error of a call that failed as a whole."""

    def __init__(self) -> None:
        self.failure: StoreUnavailable | None = None

    async def results(self, call: Awaitable[Sequence[T | Undecided]], count: int) -> list[T | Undecided]:
        """Return the results of a call; if it fails as a whole, each of the `count` is undecided."""
        try:
            return [*await call]
        except StoreUnavailable as error:
            _log.warning("store_call_failed", error=str(error), entries=count)
            self.failure = error
            return [UNDECIDED] * count
