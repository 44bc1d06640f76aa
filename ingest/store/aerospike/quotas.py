"""The quota counters on an Aerospike cluster, exact also where an answer is lost.

Whoever changes a counter leaves a receipt in the same record: its lane, which has one change under way at a time, and
the change's number, which only grows. A change whose number is not above that of its lane in the record has no effect:
none takes effect twice, nor late, after it was given up.
"""

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import aerospike
import msgspec
import structlog
from aerospike_helpers import expressions as exp
from aerospike_helpers.batch import records as batch
from aerospike_helpers.operations import expression_operations, map_operations, operations

from ingest.domain.customers import DAY
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Charge
from ingest.store.aerospike import client
from ingest.store.aerospike.client import AerospikeClient

_TTL: Final = 100 * DAY
_ROUNDS: Final = 5
_PAUSES: Final = (0.1, 5.0)
"""First and longest pause between two tries to end a doubt, in seconds."""
_LAST: Final = 3.0
"""Seconds for that once the store is to be closed."""
_FORGOTTEN: Final = 3_600_000_000
"""Microseconds after which a receipt is dropped. A doubt is given up after half of that, as without its receipt a
refund could take effect twice; the other half is for clocks that differ."""
_USED: Final = "used"
_RECEIPTS: Final = "receipts"
_CERTAIN: Final = frozenset({client.OK, client.FILTERED_OUT, client.NOT_FOUND})

_log = structlog.get_logger(__name__)


class _Change(msgspec.Struct, frozen=True):
    """Add `count` to the counter `key`, where that does not come to more than `limit`. `number`: Unix microseconds."""

    key: str
    count: int
    limit: int
    lane: str
    number: int


_Doubt = tuple[Callable[[_Change], Any], _Change]
"""What is to be repeated until its outcome is certain: a void or a refund."""


