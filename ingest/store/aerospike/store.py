"""The store on an Aerospike cluster.

The sets are `ledger` (key: id), `quota` (key: customer and month), `rate` (key: customer and window), `customer`,
`api_key`, `key_info` (name and last use of a key), and `producer` (one record: the producers with queues of their
own). Each list is one `batch_write`; `ledger` and `quotas` explain how changes stay atomic.
"""

import hmac
from collections.abc import Sequence
from typing import Any, Final, Self

import aerospike
import msgspec
from aerospike_helpers.batch import records as batch
from aerospike_helpers.operations import map_operations, operations

from ingest.domain.customers import ApiKey, Customer, key_id_of
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import UNDECIDED, Charge, Undecided
from ingest.domain.rates import PermitClaim
from ingest.store.aerospike import result_codes
from ingest.store.aerospike.client import AerospikeClient, Record, parse_url
from ingest.store.aerospike.ledger import AerospikeLedger
from ingest.store.aerospike.quotas import AerospikeQuotas
from ingest.store.aerospike.records import read_api_key, read_customer, write_api_key
from ingest.store.aerospike.scans import First, Scan

DEFAULT_TIMEOUT: Final = 3.0
_REPLACE: Final = {"exists": aerospike.POLICY_EXISTS_CREATE_OR_REPLACE}
_UPDATE: Final = {"exists": aerospike.POLICY_EXISTS_UPDATE}
_FOREVER: Final = {"ttl": aerospike.TTL_NEVER_EXPIRE}


