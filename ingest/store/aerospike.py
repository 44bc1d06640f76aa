"""The store on an Aerospike cluster.

Sets as the design names them: `ledger` (key: id), `quota` (key: customer and month), `customer`, `api_key`. Lists
travel in one `batch_write`. Nothing is read before it is written: claims are CREATE_ONLY, changes check the
generation, charges carry a filter expression. What timed out in doubt is read back and compared.
"""

import asyncio
import hmac
import random
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, Self

import aerospike
import msgspec
from aerospike_helpers import expressions as exp
from aerospike_helpers.batch import records as batch
from aerospike_helpers.operations import operations

from ingest.domain.customers import DAY, ApiKey, Customer, key_id_of
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change, Charge, Entry, Phase, Step, accepted, after
from ingest.store import aerospike_client as client_
from ingest.store.aerospike_client import AerospikeClient, parse_url
from ingest.store.aerospike_records import ACCEPTED, read_api_key, read_entry, write_all, write_step

DEFAULT_TIMEOUT: Final = 3.0
_QUOTA_TTL: Final = 100 * DAY
_ROUNDS: Final = 5
_CREATE: Final = {"exists": aerospike.POLICY_EXISTS_CREATE}
_REPLACE: Final = {"exists": aerospike.POLICY_EXISTS_CREATE_OR_REPLACE}
_UPDATE: Final = {"exists": aerospike.POLICY_EXISTS_UPDATE}
_SAME_GENERATION: Final = {"gen": aerospike.POLICY_GEN_EQ}
_FOREVER: Final = {"ttl": aerospike.TTL_NEVER_EXPIRE}


