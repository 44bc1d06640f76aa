"""The SQLite store's file: how it is opened, and what expires in it. Its promises as a store are in tests/contract."""

import os
import sqlite3
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from ingest.domain.customers import ApiKey, Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import UNFINISHED, Change, Entry, Step
from ingest.domain.rates import PermitClaim
from ingest.store.sqlite import SqliteStore
from tests.support.fakes import Clock


def new_entry(name: str, *, generation: int = 0, charged: int = 0) -> Entry:
    return Entry(
        id=name, cust_id="c", created_at=1, fingerprint=b"f", retention=60, generation=generation, charged=charged
    )


def rows(path: Path) -> list[str]:
    with sqlite3.connect(path) as db:
        return [row[0] for row in db.execute("SELECT id FROM ledger ORDER BY id")]


async def test_file_that_is_not_a_database_is_refused_and_leaves_no_thread(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(b"This is not a database. " * 100)
    before = set(threading.enumerate())
    with pytest.raises(StoreUnavailable):
        await SqliteStore.open(path)
    new = set(threading.enumerate()) - before
    for thread in new:
        thread.join(5)
    assert not any(thread.is_alive() for thread in new)


async def test_each_claim_deletes_two_expired_entries(tmp_path: Path) -> None:
    """So they cannot accumulate, and no call takes long because many have expired."""
    clock = Clock()
    store = await SqliteStore.open(tmp_path / "s.db", clock=clock)
    await store.claim([new_entry(name) for name in "abcde"])
    clock.now += UNFINISHED
    await store.claim([new_entry("x")])
    assert len(rows(tmp_path / "s.db")) == 4
    await store.claim([new_entry("y"), new_entry("z")])
    assert rows(tmp_path / "s.db") == ["x", "y", "z"]
    await store.close()


async def test_entry_expires_exactly_at_the_end_of_its_time(tmp_path: Path) -> None:
    """An accepted one after its retention, and one that is not accepted after a week."""
    clock = Clock()
    store = await SqliteStore.open(tmp_path / "s.db", clock=clock)
    await store.claim([new_entry("claimed"), new_entry("accepted")])
    await store.accept([new_entry("accepted", generation=1)])
    clock.now += 59.999
    assert None not in await store.read(["claimed", "accepted"])
    clock.now += 0.001
    claimed, accepted = await store.read(["claimed", "accepted"])
    assert (claimed is not None, accepted) == (True, None)
    clock.now += UNFINISHED - 60.001
    assert await store.read(["claimed"]) == [claimed]
    clock.now += 0.001
    assert await store.read(["claimed"]) == [None]
    await store.close()


async def test_counter_of_permits_expires_and_is_deleted(tmp_path: Path) -> None:
    """62 s after the last claim for a window of a second. A claim deletes two expired counters."""
    clock = Clock()
    store = await SqliteStore.open(tmp_path / "s.db", clock=clock)
    claims = [PermitClaim("c", 1, number, 2) for number in range(3)]
    assert await store.claim_permits(claims) == [2, 2, 2]
    clock.now += 61.999
    assert await store.claim_permits(claims[:1]) == [4]
    clock.now += 0.001
    assert await store.claim_permits([PermitClaim("other", 1, 9, 1)]) == [1]
    with sqlite3.connect(tmp_path / "s.db") as db:
        assert db.execute("SELECT cust_id, number, claimed FROM rate").fetchall() == [("c", 0, 4), ("other", 9, 1)]
    clock.now += 62
    assert await store.claim_permits(claims) == [2, 2, 2]
    await store.close()


async def test_change_counts_from_the_last_change_of_its_entry(tmp_path: Path) -> None:
    """In milliseconds of the store's clock: a take-over, and the search for doubts."""
    clock = Clock()
    store = await SqliteStore.open(tmp_path / "s.db", clock=clock)
    (entry,) = await store.claim([new_entry("k", charged=1)])
    clock.now += 10
    (released,) = await store.apply([Change(Step.RELEASE, entry)])
    assert isinstance(released, Entry)
    assert released.generation == 2
    clock.now += 9.999
    assert await store.in_doubt(10_000) == []
    assert await store.apply([Change(Step.TAKE_OVER, released, 10_000)]) == [None]
    clock.now += 0.001
    assert await store.in_doubt(10_000) == [released]
    (taken_over,) = await store.apply([Change(Step.TAKE_OVER, released, 10_000)])
    assert isinstance(taken_over, Entry)
    assert taken_over.generation == 3
    await store.close()


async def test_accept_raises_the_generation(tmp_path: Path) -> None:
    """So a later change of the claim has no effect. An entry that was lost starts at 1."""
    store = await SqliteStore.open(tmp_path / "s.db")
    await store.claim([new_entry("k")])
    await store.accept([new_entry("k", generation=1), new_entry("lost", generation=7)])
    entries = await store.read(["k", "lost"])
    assert [entry and entry.generation for entry in entries] == [2, 1]
    await store.close()


@pytest.fixture
def permissive_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in (directory, *directory.iterdir())}


@pytest.mark.usefixtures("permissive_umask")
async def test_only_the_owner_can_read_the_files(tmp_path: Path) -> None:
    """A file of an earlier version, which everybody could read, is closed, too."""
    new, old = tmp_path / "new", tmp_path / "old"
    old.mkdir(mode=0o700)
    (old / "store.db").touch(mode=0o666)
    for directory in (new, old):
        store = await SqliteStore.open(directory / "store.db")
        await store.save_customer(Customer(cust_id="c"))
        assert modes(directory) == {
            directory.name: 0o700,
            "store.db": 0o600,
            "store.db-wal": 0o600,
            "store.db-shm": 0o600,
        }
        await store.close()


async def test_key_of_an_earlier_version_has_neither_name_nor_last_use(tmp_path: Path) -> None:
    """The file has the schema that it had before keys had names."""
    path = tmp_path / "s.db"
    await (await SqliteStore.open(path)).close()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE rate")
        db.execute("DROP TABLE producer")
        db.execute("ALTER TABLE api_key DROP COLUMN name")
        db.execute("ALTER TABLE api_key DROP COLUMN last_used_at")
        db.execute("PRAGMA user_version = 2")
        db.execute("INSERT INTO api_key VALUES ('key_1', 'c', x'01', 5, 0)")
    store = await SqliteStore.open(path)
    assert await store.keys("c") == [ApiKey(key_id="key_1", cust_id="c", key_hash=b"\x01", created_at=5)]
    await store.close()


@pytest.mark.parametrize("record", ["{", "[]", '{"cust_id": "c", "retention": "a week"}'])
async def test_damaged_record_of_a_customer_is_named_and_looks_like_an_unavailable_store(
    tmp_path: Path, record: str
) -> None:
    """So its submissions wait instead of being rejected. Other customers are not affected."""
    path = tmp_path / "s.db"
    store = await SqliteStore.open(path)
    for cust_id in ("c", "d"):
        await store.save_customer(Customer(cust_id=cust_id))
    await store.save_key(ApiKey(key_id="k", cust_id="c", key_hash=b"h", created_at=1))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE customer SET customer = ? WHERE cust_id = 'c'", (record,))
    db.close()
    reads: list[Callable[[], Awaitable[object]]] = [
        lambda: store.customer("c"),
        lambda: store.customer_by_key(b"h"),
        store.customers,
    ]
    for read in reads:
        with pytest.raises(StoreUnavailable, match="the record of customer c cannot be read: "):
            await read()
    assert await store.customer("d") == Customer(cust_id="d")
    await store.add_producer("c")
    assert await store.producers() == {"c": 1.0}
    await store.close()