class AerospikeQuotas:
    """`domain.ports.Quotas` in the set `quota`: bins `used` and `receipts`."""

    def __init__(self, client: AerospikeClient) -> None:
        self._client = client
        self._process = uuid.uuid4().hex[:16]
        self._lanes: list[str] = []
        self._lane_count = 0
        self._number = 0
        self._doubts: list[_Doubt] = []
        self._ending: asyncio.Task[None] | None = None

    async def charge(self, charges: Sequence[Charge]) -> list[bool]:
        lane = self._take_lane()
        granted = [False] * len(charges)
        # The filter is not asked where there is no record yet.
        tried = {
            index: self._change(_name(each.cust_id, each.month), each.count, each.limit, lane)
            for index, each in enumerate(charges)
            if each.count <= each.limit
        }
        open_ = dict(tried)
        doubted: set[int] = set()
        try:
            for round_ in range(_ROUNDS):
                if round_:
                    await asyncio.sleep(random.uniform(0.5, 1.5) * 0.01 * 2**round_)  # noqa: S311 - jitter
                records = await self._write([self._charge(change) for change in open_.values()])
                for (index, change), record in zip(list(open_.items()), records, strict=True):
                    if record.in_doubt:
                        doubted.add(index)
                    elif record.result in (client.OK, client.FILTERED_OUT):
                        # Filtered out where it was in doubt: it is beyond the limit, or there already.
                        granted[index] = record.result == client.OK or (index in doubted and await self._is_in(change))
                        del open_[index]
                    elif record.result != client.KEY_BUSY:
                        raise self._client.unavailable(record.result, "charge failed")
                if not open_:
                    # What was refused after a doubt may come late, when there is room again.
                    self._end_later(lane, [(self._void, tried[index]) for index in doubted if not granted[index]])
                    return granted
            raise StoreUnavailable("a quota record is too busy, or does not answer")
        except BaseException:
            # Some have taken effect, or may yet: none is to count, as nobody is told that it was granted.
            self._end_later(lane, [(self._void, change) for change in tried.values()])
            raise

    async def refund(self, charges: Sequence[Charge]) -> None:
        counts: Counter[str] = Counter()
        for each in charges:
            counts[_name(each.cust_id, each.month)] += each.count
        lane = self._take_lane()
        left: list[_Doubt] = [(self._refund, self._change(key, -count, 0, lane)) for key, count in counts.items()]
        try:
            left = await self._uncertain(left)
        finally:
            self._end_later(lane, left)

    async def used(self, cust_id: str, month: str) -> int:
        found = await self._client.read([self._key(_name(cust_id, month))])
        return int(found[0][1][_USED]) if found[0] else 0

    async def close(self) -> None:
        """Before the client is closed: a little time for what is in doubt."""
        if self._ending is not None and not self._ending.done():
            await asyncio.wait([self._ending], timeout=_LAST)
            if not self._ending.done():
                self._ending.cancel()
                _log.warning("the store is away: charges that nobody was told of may stay")

    def _take_lane(self) -> str:
        if self._lanes:
            return self._lanes.pop()
        self._lane_count += 1
        return f"{self._process}.{self._lane_count}"

    def _change(self, key: str, count: int, limit: int, lane: str) -> _Change:
        # By two: the number in between is that of its end, should it be in doubt.
        self._number = max(_now(), self._number + 2)
        return _Change(key, count, limit, lane, self._number)

    def _end_later(self, lane: str, doubts: list[_Doubt]) -> None:
        """A call on the lane is over. One that leaves doubts is never used again."""
        if not doubts:
            self._lanes.append(lane)
            return
        _log.warning("quota changes in doubt, they are settled once the store answers", changes=len(doubts))
        self._doubts += doubts
        if self._ending is None or self._ending.done():
            self._ending = asyncio.create_task(self._end_doubts())

    async def _end_doubts(self) -> None:
        pause = _PAUSES[0]
        while self._doubts:
            doubts, self._doubts = self._doubts, []
            left = await self._uncertain(doubts)
            young = _now() - _FORGOTTEN // 2
            kept = [each for each in left if each[1].number > young]
            if len(kept) < len(left):
                _log.error("quota changes given up, customers may be charged too much", changes=len(left) - len(kept))
            self._doubts += kept
            if kept:
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
                pause = min(pause * 2, _PAUSES[1])

    async def _uncertain(self, doubts: list[_Doubt]) -> list[_Doubt]:
        """Try once; return those of which it is not certain that they need no other try."""
        try:
            records = await self._write([make(change) for make, change in doubts])
        except StoreUnavailable:
            return doubts
        return [each for each, record in zip(doubts, records, strict=True) if record.result not in _CERTAIN]

    async def _write(self, records: list[Any]) -> list[Any]:
        await self._client.write(records)
        return records

    async def _is_in(self, change: _Change) -> bool:
        """Whether a change has taken effect, while its lane has no other."""
        found = await self._client.read([self._key(change.key)])
        return found[0] is not None and found[0][1].get(_RECEIPTS, {}).get(change.lane) == change.number

    def _charge(self, change: _Change) -> Any:
        room = exp.LE(exp.IntBin(_USED), change.limit - change.count)
        return self._record(change, room, {})

    def _refund(self, change: _Change) -> Any:
        enough = exp.GE(exp.IntBin(_USED), -change.count)
        # A record that was lost has nothing to take back.
        exists = {"exists": aerospike.POLICY_EXISTS_UPDATE}
        return self._record(change, enough, exists)

    def _record(self, change: _Change, condition: Any, policy: dict[str, Any]) -> Any:
        ops = [
            operations.increment(_USED, change.count),
            map_operations.map_put(_RECEIPTS, change.lane, change.number),
            map_operations.map_remove_by_value_range(
                _RECEIPTS, 0, change.number - _FORGOTTEN, aerospike.MAP_RETURN_NONE
            ),
        ]
        expression = exp.And(condition, _new(change.lane, change.number)).compile()
        return batch.Write(self._key(change.key), ops, policy={"expressions": expression, "ttl": _TTL, **policy})

    def _void(self, change: _Change) -> Any:
        """Take a charge back where it has taken effect; it can have none afterwards. Twice is fine."""
        applied = exp.And(_has(change.lane), exp.Eq(_number(change.lane), change.number))
        used = exp.Cond(applied, exp.Sub(exp.IntBin(_USED), change.count), exp.IntBin(_USED))
        ops = [
            operations.increment(_USED, 0),  # there is none yet where the record is new
            expression_operations.expression_write(_USED, used.compile()),
            map_operations.map_put(_RECEIPTS, change.lane, change.number + 1),
        ]
        policy = {"expressions": _new(change.lane, change.number + 1).compile(), "ttl": _TTL}
        return batch.Write(self._key(change.key), ops, policy=policy)

    def _key(self, key: str) -> tuple[str, str, str]:
        return (self._client.namespace, "quota", key)


def _name(cust_id: str, month: str) -> str:
    return f"{cust_id}:{month}"


def _now() -> int:
    """Unix microseconds."""
    return time.time_ns() // 1000


def _new(lane: str, number: int) -> Any:
    """Whether a number is above that of its lane in the record."""
    return exp.Or(exp.Not(_has(lane)), exp.LT(_number(lane), number))


def _has(lane: str) -> Any:
    count = exp.MapGetByKey(None, aerospike.MAP_RETURN_COUNT, exp.ResultType.INTEGER, lane, exp.MapBin(_RECEIPTS))
    return exp.And(exp.BinExists(_RECEIPTS), exp.Eq(count, 1))


def _number(lane: str) -> Any:
    return exp.MapGetByKey(None, aerospike.MAP_RETURN_VALUE, exp.ResultType.INTEGER, lane, exp.MapBin(_RECEIPTS))