class AerospikeStore(AerospikeLedger):
    """`domain.ports.Store` on a cluster. Open it with `open`."""

    def __init__(self, client: AerospikeClient) -> None:
        super().__init__(client)
        self._quotas = AerospikeQuotas(client)

    @classmethod
    async def open(cls, url: str, *, call_timeout: float = DEFAULT_TIMEOUT) -> Self:
        """Make the store. It connects at the first call, which raises StoreUnavailable if the cluster is unavailable.

        Args:
            url: see `client.parse_url`.
            call_timeout: seconds for one call to the cluster.

        Raises:
            ConfigurationError: the URL is invalid.
        """
        return cls(AerospikeClient(parse_url(url), call_timeout))

    # Quotas

    async def charge(self, charges: Sequence[Charge]) -> list[bool | Undecided]:
        return await self._quotas.charge(charges)

    async def refund(self, charges: Sequence[Charge]) -> None:
        await self._quotas.refund(charges)

    async def used(self, cust_id: str, month: str) -> int:
        return await self._quotas.used(cust_id, month)

    async def used_by(self, cust_ids: Sequence[str], month: str) -> list[int]:
        return await self._quotas.used_by(cust_ids, month)

    # Rates

    async def claim_permits(self, claims: Sequence[PermitClaim]) -> list[int | Undecided]:
        if not claims:
            return []
        records = [self._permits(claim) for claim in claims]
        await self._client.write(records)
        # Without an answer the client leaves `record` unset, and perhaps the result OK.
        answered = [record.result == result_codes.OK and record.record is not None for record in records]
        if not any(answered):
            raise self._client.unavailable(records[0].result, "claiming permits failed")
        return [record.record[2]["claimed"] if ok else UNDECIDED for record, ok in zip(records, answered, strict=True)]

    def _permits(self, claim: PermitClaim) -> Any:
        key = (self._namespace, "rate", f"{claim.cust_id}:{claim.seconds}:{claim.number}")
        ops = [operations.increment("claimed", claim.count), operations.read("claimed")]
        return batch.Write(key, ops, policy={"ttl": claim.time_to_live})

    # Registry

    async def customer(self, cust_id: str) -> Customer | None:
        (record,) = await self._client.read([(self._namespace, "customer", cust_id)])
        return read_customer(record[1]) if record else None

    async def customer_by_key(self, key_hash: bytes) -> Customer | None:
        (record,) = await self._client.read([(self._namespace, "api_key", key_id_of(key_hash))])
        if not record:
            return None
        key = read_api_key(record[1])
        if key.revoked or not hmac.compare_digest(key.key_hash, key_hash):
            return None
        return await self.customer(key.cust_id)

    async def customers(self, prefix: str = "", limit: int | None = None) -> list[Customer]:
        first = First(limit)
        await self._client.call(
            Scan(namespace=self._namespace, set_name="customer", handle=first.add, prefix=prefix).run
        )
        return [read_customer(bins) for bins in first.sorted()]

    async def save_customer(self, customer: Customer) -> None:
        bins = {name: value for name, value in msgspec.to_builtins(customer).items() if value is not None}
        await self._save("customer", customer.cust_id, bins)

    async def producers(self) -> dict[str, float]:
        (record,) = await self._client.read([self._producers])
        cust_ids = sorted(record[1]["weights"]) if record else []
        customers = await self._client.read([(self._namespace, "customer", cust_id) for cust_id in cust_ids])
        return {cust_id: _weight(record) for cust_id, record in zip(cust_ids, customers, strict=True)}

    async def add_producer(self, cust_id: str) -> None:
        # Workers of older versions take the weight from here.
        await self._change_producers(map_operations.map_put("weights", cust_id, 1.0))

    async def remove_producer(self, cust_id: str) -> None:
        await self._change_producers(map_operations.map_remove_by_key("weights", cust_id, aerospike.MAP_RETURN_NONE))

    @property
    def _producers(self) -> tuple[str, str, str]:
        """One record for all, because workers read it every few seconds, and a scan would visit the whole ledger."""
        return self._namespace, "producer", "all"

    async def _change_producers(self, operation: dict[str, Any]) -> None:
        record = batch.Write(self._producers, [operation], policy=_FOREVER)
        await self._client.write([record])
        if record.result != result_codes.OK:
            raise self._client.unavailable(record.result, "cannot save the producers")

    async def keys(self, cust_id: str) -> list[ApiKey]:
        records: list[dict[str, Any]] = []
        await self._client.call(
            Scan(namespace=self._namespace, set_name="api_key", handle=records.append, cust_id=cust_id).run
        )
        infos = await self._client.read([(self._namespace, "key_info", bins["key_id"]) for bins in records])
        keys = [read_api_key(bins, info[1] if info else None) for bins, info in zip(records, infos, strict=True)]
        return sorted(keys, key=lambda key: (key.created_at, key.key_id))

    async def key_counts(self, cust_ids: Sequence[str]) -> list[int]:
        counts = dict.fromkeys(cust_ids, 0)

        def count(bins: dict[str, Any]) -> None:
            cust_id = bins.get("cust_id")
            if cust_id in counts and not bins.get("revoked"):
                counts[cust_id] += 1

        scan = Scan(namespace=self._namespace, set_name="api_key", handle=count, bins=("cust_id", "revoked"))
        await self._client.call(scan.run)
        return [counts[cust_id] for cust_id in cust_ids]

    async def record_key_use(self, key_ids: Sequence[str], used_at: int) -> None:
        ops = [operations.write("last_used_at", used_at)]
        records = [batch.Write((self._namespace, "key_info", key_id), ops, policy=_FOREVER) for key_id in key_ids]
        await self._client.write(records)
        if failed := [record.result for record in records if record.result != result_codes.OK]:
            raise self._client.unavailable(failed[0], f"recording the use of {len(failed)} API keys failed")

    async def save_key(self, key: ApiKey) -> None:
        info = {"name": key.name, "last_used_at": key.last_used_at}
        await self._save("key_info", key.key_id, {name: value for name, value in info.items() if value is not None})
        await self._save("api_key", key.key_id, write_api_key(key))

    async def revoke_key(self, key_id: str) -> bool:
        record = batch.Write(
            (self._namespace, "api_key", key_id),
            [operations.write("revoked", True)],
            policy={**_UPDATE, **_FOREVER},
        )
        await self._client.write([record])
        if record.result not in (result_codes.OK, result_codes.NOT_FOUND):
            raise self._client.unavailable(record.result, "revoking the API key failed")
        return bool(record.result == result_codes.OK)

    # Store

    async def ready(self) -> None:
        """Raise StoreUnavailable unless the cluster takes a write with a time to live."""
        record = batch.Write((self._namespace, "ready", "ready"), [operations.write("ready", 1)], policy={"ttl": 60})
        await self._client.write([record])
        if record.result not in (result_codes.OK, result_codes.KEY_BUSY):
            raise self._client.unavailable(record.result, "cannot write")

    async def close(self) -> None:
        await self._quotas.close()
        await self._client.close()

    async def _save(self, set_name: str, key: str, bins: dict[str, Any]) -> None:
        ops = [operations.write(name, value) for name, value in bins.items()]
        record = batch.Write((self._namespace, set_name, key), ops, policy={**_REPLACE, **_FOREVER})
        await self._client.write([record])
        if record.result != result_codes.OK:
            raise self._client.unavailable(record.result, f"cannot save {set_name} {key}")


def _weight(record: Record | None) -> float:
    """Return the weight of a producer; 1 if its customer cannot be read, because then its submissions wait anyway."""
    try:
        return read_customer(record[1]).weight if record else 1.0
    except StoreUnavailable:
        return 1.0
