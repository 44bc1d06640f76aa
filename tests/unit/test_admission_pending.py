"""Changes that the ledger does not take at once: when they are retried, and what callers see; in virtual time."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

from ingest.admission.pending import PendingChanges
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change, Entry, Step
from tests.support.virtual_time_loop import in_virtual_time


def change(name: str) -> Change:
    return Change(Step.QUEUE, Entry(id=name, cust_id="c", created_at=1, fingerprint=b"f", retention=60))


class SlowLedger:
    """A ledger whose `apply` takes a second. `calls` has its time and the ids of its changes; `fails` refuses it."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, list[str]]] = []
        self.fails = False

    async def apply(self, changes: Sequence[Change]) -> list[Entry | None]:
        self.calls.append((asyncio.get_running_loop().time(), [change.entry.id for change in changes]))
        await asyncio.sleep(1)
        if self.fails:
            raise StoreUnavailable("unavailable")
        return [None for _ in changes]

    async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
        raise NotImplementedError

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        raise NotImplementedError

    async def in_doubt(self, idle: int) -> list[Entry]:
        raise NotImplementedError

    async def accept(self, entries: Sequence[Entry]) -> list[bool]:
        raise NotImplementedError


async def fails(awaitable: Any) -> bool:
    try:
        await awaitable
    except StoreUnavailable:
        return True
    return False


@in_virtual_time
async def test_retries_pause_longer_each_time_and_end_when_the_ledger_answers() -> None:
    """One task retries, however many calls have failed. Each pause is random, between a half and one and a half."""
    ledger = SlowLedger()
    pending = PendingChanges(ledger)
    ledger.fails = True
    assert await fails(pending.apply([change("a")]))
    assert await fails(pending.apply([change("b")]))
    del ledger.calls[:]
    await asyncio.sleep(100)
    starts = [time for time, _ in ledger.calls]
    pauses = [later - earlier - 1 for earlier, later in itertools.pairwise(starts)]
    assert all(0.5 * 0.2 <= pause <= 1.5 * 1 for pause in pauses)
    assert all(pause >= 0.5 for pause in pauses[6:])
    assert len(pauses) > 10
    ledger.fails = False
    await asyncio.sleep(10)
    del ledger.calls[:]
    await asyncio.sleep(100)
    assert ledger.calls == []


@in_virtual_time
async def test_changes_of_a_later_outage_are_retried_too() -> None:
    ledger = SlowLedger()
    pending = PendingChanges(ledger)
    for name in ("a", "b"):
        ledger.fails = True
        assert await fails(pending.apply([change(name)]))
        ledger.fails = False
        await asyncio.sleep(3)
        assert ledger.calls[-1][1] == [name]
    assert len(ledger.calls) == 4
