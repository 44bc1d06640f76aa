"""The state of a simulated store: what its servers hold and decide, one record at a time."""

from collections import Counter, defaultdict
from typing import Final

import msgspec

from ingest.domain.customers import Customer
from ingest.domain.ledger import UNLIMITED, Change, Charge, Entry, Phase, Step, accepted, after, takes_effect
from tests.simulation.machines import Network

_OUTDATED: Final = 100.0
"""Seconds for which a process may use an outdated customer: its cache, an attempt, and a pause."""


class StoreState:
    """What the store's servers hold. Its clock decides what has expired."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.ledger: dict[str, tuple[float, Entry]] = {}
        """By id: the end of its life in virtual seconds, and the entry."""
        self.used: dict[tuple[str, str], int] = defaultdict(int)
        """Tasks charged, by customer and month."""
        self.customers: dict[str, Customer] = {}
        self.limits: dict[str, list[tuple[float, int]]] = defaultdict(list)
        """By customer: until when the earlier limits held, in virtual seconds, and the limits."""
        self.accepted: Counter[str] = Counter()
        """Tasks settled, by customer. An entry that was lost or has expired counts again."""
        self.overdrawn: Counter[str] = Counter()
        """Tasks charged beyond the quota, by customer."""
        self.lost: Counter[str] = Counter()
        """Tasks of the submissions whose records were lost, by customer."""
        self.problems: list[str] = []
        """Calls that break a guarantee."""

    def stored(self, id_: str) -> Entry | None:
        expires, entry = self.ledger.get(id_, (0.0, None))
        return entry if expires > self._network.loop.time() else None

    def claim(self, entry: Entry) -> Entry:
        return self.stored(entry.id) or self._write(msgspec.structs.replace(entry, generation=1))

    def apply(self, change: Change) -> Entry | None:
        stored = self.stored(change.entry.id)
        if stored is None:
            return None
        unchanged_for = self._network.loop.time() - (self.ledger[stored.id][0] - stored.time_to_live)
        if not takes_effect(change, stored, int(unchanged_for * 1000)):
            return None
        if change.step is Step.FORGET:
            del self.ledger[change.entry.id]
            return stored
        return self._write(after(change, stored.generation + 1))

    def in_doubt(self, idle: int) -> list[Entry]:
        now = self._network.loop.time()
        return [
            entry
            for expires, entry in self.ledger.values()
            if expires > now and entry.charged and not entry.is_durable
            if (now - (expires - entry.time_to_live)) * 1000 >= idle
        ]

    def accept(self, entry: Entry) -> bool:
        stored = self.stored(entry.id)
        if stored is None or stored.phase is not Phase.ACCEPTED:
            self.accepted[entry.cust_id] += entry.tasks
        latest = stored if stored and entry.generation else entry
        generation = stored.generation + 1 if stored else 1
        self._write(msgspec.structs.replace(accepted(latest), generation=generation))
        return True

    def charge(self, charge: Charge) -> bool:
        key = (charge.cust_id, charge.month)
        if self.used[key] + charge.count > charge.limit:
            return False
        self.used[key] += charge.count
        if self.used[key] > (highest := self._highest_limit(charge.cust_id)) and charge.limit > highest:
            # Of what an attempt that ended without a trace may have published.
            self.overdrawn[charge.cust_id] += min(charge.count, self.used[key] - highest)
        elif self.used[key] > highest + self.overdrawn[charge.cust_id]:
            self.problems.append(f"{charge.cust_id} is charged for {self.used[key]} tasks, which exceeds its quota")
        return True

    def refund(self, charge: Charge) -> None:
        key = (charge.cust_id, charge.month)
        if charge.count > self.used[key]:
            self.problems.append(f"refund of {charge.count} tasks of {charge.cust_id} in {charge.month}: too many")
        self.used[key] = max(0, self.used[key] - charge.count)

    def change_customer(self, cust_id: str, customer: Customer | None) -> None:
        """Save a customer, or delete it (None). Requests in progress may still use what was saved before."""
        before = self.customers.pop(cust_id, None)
        if before is not None:
            self.limits[cust_id].append((self._network.loop.time() + _OUTDATED, _limit(before)))
        if customer is not None:
            self.customers[cust_id] = customer

    def lose(self, id_: str) -> None:
        """Lose an entry, if it exists."""
        if (entry := self.stored(id_)) is not None:
            self.lost[entry.cust_id] += max(1, entry.task_count)  # also its items, which may never be accepted
            del self.ledger[id_]

    def _highest_limit(self, cust_id: str) -> int:
        """Return the highest limit that a request in progress may know."""
        now = self._network.loop.time()
        limits = [limit for until, limit in self.limits[cust_id] if until >= now]
        if cust_id in self.customers:
            limits.append(_limit(self.customers[cust_id]))
        return max(limits, default=UNLIMITED)

    def _write(self, entry: Entry) -> Entry:
        self.ledger[entry.id] = (self._network.loop.time() + entry.time_to_live, entry)
        return entry


def _limit(customer: Customer) -> int:
    return UNLIMITED if customer.monthly_quota is None else customer.monthly_quota
