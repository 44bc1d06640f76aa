"""The quota counters on an Aerospike cluster. They are exact even if answers are lost.

Every change leaves a receipt in the record of the counter: a writer slot, which has one change in progress at a time,
and the number of the change, which only grows. A change has no effect unless its number is above the receipt of its
slot. So no change takes effect twice, or late, after it was given up.
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import aerospike
import msgspec
import structlog
from aerospike_helpers import expressions
from aerospike_helpers.batch import records as batch
from aerospike_helpers.operations import expression_operations, map_operations, operations

from ingest.domain.customers import DAY
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import UNDECIDED, Charge, Undecided
from ingest.store.aerospike import result_codes
from ingest.store.aerospike.client import AerospikeClient
from ingest.waiting import Backoff

_TTL: Final = 100 * DAY
_ROUNDS: Final = 5
_RETRY_PAUSES: Final = (0.02, 0.16)
"""First and longest pause between two rounds of one charge, in seconds."""
_PAUSES: Final = (0.1, 5.0)
"""First and longest pause between two tries to resolve doubts, in seconds."""
_CLOSE_TIMEOUT: Final = 3.0
"""Seconds for resolving doubts when the store is closed."""
_RECEIPT_AGE: Final = 3_600_000_000
"""Microseconds after which a receipt is dropped. A doubt is given up after half of that, because without its receipt a
refund could take effect twice; the other half allows for clocks that differ."""
_USED: Final = "used"
_RECEIPTS: Final = "receipts"
_CERTAIN: Final = frozenset({result_codes.OK, result_codes.FILTERED_OUT, result_codes.NOT_FOUND})

_log = structlog.get_logger(__name__)


class _Change(msgspec.Struct, frozen=True):
    """Add `count` to the counter `key`, unless that exceeds `limit`. `number` is in Unix microseconds."""

    key: str
    count: int
    limit: int
    slot: str
    number: int


_Doubt = tuple[Callable[[_Change], Any], _Change]
"""A void or a refund that is repeated until its outcome is certain."""


class AerospikeQuotas:
    """`domain.ports.Quotas` in the set `quota`: bins `used` and `receipts`."""

    def __init__(self, client: AerospikeClient) -> None:
        self._client = client
        self._process = uuid.uuid4().hex[:16]
        self._free_slots: list[str] = []
        self._slot_count = 0
        self._number = 0
        self._doubts: list[_Doubt] = []
        self._resolving: asyncio.Task[None] | None = None

    async def charge(self, charges: Sequence[Charge]) -> list[bool | Undecided]:
        slot = self._take_slot()
        # Aerospike does not apply the filter if there is no record yet.
        changes = {
            index: self._change(_name(charge.cust_id, charge.month), charge.count, charge.limit, slot)
            for index, charge in enumerate(charges)
            if charge.count <= charge.limit
        }
        results: list[bool | Undecided] = [UNDECIDED if index in changes else False for index in range(len(charges))]
        doubted: set[int] = set()
        try:
            await self._try_charges(changes, results, doubted)
        except BaseException:
            # Some charges were applied, or may be. None may count, because the caller does not learn of them.
            results = [UNDECIDED] * len(charges)
            raise
        finally:
            # The first try of a charge may have been in doubt and a later one refused. The first could take effect if
            # the counter decreases, so it is voided, too.
            voids = [i for i in changes if results[i] is UNDECIDED or (i in doubted and not results[i])]
            self._resolve_later(slot, [(self._void, changes[i]) for i in voids])
        return results

    async def _try_charges(
        self, changes: dict[int, _Change], results: list[bool | Undecided], doubted: set[int]
    ) -> None:
        """Charge in a few rounds; fill in `results`, and in `doubted` the charges with a try in doubt.

        Raises StoreUnavailable if nothing is decided and the records are not the reason.
        """
        codes: dict[int, int] = {}
        backoff = Backoff(*_RETRY_PAUSES)
        left = changes
        for attempt in range(_ROUNDS):
            if attempt:
                await asyncio.sleep(backoff.next())
            try:
                records = await self._write([self._charge(change) for change in left.values()])
            except StoreUnavailable:
                if len(left) == len(changes):
                    raise
                break
            codes |= {index: record.result for index, record in zip(left, records, strict=True)}
            again = {i: change for (i, change), record in zip(left.items(), records, strict=True) if _can_retry(record)}
            doubted.update(i for i, record in zip(left, records, strict=True) if record.in_doubt)
            for index in left.keys() - again.keys():
                results[index] = await self._result(changes[index], codes[index], index in doubted)
            left = again
            if not left:
                break
        self._check_decided({codes[index] for index in changes if results[index] is UNDECIDED}, results)

    def _check_decided(self, codes: set[int], results: Sequence[bool | Undecided]) -> None:
        """Log that charges are undecided, with their result codes; raise StoreUnavailable if the store is down."""
        if not codes:
            return
        undecided = sum(result is UNDECIDED for result in results)
        if undecided == len(results) and not codes <= result_codes.OF_ONE_RECORD:
            raise self._client.unavailable(min(codes), "charge failed")
        _log.warning("charges_undecided", charges=undecided, of=len(results), codes=sorted(codes))

    async def _result(self, change: _Change, code: int, doubted: bool) -> bool | Undecided:
        """Return the result of a charge from the code of its latest try; `doubted`: an earlier one is in doubt."""
        if code == result_codes.OK:
            return True
        if code != result_codes.FILTERED_OUT:
            return UNDECIDED
        if not doubted:
            return False
        try:
            return await self._is_applied(change)  # filtered out: beyond the limit, or applied already
        except StoreUnavailable:
            return UNDECIDED

    async def refund(self, charges: Sequence[Charge]) -> None:
        counts: Counter[str] = Counter()
        for charge in charges:
            counts[_name(charge.cust_id, charge.month)] += charge.count
        slot = self._take_slot()
        doubts: list[_Doubt] = [(self._refund, self._change(key, -count, 0, slot)) for key, count in counts.items()]
        try:
            doubts = await self._unresolved(doubts)
        finally:
            self._resolve_later(slot, doubts)

    async def used(self, cust_id: str, month: str) -> int:
        (used,) = await self.used_by([cust_id], month)
        return used

    async def used_by(self, cust_ids: Sequence[str], month: str) -> list[int]:
        records = await self._client.read([self._key(_name(cust_id, month)) for cust_id in cust_ids], [_USED])
        return [int(record[1][_USED]) if record else 0 for record in records]

    async def close(self) -> None:
        """Spend a little time on the remaining doubts. Call it before the client is closed."""
        if self._resolving is not None and not self._resolving.done():
            await asyncio.wait([self._resolving], timeout=_CLOSE_TIMEOUT)
            if not self._resolving.done():
                self._resolving.cancel()
                _log.warning("quota_doubts_dropped_at_close", changes=len(self._doubts))

    def _take_slot(self) -> str:
        if self._free_slots:
            return self._free_slots.pop()
        self._slot_count += 1
        return f"{self._process}.{self._slot_count}"

    def _change(self, key: str, count: int, limit: int, slot: str) -> _Change:
        # In steps of two: the number in between belongs to the void of the change, if it is in doubt.
        self._number = max(_now(), self._number + 2)
        return _Change(key, count, limit, slot, self._number)

    def _resolve_later(self, slot: str, doubts: list[_Doubt]) -> None:
        """Free the slot, unless its call left doubts: then it is never used again, and the doubts are resolved."""
        if not doubts:
            self._free_slots.append(slot)
            return
        _log.warning("quota_changes_in_doubt", changes=len(doubts))
        self._doubts += doubts
        if self._resolving is None or self._resolving.done():
            self._resolving = asyncio.create_task(self._resolve_doubts())

    async def _resolve_doubts(self) -> None:
        backoff = Backoff(*_PAUSES)
        while self._doubts:
            doubts, self._doubts = self._doubts, []
            unresolved = await self._unresolved(doubts)
            oldest = _now() - _RECEIPT_AGE // 2
            kept = [doubt for doubt in unresolved if doubt[1].number > oldest]
            if len(kept) < len(unresolved):
                # Their receipts may be gone, and without a receipt a refund could take effect twice.
                _log.error(
                    "quota_doubts_expired",
                    changes=len(unresolved) - len(kept),
                    consequence="customers may remain overcharged",
                )
            self._doubts += kept
            if kept:
                await asyncio.sleep(backoff.next())

    async def _unresolved(self, doubts: list[_Doubt]) -> list[_Doubt]:
        """Try each doubt once; return those whose outcome is still uncertain."""
        try:
            records = await self._write([make(change) for make, change in doubts])
        except StoreUnavailable:
            return doubts
        return [doubt for doubt, record in zip(doubts, records, strict=True) if record.result not in _CERTAIN]

    async def _write(self, records: list[Any]) -> list[Any]:
        await self._client.write(records)
        return records

    async def _is_applied(self, change: _Change) -> bool:
        """Return whether a change was applied. Its slot must not have had another change since."""
        (record,) = await self._client.read([self._key(change.key)])
        return record is not None and record[1].get(_RECEIPTS, {}).get(change.slot) == change.number

    def _charge(self, change: _Change) -> Any:
        below_limit = expressions.LE(expressions.IntBin(_USED), change.limit - change.count)
        return self._record(change, below_limit, {})

    def _refund(self, change: _Change) -> Any:
        enough = expressions.GE(expressions.IntBin(_USED), -change.count)
        # If the record was lost, there is nothing to take back.
        return self._record(change, enough, {"exists": aerospike.POLICY_EXISTS_UPDATE})

    def _record(self, change: _Change, condition: Any, policy: dict[str, Any]) -> Any:
        ops = [
            operations.increment(_USED, change.count),
            map_operations.map_put(_RECEIPTS, change.slot, change.number),
            map_operations.map_remove_by_value_range(
                _RECEIPTS, 0, change.number - _RECEIPT_AGE, aerospike.MAP_RETURN_NONE
            ),
        ]
        expression = expressions.And(condition, _is_new(change.slot, change.number)).compile()
        return batch.Write(self._key(change.key), ops, policy={"expressions": expression, "ttl": _TTL, **policy})

    def _void(self, change: _Change) -> Any:
        """Take a charge back if it was applied, and prevent it if not. A second void has no effect."""
        applied = expressions.And(_has(change.slot), expressions.Eq(_number(change.slot), change.number))
        used = expressions.IntBin(_USED)
        new_value = expressions.Cond(applied, expressions.Sub(used, change.count), used)
        ops = [
            operations.increment(_USED, 0),  # creates the bin in a new record
            expression_operations.expression_write(_USED, new_value.compile()),
            map_operations.map_put(_RECEIPTS, change.slot, change.number + 1),
        ]
        policy = {"expressions": _is_new(change.slot, change.number + 1).compile(), "ttl": _TTL}
        return batch.Write(self._key(change.key), ops, policy=policy)

    def _key(self, key: str) -> tuple[str, str, str]:
        return (self._client.namespace, "quota", key)


def _can_retry(record: Any) -> bool:
    return bool(record.in_doubt or record.result == result_codes.KEY_BUSY)


def _name(cust_id: str, month: str) -> str:
    return f"{cust_id}:{month}"


def _now() -> int:
    """Unix microseconds."""
    return time.time_ns() // 1000


def _is_new(slot: str, number: int) -> Any:
    """Return whether the number is above the receipt of its slot in the record."""
    return expressions.Or(expressions.Not(_has(slot)), expressions.LT(_number(slot), number))


def _has(slot: str) -> Any:
    """Return whether the record has a receipt of the slot."""
    return expressions.And(
        expressions.BinExists(_RECEIPTS), expressions.Eq(_receipt(slot, aerospike.MAP_RETURN_COUNT), 1)
    )


def _number(slot: str) -> Any:
    """Return the receipt of the slot in the record."""
    return _receipt(slot, aerospike.MAP_RETURN_VALUE)


def _receipt(slot: str, returned: int) -> Any:
    integer = expressions.ResultType.INTEGER
    return expressions.MapGetByKey(None, returned, integer, slot, expressions.MapBin(_RECEIPTS))
