"""Scans of a set, record by record, so that memory does not grow with the set."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from aerospike_helpers import expressions

from ingest.domain.customers import LAST_CHARACTER

Bins = dict[str, Any]

_CUST_ID: Final = "cust_id"


class Scan(msgspec.Struct, frozen=True, kw_only=True):
    """Gives the bins of each record of a set to `handle`, in no order, one record at a time.

    `bins` are those that are read, by default all. It reads only records whose cust_id begins with `prefix` and, if
    `cust_id` is given, equals it.
    """

    namespace: str
    set_name: str
    handle: Callable[[Bins], object]
    bins: Sequence[str] = ()
    prefix: str = ""
    cust_id: str | None = None

    def run(self, client: Any) -> None:
        """Scan. It is a job of `AerospikeClient.call`; `handle` must not raise."""
        query = client.query(self.namespace, self.set_name)
        if self.bins:
            query.select(*self.bins)
        one_at_a_time = threading.Lock()  # the client calls back in a thread for each node

        def handle(record: tuple[Any, Any, Bins]) -> None:
            with one_at_a_time:
                self.handle(record[2])

        condition = self._condition()
        query.foreach(handle, {} if condition is None else {"expressions": condition.compile()})

    def _condition(self) -> Any:
        cust_id = expressions.StrBin(_CUST_ID)
        if self.cust_id is not None:
            return expressions.Eq(cust_id, self.cust_id)
        if self.prefix:
            return expressions.And(
                expressions.GE(cust_id, self.prefix), expressions.LE(cust_id, self.prefix + LAST_CHARACTER)
            )
        return None


class First:
    """Keeps the first records by cust_id; It holds up to twice as many.

    Args:
        limit: how many; None keeps all.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._kept: list[Bins] = []

    def add(self, bins: Bins) -> None:
        """Add a record."""
        self._kept.append(bins)
        if self._limit is not None and len(self._kept) > 2 * self._limit:
            self._kept = self.sorted()

    def sorted(self) -> list[Bins]:
        """Return the first records, in order."""
        return sorted(self._kept, key=lambda bins: str(bins.get(_CUST_ID, "")))[: self._limit]
