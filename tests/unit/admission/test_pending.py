"""Changes that the ledger does not take at once: when they are retried, and what callers see; in virtual time."""

import asyncio
import contextlib
import itertools
from collections.abc import Sequence

import pytest

from ingest.admission.pending import PendingChanges
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import UNDECIDED, Change, Entry, Step, StoredEntry, Undecided
from tests.support.virtual_time_loop import in_virtual_time


def change(name: str) -> Change:
    return Change(Step.QUEUE, Entry(id=name, cust_id="c", created_at=1, fingerprint=b"f", retention=60))


class SlowLedger:
    """A ledger whose `apply` takes a second. It fails while `fails`, and cannot decide the ids in `undecided`.

    `calls` has the time of each call and the ids of its changes.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[float, list[str]]] = []
        self.fails = False
        self.undecided: set[str] = set()

    async def apply(self, changes: Sequence[Change]) -> list[Entry | Undecided | None]:
        self.calls.append((now(), [change.entry.id for change in changes]))
        await asyncio.sleep(1)
        if self.fails:
            raise StoreUnavailable("unavailable")
        return [UNDECIDED if change.entry.id in self.undecided else None for change in changes]

    async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
        raise NotImplementedError

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        raise NotImplementedError

    async def inspect(self, ids: Sequence[str]) -> list[StoredEntry | None]:
        raise NotImplementedError

    async def in_doubt(self, idle: int) -> list[Entry]:
        raise NotImplementedError

    async def accept(self, entries: Sequence[Entry]) -> list[bool]:
        raise NotImplementedError


def now() -> float:
    return asyncio.get_running_loop().time()


async def fail_to_apply(pending: PendingChanges, *names: str) -> None:
    with pytest.raises(StoreUnavailable):
        await pending.apply([change(name) for name in names])


@in_virtual_time
async def test_change_that_takes_effect_is_applied_once() -> None:
    """A change that came too late has no effect either, and is not repeated."""
    ledger = SlowLedger()
    await PendingChanges(ledger).apply([change("a"), change("b")])
    await asyncio.sleep(100)
    assert ledger.calls == [(0, ["a", "b"])]


@in_virtual_time
async def test_pending_changes_delay_no_other_call() -> None:
    ledger = SlowLedger()
    pending = PendingChanges(ledger)
    ledger.fails = True
    failing = asyncio.create_task(fail_to_apply(pending, "a"))
    await asyncio.sleep(0.5)
    await fail_to_apply(pending, "b")
    await failing
    assert ledger.calls[:2] == [(0, ["a"]), (0.5, ["b"])]


@in_virtual_time
async def test_only_the_changes_that_the_ledger_cannot_decide_are_retried() -> None:
    ledger = SlowLedger()
    ledger.undecided = {"a", "c"}
    await PendingChanges(ledger).apply([change(name) for name in "abcd"])
    assert now() == 1
    await asyncio.sleep(3)
    assert [ids for _, ids in ledger.calls[:2]] == [["a", "b", "c", "d"], ["a", "c"]]
    ledger.undecided = set()
    await asyncio.sleep(5)
    calls = len(ledger.calls)
    await asyncio.sleep(100)
    assert len(ledger.calls) == calls


@in_virtual_time
async def test_retries_pause_longer_each_time_up_to_a_second_and_a_half() -> None:
    """One task retries everything, however many calls have failed. The pauses are random."""
    ledger = SlowLedger()
    pending = PendingChanges(ledger)
    ledger.fails = True
    await fail_to_apply(pending, "a")
    await fail_to_apply(pending, "b")
    await asyncio.sleep(1)
    ledger.calls.clear()
    await asyncio.sleep(100)
    starts = [time for time, _ in ledger.calls]
    pauses = [later - earlier - 1 for earlier, later in itertools.pairwise(starts)]
    assert len(pauses) > 30
    assert all(0.1 <= pause <= 1.5 for pause in pauses)
    assert all(pause >= 0.5 for pause in pauses[6:])
    assert sorted(ledger.calls[-1][1]) == ["a", "b"]


@in_virtual_time
async def test_changes_of_a_later_outage_are_retried_too() -> None:
    ledger = SlowLedger()
    pending = PendingChanges(ledger)
    for name in ("a", "b"):
        ledger.fails = True
        await fail_to_apply(pending, name)
        ledger.fails = False
        await asyncio.sleep(3)
        assert ledger.calls[-1][1] == [name]
    assert len(ledger.calls) == 4


@in_virtual_time
async def test_change_whose_caller_was_cancelled_is_made_nevertheless() -> None:
    """The call may have had no effect."""
    ledger = SlowLedger()
    call = asyncio.create_task(PendingChanges(ledger).apply([change("a")]))
    await asyncio.sleep(0.5)
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call
    await asyncio.sleep(3)
    assert [ids for _, ids in ledger.calls] == [["a"], ["a"]]


@in_virtual_time
async def test_close_waits_for_the_changes_that_are_pending() -> None:
    """Some are decided at the first try and the rest at the second one. Nothing is retried in the background then."""
    ledger = SlowLedger()
    pending = PendingChanges(ledger)
    ledger.fails = True
    await fail_to_apply(pending, "a", "b")
    ledger.fails, ledger.undecided, began = False, {"b"}, now()
    closing = asyncio.create_task(pending.close(5))
    await asyncio.sleep(0.9)
    assert ledger.calls[1:] == [(began, ["a", "b"])]
    await asyncio.sleep(0.15)
    ledger.undecided = set()
    await closing
    assert [ids for _, ids in ledger.calls[2:]] == [["b"]]
    assert now() < began + 2.2
    await asyncio.sleep(100)
    assert len(ledger.calls) == 3


@in_virtual_time
async def test_close_gives_up_after_its_time() -> None:
    ledger = SlowLedger()
    pending = PendingChanges(ledger)
    ledger.fails = True
    await fail_to_apply(pending, "a")
    began = now()
    await pending.close(5)
    assert now() == began + 5
    assert 3 <= len(ledger.calls[1:]) <= 5


@in_virtual_time
async def test_close_makes_no_call_if_nothing_is_pending() -> None:
    ledger = SlowLedger()
    await PendingChanges(ledger).close(5)
    assert (ledger.calls, now()) == ([], 0)
