"""Fakes of the ports, for behaviour that real servers do not show on demand."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Final

from ingest.domain.errors import BrokerUnavailable, StoreUnavailable
from ingest.domain.ledger import UNDECIDED, Entry, Undecided
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.rates import PermitClaim
from ingest.store.sqlite import SqliteStore


class ScriptedPublisher:
    """Answers every publish with `outcome` and records the messages."""

    def __init__(self, outcome: PublishOutcome = PublishOutcome.CONFIRMED) -> None:
        self.outcome = outcome
        self.sent: list[Message] = []

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        self.sent += messages
        return [self.outcome] * len(messages)

    async def ready(self) -> None:
        if self.outcome is not PublishOutcome.CONFIRMED:
            raise BrokerUnavailable("scripted")

    async def close(self) -> None:
        """There is nothing to close."""


class AckingConsumer:
    """Delivers nothing and records what is acknowledged."""

    def __init__(self) -> None:
        self.acked: list[Delivery] = []

    async def receive(self) -> list[Delivery]:
        return []

    @property
    def held(self) -> int:
        return 0

    def alive(self, delivery: Delivery) -> bool:
        return delivery not in self.acked

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self.acked += deliveries

    async def set_apart(self, deliveries: Sequence[Delivery], extra: int) -> None:
        """There is no prefetch."""

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        raise AssertionError("not expected")

    async def pause(self) -> None:
        """There is nothing to return."""

    async def resume(self) -> None:
        """There is nothing to consume."""

    async def stop(self) -> None:
        """There is nothing to stop."""

    async def close(self) -> None:
        """There is nothing to close."""


MONTHS: Final = ("2026-03", "2026-04")
"""The month in which `Clock` starts, and the one that begins half an hour later."""


async def used(store: SqliteStore, cust_id: str = "c") -> int:
    """Return the tasks charged in both months."""
    return sum([await store.used(cust_id, month) for month in MONTHS])


class Clock:
    """Unix time in seconds, which a test sets."""

    def __init__(self, now: float = 1_775_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class UnreliableStore(SqliteStore):
    """A store that can fail to settle, or settle and lose the answer."""

    can_settle = True
    loses_answer = False

    async def accept(self, entries: Sequence[Entry]) -> list[bool]:
        if not self.can_settle:
            raise StoreUnavailable("unavailable")
        accepted = await super().accept(entries)
        if self.loses_answer:
            raise StoreUnavailable("no answer")
        return accepted


class CountedPermits:
    """Counts permits in memory. `calls` are the claims of each call; `trouble` makes calls hang, fail or undecided."""

    def __init__(self) -> None:
        self.claimed: Counter[tuple[str, int, int]] = Counter()
        self.calls: list[Sequence[PermitClaim]] = []
        self.trouble = ""

    async def claim_permits(self, claims: Sequence[PermitClaim]) -> Sequence[int | Undecided]:
        self.calls.append(claims)
        await asyncio.sleep(3 if self.trouble == "hangs" else 0)
        if self.trouble in ("hangs", "fails"):
            raise StoreUnavailable("scripted")
        sums: list[int | Undecided] = []
        for claim in claims:
            window = (claim.cust_id, claim.seconds, claim.number)
            self.claimed[window] += claim.count
            sums.append(UNDECIDED if self.trouble == claim.cust_id else self.claimed[window])
        return sums