class AerospikeStore:
    """`domain.ports.Store` on a cluster. Open it with `open`."""

    def __init__(self, client: AerospikeClient) -> None:
        self._client = client
        self._namespace = client.namespace

    @classmethod
    async def open(cls, url: str, *, call_timeout: float = DEFAULT_TIMEOUT) -> Self:
        """Nothing connects before the first call, which raises StoreUnavailable while the cluster is away.

        Args:
            url: see `aerospike_client.parse_url`.
            call_timeout: seconds for one call to the cluster.

        Raises:
            ConfigurationError: the URL is wrong.
        """
        return cls(AerospikeClient(parse_url(url), call_timeout))

    # Ledger

    async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
        stored: dict[str, Entry] = {}
        missing = {entry.id: entry for entry in reversed(entries)}  # of equal ids the first
        for _ in range(_ROUNDS):
            stored |= await self._create(list(missing.values()))
            missing = {id_: entry for id_, entry in missing.items() if id_ not in stored}
            if not missing:
                return [stored[entry.id] for entry in entries]
        raise StoreUnavailable(f"{len(missing)} ledger entries vanish as soon as they are there")

    async def _create(self, entries: list[Entry]) -> dict[str, Entry]:
        """What is stored of each id after an attempt to create it; without those that vanished meanwhile."""
        records = [
            batch.Write(self._ledger(entry.id), write_all(entry), policy=_create_policy(entry.retention))
            for entry in entries
        ]
        await self._client.write(records)
        stored = {}
        doubtful = []
        for entry, record in zip(entries, records, strict=True):
            if record.result == client_.OK:
                stored[entry.id] = msgspec.structs.replace(entry, generation=record.record[1]["gen"])
            else:
                doubtful.append((entry.id, record.result))
        found = await self.read([id_ for id_, _ in doubtful]) if doubtful else []
        for (id_, code), existing in zip(doubtful, found, strict=True):
            if existing is not None:
                stored[id_] = existing
            elif code != client_.EXISTS:
                raise self._client.unavailable(code, "claim failed")
        return stored

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        found = await self._client.read([self._ledger(id_) for id_ in ids])
        return [read_entry(id_, *record) if record else None for id_, record in zip(ids, found, strict=True)]

    async def apply(self, changes: Sequence[Change]) -> list[Entry | None]:
        records = [self._change(change) for change in changes]
        await self._client.write(records)
        results: list[Entry | None] = []
        doubtful = []
        for index, (change, record) in enumerate(zip(changes, records, strict=True)):
            results.append(None)
            if record.result == client_.OK:
                forgotten = change.step is Step.FORGET
                generation = change.entry.generation if forgotten else record.record[1]["gen"]
                results[index] = after(change, generation)
            elif record.result not in (client_.GENERATION, client_.NOT_FOUND):
                doubtful.append(index)
        if doubtful:
            found = await self.read([changes[index].entry.id for index in doubtful])
            for index, existing in zip(doubtful, found, strict=True):
                results[index] = self._read_back(changes[index], existing, records[index].result)
        return results

    def _read_back(self, change: Change, existing: Entry | None, code: int) -> Entry | None:
        """Whether a change whose outcome is in doubt has happened. Raises StoreUnavailable where it has not."""
        if change.step is Step.FORGET and existing is None:
            return change.entry
        if existing is not None and existing == after(change, existing.generation):
            return existing
        if existing is None or existing.generation != change.entry.generation:
            return None
        raise self._client.unavailable(code, f"{change.step} failed")

    def _change(self, change: Change) -> Any:
        entry = change.entry
        key = self._ledger(entry.id)
        if change.step is Step.FORGET:
            return batch.Remove(key, policy={**_SAME_GENERATION, "generation": entry.generation})
        policy = {**_SAME_GENERATION, "ttl": entry.retention}
        return batch.Write(key, write_step(change), meta={"gen": entry.generation}, policy=policy)

    async def accept(self, entries: Sequence[Entry]) -> None:
        # An entry that was seen is most likely still there: two bins instead of all, the same for each.
        seen = defaultdict(list)
        lost = []
        for entry in entries:
            if entry.generation:
                seen[entry.retention].append(entry)
            else:
                lost.append(entry)
        doubtful = []
        for retention, group in seen.items():
            keys = [self._ledger(entry.id) for entry in group]
            codes = await self._client.operate(keys, ACCEPTED, {**_UPDATE, "ttl": retention})
            lost += [entry for entry, code in zip(group, codes, strict=True) if code == client_.NOT_FOUND]
            fine = (client_.OK, client_.NOT_FOUND)
            doubtful += [(entry, code) for entry, code in zip(group, codes, strict=True) if code not in fine]
        if lost:
            doubtful += await self._heal(lost)
        if doubtful:
            found = await self.read([entry.id for entry, _ in doubtful])
            for (_, code), existing in zip(doubtful, found, strict=True):
                if existing is None or existing.phase is not Phase.ACCEPTED:
                    raise self._client.unavailable(code, "accept failed")

    async def _heal(self, entries: Sequence[Entry]) -> list[tuple[Entry, int]]:
        """Write whole entries as accepted; return those for which that did not go, with the result code."""
        records = [
            batch.Write(self._ledger(e.id), write_all(accepted(e)), policy={**_REPLACE, "ttl": e.retention})
            for e in entries
        ]
        await self._client.write(records)
        codes = [record.result for record in records]
        return [(entry, code) for entry, code in zip(entries, codes, strict=True) if code != client_.OK]

    # Quotas

    async def charge(self, charges: Sequence[Charge]) -> list[bool]:
        granted: dict[int, bool] = {}
        try:
            for round_ in range(_ROUNDS):
                open_ = [index for index in range(len(charges)) if index not in granted]
                if not open_:
                    break
                if round_:
                    await asyncio.sleep(random.uniform(0.5, 1.5) * 0.01 * 2**round_)  # noqa: S311 - jitter
                granted |= await self._charge(charges, open_)
            else:
                if len(granted) < len(charges):
                    raise StoreUnavailable("a quota record is too busy")
        except StoreUnavailable:
            await self.refund([charge for index, charge in enumerate(charges) if granted.get(index)])
            raise
        return [granted[index] for index in range(len(charges))]

    async def _charge(self, charges: Sequence[Charge], open_: Sequence[int]) -> dict[int, bool]:
        """Grants by index; without those whose record was busy, and those in doubt: rather charged twice than never."""
        granted = {}
        records = {}
        for index in open_:
            charge = charges[index]
            # The filter is not asked where there is no record yet.
            if charge.count > charge.limit:
                granted[index] = False
            else:
                policy = {"expressions": _at_most("used", charge.limit - charge.count), "ttl": _QUOTA_TTL}
                ops = [operations.increment("used", charge.count)]
                records[index] = batch.Write(self._quota(charge), ops, policy=policy)
        await self._client.write(list(records.values()))
        for index, record in records.items():
            if record.result == client_.OK:
                granted[index] = True
            elif record.result == client_.FILTERED_OUT:
                granted[index] = False
            elif record.result != client_.KEY_BUSY and not record.in_doubt:
                raise self._client.unavailable(record.result, "charge failed")
        return granted

    async def refund(self, charges: Sequence[Charge]) -> None:
        records = [
            batch.Write(
                self._quota(charge),
                [operations.increment("used", -charge.count)],
                policy={"expressions": _at_least("used", charge.count), "ttl": _QUOTA_TTL},
            )
            for charge in charges
        ]
        await self._client.write(records)
        for record in records:
            if record.result not in (client_.OK, client_.FILTERED_OUT) and not record.in_doubt:
                raise self._client.unavailable(record.result, "refund failed")

    async def used(self, cust_id: str, month: str) -> int:
        found = await self._client.read([(self._namespace, "quota", f"{cust_id}:{month}")])
        return int(found[0][1]["used"]) if found[0] else 0

    # Registry

    async def customer(self, cust_id: str) -> Customer | None:
        found = await self._client.read([(self._namespace, "customer", cust_id)])
        return msgspec.convert(found[0][1], Customer) if found[0] else None

    async def customer_by_key(self, key_hash: bytes) -> Customer | None:
        found = await self._client.read([(self._namespace, "api_key", key_id_of(key_hash))])
        if not found[0]:
            return None
        key = read_api_key(found[0][1])
        if key.revoked or not hmac.compare_digest(key.key_hash, key_hash):
            return None
        return await self.customer(key.cust_id)

    async def customers(self) -> list[Customer]:
        found = [msgspec.convert(bins, Customer) for bins in await self._scan("customer")]
        return sorted(found, key=lambda customer: customer.cust_id)

    async def save_customer(self, customer: Customer) -> None:
        bins = {name: value for name, value in msgspec.to_builtins(customer).items() if value is not None}
        await self._save("customer", customer.cust_id, bins)

    async def keys(self, cust_id: str) -> list[ApiKey]:
        found = [read_api_key(bins) for bins in await self._scan("api_key") if bins["cust_id"] == cust_id]
        return sorted(found, key=lambda key: (key.created_at, key.key_id))

    async def save_key(self, key: ApiKey) -> None:
        await self._save("api_key", key.key_id, msgspec.structs.asdict(key))

    async def revoke_key(self, key_id: str) -> bool:
        record = batch.Write(
            (self._namespace, "api_key", key_id),
            [operations.write("revoked", True)],
            policy={**_UPDATE, **_FOREVER},
        )
        await self._client.write([record])
        if record.result not in (client_.OK, client_.NOT_FOUND):
            raise self._client.unavailable(record.result, "revoke failed")
        return bool(record.result == client_.OK)

    # Store

    async def ready(self) -> None:
        """Raises StoreUnavailable unless a write with a time to live is taken."""
        record = batch.Write((self._namespace, "ready", "ready"), [operations.write("ready", 1)], policy={"ttl": 60})
        await self._client.write([record])
        if record.result not in (client_.OK, client_.KEY_BUSY):
            raise self._client.unavailable(record.result, "cannot write")

    async def close(self) -> None:
        await self._client.close()

    async def _save(self, set_: str, key: str, bins: dict[str, Any]) -> None:
        ops = [operations.write(name, value) for name, value in bins.items()]
        record = batch.Write((self._namespace, set_, key), ops, policy={**_REPLACE, **_FOREVER})
        await self._client.write([record])
        if record.result != client_.OK:
            raise self._client.unavailable(record.result, f"cannot save {set_} {key}")

    async def _scan(self, set_: str) -> list[dict[str, Any]]:
        records = await self._client.call(lambda client: client.query(self._namespace, set_).results())
        return [bins for _, _, bins in records]

    def _ledger(self, id_: str) -> tuple[str, str, str]:
        return (self._namespace, "ledger", id_)

    def _quota(self, charge: Charge) -> tuple[str, str, str]:
        return (self._namespace, "quota", f"{charge.cust_id}:{charge.month}")


@lru_cache(maxsize=4096)
def _create_policy(retention: int) -> dict[str, Any]:
    return {**_CREATE, "ttl": retention}


@lru_cache(maxsize=4096)
def _at_most(name: str, value: int) -> Any:
    return exp.LE(exp.IntBin(name), value).compile()


@lru_cache(maxsize=4096)
def _at_least(name: str, value: int) -> Any:
    return exp.GE(exp.IntBin(name), value).compile()
