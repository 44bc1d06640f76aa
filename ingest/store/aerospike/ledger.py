"""The ledger on an Aerospike cluster.

No entry is read before it is written: claims are CREATE_ONLY, and changes check the generation. A write in doubt (it
timed out) is read back and compared.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import aerospike
import msgspec
import structlog
from aerospike_helpers import expressions
from aerospike_helpers.batch import records as batch
from aerospike_helpers.operations import expression_operations

from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import UNDECIDED, Change, Entry, Phase, Step, StoredEntry, Undecided, accepted, after
from ingest.store.aerospike import result_codes
from ingest.store.aerospike.client import AerospikeClient
from ingest.store.aerospike.records import ACCEPTED, read_entry, write_all, write_step

_ROUNDS: Final = 5
_CREATE: Final = {"exists": aerospike.POLICY_EXISTS_CREATE}
_REPLACE: Final = {"exists": aerospike.POLICY_EXISTS_CREATE_OR_REPLACE}
_UPDATE: Final = {"exists": aerospike.POLICY_EXISTS_UPDATE}
_SAME_GENERATION: Final[dict[str, Any]] = {"gen": aerospike.POLICY_GEN_EQ}
_UNCHANGED: Final = frozenset({result_codes.GENERATION, result_codes.NOT_FOUND, result_codes.FILTERED_OUT})
"""Results of a change that certainly had no effect: another generation, no entry, another owner, or not idle long
enough."""

_AGE: Final = expression_operations.expression_read("age", expressions.SinceUpdateTime().compile())
"""Reads for how many milliseconds a record has not changed."""

_log = structlog.get_logger(__name__)


class AerospikeLedger:
    """`domain.ports.Ledger` in the set `ledger`."""

    def __init__(self, client: AerospikeClient) -> None:
        self._client = client
        self._namespace = client.namespace

    async def claim(self, entries: Sequence[Entry]) -> list[Entry | Undecided]:
        stored: dict[str, Entry | Undecided] = {}
        missing = {entry.id: entry for entry in reversed(entries)}  # the first of equal ids wins
        codes: set[int] = set()
        for _ in range(_ROUNDS):
            stored |= await self._create(list(missing.values()), codes)
            missing = {entry_id: entry for entry_id, entry in missing.items() if entry_id not in stored}
            if not missing:
                break
        else:
            codes.add(result_codes.NOT_FOUND)  # entries that are deleted as soon as they are created
        results = [stored.get(entry.id, UNDECIDED) for entry in entries]
        self._check_decided("claim", results, codes)
        return results

    async def _create(self, entries: list[Entry], codes: set[int]) -> dict[str, Entry | Undecided]:
        """Try to create entries; return what is stored now, by id, without entries that were deleted since.

        `codes` receives the result codes of entries that are undecided.
        """
        records = [
            batch.Write(self._key(entry.id), write_all(entry), policy=_create_policy(entry.time_to_live))
            for entry in entries
        ]
        await self._client.write(records)
        stored: dict[str, Entry | Undecided] = {}
        doubtful = []
        for entry, record in zip(entries, records, strict=True):
            if record.result == result_codes.OK:
                stored[entry.id] = msgspec.structs.replace(entry, generation=record.record[1]["gen"])
            else:
                doubtful.append((entry.id, record.result))
        existing_entries = await self._read_back([entry_id for entry_id, _ in doubtful])
        for (entry_id, code), existing in zip(doubtful, existing_entries, strict=True):
            if existing:
                stored[entry_id] = existing
            elif existing is UNDECIDED or code != result_codes.EXISTS:
                stored[entry_id] = UNDECIDED
                codes.add(code)
        return stored

    async def read(self, ids: Sequence[str]) -> list[Entry | Undecided | None]:
        records = await self._client.try_read([self._key(entry_id) for entry_id in ids])
        results: list[Entry | Undecided | None] = []
        codes = set()
        for entry_id, record in zip(ids, records, strict=True):
            if isinstance(record, int):
                codes.add(record)
                results.append(UNDECIDED)
            else:
                results.append(read_entry(entry_id, record[0]["gen"], record[1]) if record else None)
        self._check_decided("read", results, codes)
        return results

    async def inspect(self, ids: Sequence[str]) -> list[StoredEntry | Undecided | None]:
        entries = await self.read(ids)
        # The server computes the age, because the clocks of this machine and of the server may differ.
        ages = [batch.Read(self._key(entry.id), [_AGE]) for entry in entries if entry]
        await self._client.write(ages)
        records = iter(ages)
        return [_stored(entry, next(records)) if isinstance(entry, Entry) else entry for entry in entries]

    async def apply(self, changes: Sequence[Change]) -> list[Entry | Undecided | None]:
        records = [self._change(change) for change in changes]
        await self._client.write(records)
        results: list[Entry | Undecided | None] = []
        doubtful = []
        for index, (change, record) in enumerate(zip(changes, records, strict=True)):
            results.append(None)
            if record.result == result_codes.OK:
                forgotten = change.step is Step.FORGET
                generation = change.entry.generation if forgotten else record.record[1]["gen"]
                results[index] = after(change, generation)
            elif record.result not in _UNCHANGED:
                doubtful.append(index)
        codes = set()
        existing_entries = await self._read_back([changes[index].entry.id for index in doubtful])
        for index, existing in zip(doubtful, existing_entries, strict=True):
            results[index] = UNDECIDED if existing is UNDECIDED else _outcome(changes[index], existing)
            if results[index] is UNDECIDED:
                codes.add(records[index].result)
        self._check_decided("apply", results, codes)
        return results

    async def _read_back(self, ids: Sequence[str]) -> Sequence[Entry | Undecided | None]:
        """Read entries whose write is in doubt. If that fails, they are undecided."""
        try:
            return await self.read(ids) if ids else []
        except StoreUnavailable:
            return [UNDECIDED] * len(ids)

    def _check_decided(self, call: str, results: Sequence[object], codes: set[int]) -> None:
        """Log that some results are undecided, with their result codes; raise StoreUnavailable if the store is down.

        It is not down if something was decided, or if the codes concern the records themselves.
        """
        if not codes:
            return
        undecided = sum(result is UNDECIDED for result in results)
        if undecided == len(results) and not codes <= result_codes.OF_ONE_RECORD:
            raise self._client.unavailable(min(codes), f"{call} failed")
        _log.warning("ledger_entries_undecided", call=call, entries=undecided, of=len(results), codes=sorted(codes))

    def _change(self, change: Change) -> Any:
        entry = change.entry
        key = self._key(entry.id)
        if change.step is Step.FORGET:
            policy = {**_SAME_GENERATION, "generation": entry.generation, "expressions": _has_owner(entry)}
            return batch.Remove(key, policy=policy)
        policy = _change_policy(entry.time_to_live, change.idle)
        if change.step is Step.RELEASE:
            policy = {**policy, "expressions": _has_owner(entry)}
        return batch.Write(key, write_step(change), meta={"gen": entry.generation}, policy=policy)

    async def in_doubt(self, idle: int) -> list[Entry]:
        # Only entries that were released have the bin `charged`, so the index is small.
        filter_ = expressions.And(
            expressions.GE(expressions.SinceUpdateTime(), idle),
            expressions.Eq(expressions.StrBin("phase"), Phase.CLAIMED.value),
        ).compile()
        records = await self._client.query("ledger", "charged", filter_)
        return [read_entry(bins["id"], generation, bins) for generation, bins in records]

    async def accept(self, entries: Sequence[Entry]) -> list[bool]:
        codes = await self._accept_stored(entries)
        if lost := [index for index, code in enumerate(codes) if code == result_codes.NOT_FOUND]:
            for index, code in zip(lost, await self._accept_lost([entries[index] for index in lost]), strict=True):
                codes[index] = code
        doubtful = [index for index, code in enumerate(codes) if code != result_codes.OK]
        existing_entries = await self._read_back([entries[index].id for index in doubtful])
        results: list[bool | Undecided] = [True] * len(entries)
        for index, existing in zip(doubtful, existing_entries, strict=True):
            if not existing or existing.phase is not Phase.ACCEPTED:
                results[index] = UNDECIDED
        failed = {code for code, result in zip(codes, results, strict=True) if result is UNDECIDED}
        self._check_decided("accept", results, failed)
        return [bool(result) for result in results]

    async def _accept_stored(self, entries: Sequence[Entry]) -> list[int]:
        """Accept entries that are probably still stored: two bins instead of all, the same for every entry.

        Returns result codes; NOT_FOUND for entries that are not stored.
        """
        codes = [result_codes.NOT_FOUND] * len(entries)
        groups = defaultdict(list)
        for index, entry in enumerate(entries):
            if entry.generation:
                groups[entry.retention].append(index)
        for retention, group in groups.items():
            keys = [self._key(entries[index].id) for index in group]
            try:
                results = await self._client.operate(keys, ACCEPTED, {**_UPDATE, "ttl": retention})
            except StoreUnavailable:
                results = [result_codes.NO_RESPONSE] * len(group)
            for index, code in zip(group, results, strict=True):
                codes[index] = code
        return codes

    async def _accept_lost(self, entries: Sequence[Entry]) -> list[int]:
        """Write whole entries as accepted; return result codes."""
        records = [
            batch.Write(self._key(e.id), write_all(accepted(e)), policy={**_REPLACE, "ttl": e.retention})
            for e in entries
        ]
        try:
            await self._client.write(records)
        except StoreUnavailable:
            return [result_codes.NO_RESPONSE] * len(entries)
        return [record.result for record in records]

    def _key(self, entry_id: str) -> tuple[str, str, str]:
        return (self._namespace, "ledger", entry_id)


def _stored(entry: Entry, age: Any) -> StoredEntry | Undecided | None:
    """Return an entry with its age; None if it has gone meanwhile."""
    if age.result == result_codes.OK:
        return StoredEntry(entry, age.record[2]["age"] / 1000)
    return None if age.result == result_codes.NOT_FOUND else UNDECIDED


def _outcome(change: Change, existing: Entry | None) -> Entry | Undecided | None:
    """Return the result of a change that was in doubt, from what is stored now.

    It is undecided if the change has not happened so far, because it may still take effect later.
    """
    if change.step is Step.FORGET and existing is None:
        return change.entry
    if change.step is Step.FORGET and existing is not None and existing.owner != change.entry.owner:
        return None  # deleted, and created again by another attempt
    if existing is not None and existing == after(change, existing.generation):
        return existing
    if existing is None or existing.generation != change.entry.generation:
        return None
    return UNDECIDED


def _has_owner(entry: Entry) -> Any:
    return expressions.Eq(expressions.StrBin("owner"), entry.owner).compile()


@lru_cache(maxsize=4096)
def _create_policy(time_to_live: int) -> dict[str, Any]:
    return {**_CREATE, "ttl": time_to_live}


@lru_cache(maxsize=4096)
def _change_policy(time_to_live: int, idle: int) -> dict[str, Any]:
    policy = {**_SAME_GENERATION, "ttl": time_to_live}
    if idle:
        # The server computes this from the time at which it last wrote the record.
        policy["expressions"] = expressions.GE(expressions.SinceUpdateTime(), idle).compile()
    return policy
