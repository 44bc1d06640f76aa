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
from aerospike_helpers import expressions
from aerospike_helpers.batch import records as batch

from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change, Entry, Phase, Step, accepted, after
from ingest.store.aerospike import result_codes
from ingest.store.aerospike.client import AerospikeClient
from ingest.store.aerospike.records import ACCEPTED, read_entry, write_all, write_step

_ROUNDS: Final = 5
_CREATE: Final = {"exists": aerospike.POLICY_EXISTS_CREATE}
_REPLACE: Final = {"exists": aerospike.POLICY_EXISTS_CREATE_OR_REPLACE}
_UPDATE: Final = {"exists": aerospike.POLICY_EXISTS_UPDATE}
_SAME_GENERATION: Final[dict[str, Any]] = {"gen": aerospike.POLICY_GEN_EQ}
_UNCHANGED: Final = frozenset({result_codes.GENERATION, result_codes.NOT_FOUND, result_codes.FILTERED_OUT})
"""Results of a change that certainly had no effect: another generation, no entry, or not idle long enough."""


class AerospikeLedger:
    """`domain.ports.Ledger` in the set `ledger`."""

    def __init__(self, client: AerospikeClient) -> None:
        self._client = client
        self._namespace = client.namespace

    async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
        stored: dict[str, Entry] = {}
        missing = {entry.id: entry for entry in reversed(entries)}  # the first of equal ids wins
        for _ in range(_ROUNDS):
            stored |= await self._create(list(missing.values()))
            missing = {entry_id: entry for entry_id, entry in missing.items() if entry_id not in stored}
            if not missing:
                return [stored[entry.id] for entry in entries]
        raise StoreUnavailable(f"{len(missing)} ledger entries are deleted as soon as they are created")

    async def _create(self, entries: list[Entry]) -> dict[str, Entry]:
        """Try to create entries; return what is stored now, by id, without entries that were deleted since."""
        records = [
            batch.Write(self._key(entry.id), write_all(entry), policy=_create_policy(entry.time_to_live))
            for entry in entries
        ]
        await self._client.write(records)
        stored = {}
        doubtful = []
        for entry, record in zip(entries, records, strict=True):
            if record.result == result_codes.OK:
                stored[entry.id] = msgspec.structs.replace(entry, generation=record.record[1]["gen"])
            else:
                doubtful.append((entry.id, record.result))
        existing_entries = await self.read([entry_id for entry_id, _ in doubtful]) if doubtful else []
        for (entry_id, code), existing in zip(doubtful, existing_entries, strict=True):
            if existing is not None:
                stored[entry_id] = existing
            elif code != result_codes.EXISTS:
                raise self._client.unavailable(code, "claim failed")
        return stored

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        records = await self._client.read([self._key(entry_id) for entry_id in ids])
        return [
            read_entry(entry_id, *record) if record else None for entry_id, record in zip(ids, records, strict=True)
        ]

    async def apply(self, changes: Sequence[Change]) -> list[Entry | None]:
        records = [self._change(change) for change in changes]
        await self._client.write(records)
        results: list[Entry | None] = []
        doubtful = []
        for index, (change, record) in enumerate(zip(changes, records, strict=True)):
            results.append(None)
            if record.result == result_codes.OK:
                forgotten = change.step is Step.FORGET
                generation = change.entry.generation if forgotten else record.record[1]["gen"]
                results[index] = after(change, generation)
            elif record.result not in _UNCHANGED:
                doubtful.append(index)
        if doubtful:
            existing_entries = await self.read([changes[index].entry.id for index in doubtful])
            for index, existing in zip(doubtful, existing_entries, strict=True):
                results[index] = self._read_back(changes[index], existing, records[index].result)
        return results

    def _read_back(self, change: Change, existing: Entry | None, code: int) -> Entry | None:
        """Return the result of a change that was in doubt, from what is stored now.

        Raises:
            StoreUnavailable: the change has not happened so far. It may still take effect later.
        """
        if change.step is Step.FORGET and existing is None:
            return change.entry
        if change.step is Step.FORGET and existing is not None and existing.owner != change.entry.owner:
            return None  # deleted, and created again by another attempt
        if existing is not None and existing == after(change, existing.generation):
            return existing
        if existing is None or existing.generation != change.entry.generation:
            return None
        raise self._client.unavailable(code, f"{change.step} failed")

    def _change(self, change: Change) -> Any:
        entry = change.entry
        key = self._key(entry.id)
        if change.step is Step.FORGET:
            is_own = expressions.Eq(expressions.StrBin("owner"), entry.owner).compile()
            policy = {**_SAME_GENERATION, "generation": entry.generation, "expressions": is_own}
            return batch.Remove(key, policy=policy)
        policy = _change_policy(entry.time_to_live, change.idle)
        return batch.Write(key, write_step(change), meta={"gen": entry.generation}, policy=policy)

    async def in_doubt(self, idle: int) -> list[Entry]:
        # Only entries that were released have the bin `charged`, so the index is small.
        filter_ = expressions.And(
            expressions.GE(expressions.SinceUpdateTime(), idle),
            expressions.Eq(expressions.StrBin("phase"), Phase.CLAIMED.value),
        ).compile()
        records = await self._client.query("ledger", "charged", filter_)
        return [read_entry(bins["id"], generation, bins) for generation, bins in records]

    async def accept(self, entries: Sequence[Entry]) -> None:
        # An entry that was read is probably still there: two bins instead of all, the same for every entry.
        stored = defaultdict(list)
        lost = []
        for entry in entries:
            if entry.generation:
                stored[entry.retention].append(entry)
            else:
                lost.append(entry)
        doubtful = []
        for retention, group in stored.items():
            keys = [self._key(entry.id) for entry in group]
            codes = await self._client.operate(keys, ACCEPTED, {**_UPDATE, "ttl": retention})
            lost += [entry for entry, code in zip(group, codes, strict=True) if code == result_codes.NOT_FOUND]
            certain = (result_codes.OK, result_codes.NOT_FOUND)
            doubtful += [(entry, code) for entry, code in zip(group, codes, strict=True) if code not in certain]
        if lost:
            doubtful += await self._write_accepted(lost)
        if doubtful:
            existing_entries = await self.read([entry.id for entry, _ in doubtful])
            for (_, code), existing in zip(doubtful, existing_entries, strict=True):
                if existing is None or existing.phase is not Phase.ACCEPTED:
                    raise self._client.unavailable(code, "accept failed")

    async def _write_accepted(self, entries: Sequence[Entry]) -> list[tuple[Entry, int]]:
        """Write whole entries as accepted; return those that failed, with their result codes."""
        records = [
            batch.Write(self._key(e.id), write_all(accepted(e)), policy={**_REPLACE, "ttl": e.retention})
            for e in entries
        ]
        await self._client.write(records)
        codes = [record.result for record in records]
        return [(entry, code) for entry, code in zip(entries, codes, strict=True) if code != result_codes.OK]

    def _key(self, entry_id: str) -> tuple[str, str, str]:
        return (self._namespace, "ledger", entry_id)


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
