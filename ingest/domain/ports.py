"""The ports: what the core asks of a store and of a broker. Every one takes and returns lists.

Results stand in the order of the arguments. Adapters raise `StoreUnavailable` or `BrokerUnavailable` when the
dependency is away and nothing else for operational trouble; they never return partial lists.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from ingest.domain.customers import ApiKey, Customer
from ingest.domain.ledger import Change, Charge, Entry
from ingest.domain.messages import Delivery, Message, PublishOutcome


class Ledger(Protocol):
    """Entries by id, with atomic changes of single entries. Ids of one call may repeat."""

    async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
        """Create each entry unless its id exists; return what is stored now, with its generation.

        The caller won exactly where the returned `owner` is its own. That holds also for a write that timed
        out in doubt or was retried, so owners must be unique per attempt. Of equal ids in one call one wins.

        Raises:
            StoreUnavailable: some claim could not be decided. Others may have been written; they have a lease.
        """
        ...

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        """The stored entries; None where there is none or it has expired. Raises StoreUnavailable."""
        ...

    async def apply(self, changes: Sequence[Change]) -> list[Entry | None]:
        """Apply each change; return the entry as stored after it, or None where the generation was another.

        FORGET returns the entry it deleted. A repeat of a change that had happened already (in doubt, retried)
        returns the entry, where the adapter can tell, and None otherwise. Raises StoreUnavailable.
        """
        ...

    async def accept(self, entries: Sequence[Entry]) -> None:
        """Phase accepted, no lease, whatever is stored.

        Where the store has lost the entry, or it was never seen stored (generation 0), the whole entry is written.
        Doing it twice is fine. Raises StoreUnavailable: some may be accepted, some not.
        """
        ...


class Quotas(Protocol):
    """Counters of new tasks, one a customer and month."""

    async def charge(self, charges: Sequence[Charge]) -> list[bool]:
        """Add each `count` where used + count <= `limit`; atomic each. False: refused, nothing added.

        In one call a customer has one charge a month at most. Raises StoreUnavailable: nothing counts; what was added
        all the same, or may be yet, is taken back as soon as the store answers.
        """
        ...

    async def refund(self, charges: Sequence[Charge]) -> None:
        """Take back what `charge` had granted; where the store is away, as soon as it answers."""
        ...

    async def used(self, cust_id: str, month: str) -> int:
        """Tasks charged so far. Raises StoreUnavailable."""
        ...


class Registry(Protocol):
    """Customers and API keys. Raises StoreUnavailable throughout."""

    async def customer(self, cust_id: str) -> Customer | None: ...

    async def customer_by_key(self, key_hash: bytes) -> Customer | None:
        """The customer of a key that is not revoked."""
        ...

    async def customers(self) -> list[Customer]: ...

    async def save_customer(self, customer: Customer) -> None: ...

    async def keys(self, cust_id: str) -> list[ApiKey]: ...

    async def save_key(self, key: ApiKey) -> None: ...

    async def revoke_key(self, key_id: str) -> bool:
        """Revoke by public name; False where there is no such key."""
        ...


class Store(Ledger, Quotas, Registry, Protocol):
    """One store serves all three; `ready` raises StoreUnavailable unless it can take writes."""

    async def ready(self) -> None: ...

    async def close(self) -> None: ...


class Publisher(Protocol):
    """Publishes persistent messages and waits for the broker's confirm of each."""

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        """Publish all, in order; return the outcome of each. Never raises for broker trouble, never hangs.

        Cancelling the caller does not take back what was written.
        """
        ...

    async def ready(self) -> None:
        """Raises BrokerUnavailable, within seconds, unless the broker takes publishes now."""
        ...

    async def close(self) -> None: ...


class Consumer(Protocol):
    """Consumes one queue, at most `prefetch` unacknowledged deliveries at a time."""

    async def receive(self) -> list[Delivery]:
        """All deliveries that are there; waits for the first. Empty once stopped (and then for ever).

        Reconnects by itself; deliveries of a lost connection come again from the broker.
        """
        ...

    @property
    def held(self) -> int:
        """Deliveries that the broker has handed over and that are not settled, received or not."""
        ...

    def alive(self, delivery: Delivery) -> bool:
        """Whether the delivery can still be acknowledged; if not, the broker delivers it again."""
        ...

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge; those of a lost connection are ignored, as they come again."""
        ...

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        """Give back for another attempt; counts towards the delivery limit."""
        ...

    async def discard(self, deliveries: Sequence[Delivery]) -> None:
        """Let the broker dead-letter them as they are."""
        ...

    async def pause(self) -> None:
        """Hold nothing: give back what is unacknowledged, which may count as a delivery, and take no more."""
        ...

    async def resume(self) -> None:
        """Consume again after `pause`."""
        ...

    async def stop(self) -> None:
        """Take no more; what was delivered can still be acknowledged."""
        ...

    async def close(self) -> None: ...


class ConnectionState(msgspec.Struct, frozen=True):
    """How one connection of a broker is: `reconnects` and `blocked_seconds` only grow."""

    name: str
    connected: bool = False
    reconnects: int = 0
    blocked_seconds: float = 0.0


class Broker(Protocol):
    """Hands out publishers and consumers; `declare` makes the topology exist."""

    @property
    def user(self) -> str | None:
        """The user that the broker sees, where it is known."""
        ...

    def connections(self) -> list[ConnectionState]:
        """One of each publisher and consumer that has a connection of its own."""
        ...

    async def declare(self) -> None:
        """Raises ConfigurationError where what exists differs in a way that cannot be changed."""
        ...

    async def publisher(self, connections: int = 1) -> Publisher:
        """`connections`: over how many to spread the calls, where the broker has any."""
        ...

    async def consumer(self, queue: str, prefetch: int) -> Consumer: ...

    async def close(self) -> None: ...


class DeadLetterQueue(Protocol):
    """`ingest.dead`, to look through and to clear. What is not removed stays, in its order."""

    async def count(self) -> int:
        """Messages that are there. Raises BrokerUnavailable, ConfigurationError where looking would be unsafe."""
        ...

    def browse(self) -> AsyncIterator[list[Delivery]]:
        """All that is there when it begins, the oldest first; once. Raises as `count` does."""
        ...

    async def remove(self, deliveries: Sequence[Delivery]) -> None:
        """They are done. Raises BrokerUnavailable where they will come again."""
        ...

    async def close(self) -> None:
        """Give back what was not removed."""
        ...
