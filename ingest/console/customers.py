"""The customers as the console knows them: read when a page shows them, and kept for some seconds.

To list the customers of Aerospike is a scan, so turning pages must not cause a scan for each page. A page does not
wait for a slow store: it shows what was read before, with its time.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from ingest.console.failures import noted
from ingest.domain.errors import StoreUnavailable
from ingest.operations.customers import CustomerDetails, CustomerList, OpenStore, find_customer, list_customers

MAX_AGE: Final = 10.0
"""Seconds after which a list is read again if a page shows it."""
MAX_LISTED: Final = 10_000
"""Customers of one list. A longer beginning of the id finds the others."""
_MAX_LISTS: Final = 4
"""Lists that are kept, each for another beginning of the id."""
_MAX_SINGLE: Final = 4
"""Customers that are read at the same time."""
PATIENCE: Final = 2.0
"""Seconds that a page waits for its first list."""
_SHORT_PATIENCE: Final = 0.1
"""Seconds that a page waits for a list if there is an older one."""


class Customers:
    """Reads customers when a page shows them. Only one list is read at a time.

    Args:
        open_store: opens the store, as `StoreBackend.open_to_read`.
        clock: Unix time in seconds.
        monotonic: monotonic time in seconds; it measures the age of lists.
        patience: see PATIENCE.
        max_listed: see MAX_LISTED.
    """

    def __init__(
        self,
        open_store: OpenStore,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        patience: float = PATIENCE,
        max_listed: int = MAX_LISTED,
    ) -> None:
        self._open = open_store
        self._clock = clock
        self._monotonic = monotonic
        self._patience = patience
        self._max_listed = max_listed
        self._lists: dict[str, tuple[float, CustomerList]] = {}
        """By the beginning of the id, with the monotonic time of the reading; the least recently read is first."""
        self._task: asyncio.Task[None] | None = None
        self._being_read = ""
        self._single: set[asyncio.Task[CustomerDetails | None]] = set()
        self.failure = ""
        """Why the last reading failed; empty if it succeeded."""

    async def look(self, prefix: str = "") -> CustomerList | None:
        """Return the customers whose cust_id begins with `prefix`; None if they were not read yet.

        If there is no list, or an old one, read it and wait briefly. The list may contain customers without the
        prefix.
        """
        known = self._known(prefix)
        if known is None or self._is_old(known):
            try:
                async with asyncio.timeout(self._patience if known is None else _SHORT_PATIENCE):
                    await self._refresh(prefix)
            except TimeoutError:
                pass  # the reading continues
            known = self._known(prefix)
        return None if known is None else known[1]

    async def one(self, cust_id: str) -> CustomerDetails | None:
        """Return a customer as it is now; None if it does not exist. Raises ConfigurationError, StoreUnavailable.

        If the caller is cancelled, the reading goes on: it must close the store, which waits for calls in progress.
        """
        if len(self._single) >= _MAX_SINGLE:
            raise StoreUnavailable("the store is slow, and other pages wait for it: try again later")
        task = asyncio.create_task(find_customer(self._open, self._clock(), cust_id))
        self._single.add(task)
        task.add_done_callback(self._single.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Stop reading."""
        tasks = [*self._single, *([] if self._task is None else [self._task])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _known(self, prefix: str) -> tuple[float, CustomerList] | None:
        """Return the latest list that has all customers with the prefix."""
        unfiltered = self._lists.get("")
        if unfiltered is not None and unfiltered[1].has_more and prefix:
            unfiltered = None
        own = self._lists.get(prefix)
        return max(
            (known for known in (unfiltered, own) if known is not None), key=lambda known: known[0], default=None
        )

    def _is_old(self, known: tuple[float, CustomerList]) -> bool:
        return self._monotonic() - known[0] >= MAX_AGE

    async def _refresh(self, prefix: str) -> None:
        """Wait until the list was read, or could not be. If another list is being read, wait for that first."""
        while True:
            known = self._known(prefix)
            if known is not None and not self._is_old(known):
                return
            if self._task is None:
                self._being_read = prefix
                self._task = asyncio.create_task(self._read(prefix))
            was_it = self._being_read == prefix
            await asyncio.wait([self._task])
            if was_it:
                return

    async def _read(self, prefix: str) -> None:
        try:
            found = await list_customers(self._open, self._clock(), self._max_listed, prefix)
        except Exception as error:  # noqa: BLE001 - an odd answer of a server must not end the console
            self.failure = noted("customers_not_read", error)
        else:
            self.failure = ""
            self._lists.pop(prefix, None)
            self._lists[prefix] = (self._monotonic(), found)
            while len(self._lists) > _MAX_LISTS:
                del self._lists[next(iter(self._lists))]
        finally:
            self._task = None
