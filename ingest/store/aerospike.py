"""The store on an Aerospike cluster.

Sets as the design names them: `ledger` (key: id), `quota` (key: customer and month), `customer`, `api_key`. Lists
travel in one `batch_write`. Charges carry a filter expression; how the ledger stays atomic tells `aerospike_ledger`.
"""

import asyncio
import hmac
import random
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
from ingest.domain.ledger import Charge
from ingest.store import aerospike_client as client_
from ingest.store.aerospike_client import AerospikeClient, parse_url
from ingest.store.aerospike_ledger import AerospikeLedger
from ingest.store.aerospike_records import read_api_key

DEFAULT_TIMEOUT: Final = 3.0
_QUOTA_TTL: Final = 100 * DAY
_ROUNDS: Final = 5
_REPLACE: Final = {"exists": aerospike.POLICY_EXISTS_CREATE_OR_REPLACE}
_UPDATE: Final = {"exists": aerospike.POLICY_EXISTS_UPDATE}
_FOREVER: Final = {"ttl": aerospike.TTL_NEVER_EXPIRE}


class AerospikeStore(AerospikeLedger):
    """`domain.ports.Store` on a cluster. Open it with `open`."""

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

    def _quota(self, charge: Charge) -> tuple[str, str, str]:
        return (self._namespace, "quota", f"{charge.cust_id}:{charge.month}")


@lru_cache(maxsize=4096)
def _at_most(name: str, value: int) -> Any:
    return exp.LE(exp.IntBin(name), value).compile()


@lru_cache(maxsize=4096)
def _at_least(name: str, value: int) -> Any:
    return exp.GE(exp.IntBin(name), value).compile()
