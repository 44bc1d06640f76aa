"""The ports: what the core needs from a store and from a broker. Methods take and return lists.

Results are in the order of the arguments, and lists are never partial. For operational trouble an adapter raises
`StoreUnavailable` or `BrokerUnavailable` and nothing else.

Trouble with one record, or with one node of a cluster, does not fail the rest of a call: the results of entries and
charges that the store cannot decide are UNDECIDED. StoreUnavailable means that it could decide nothing.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from ingest.domain.customers import ApiKey, Customer
from ingest.domain.ledger import Change, Charge, Entry, StoredEntry, Undecided
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.rates import PermitClaim


class Ledger(Protocol):
    """Entries by id. A change of one entry is atomic. Ids may repeat within one call."""

    async def claim(self, entries: Sequence[Entry]) -> Sequence[Entry | Undecided]:
        """Create each entry unless its id exists; return what is stored now, with its generation (1 if it is new).

        The caller has the claim if the returned `owner` is its own. This also holds after a write that timed out or was
        retried, so an owner must be unique per attempt. Of equal ids in one call exactly one wins. An UNDECIDED claim
        may have been written, also if StoreUnavailable is raised.
        """
        ...

    async def read(self, ids: Sequence[str]) -> Sequence[Entry | Undecided | None]:
        """Return the stored entries; None for an entry that does not exist or has expired."""
        ...

    async def inspect(self, ids: Sequence[str]) -> Sequence[StoredEntry | Undecided | None]:
        """Return what `read` returns, with the age of each entry."""
        ...

    async def apply(self, changes: Sequence[Change]) -> Sequence[Entry | Undecided | None]:
        """Apply each change; return the entry as stored after it, or None if it took no effect (`takes_effect`).

        FORGET returns the deleted entry. If a change is retried after a write in doubt that had succeeded, the entry is
        returned if the adapter can recognise this, otherwise None. An UNDECIDED change may have taken effect, or may do
        so later.
        """
        ...

    async def in_doubt(self, idle: int) -> list[Entry]:
        """Return claims that earlier attempts have charged and that have not changed for `idle` milliseconds.

        The submission may have been published, but no worker has accepted it. `idle` must be longer than a lease.
        Raises StoreUnavailable.
        """
        ...

    async def accept(self, entries: Sequence[Entry]) -> Sequence[bool]:
        """Set phase accepted and end the lease, whatever is stored; return whether each entry is accepted now.

        If the store has lost the entry, or it was never stored (generation 0), the whole entry is written. A second
        call has no effect.
        """
        ...


class Quotas(Protocol):
    """Counters of new tasks, one per customer and month."""

    async def charge(self, charges: Sequence[Charge]) -> Sequence[bool | Undecided]:
        """Add each `count` if used + count <= `limit`, atomically; return False for a charge that was refused.

        One call has at most one charge per customer and month. An UNDECIDED charge does not count: if it was added, or
        still is, the store takes it back once it answers. The same holds if StoreUnavailable is raised.
        """
        ...

    async def refund(self, charges: Sequence[Charge]) -> None:
        """Take back charges that were granted.

        An adapter with background retries (Aerospike) does this once the store answers; others raise StoreUnavailable.
        """
        ...

    async def used(self, cust_id: str, month: str) -> int:
        """Return the number of tasks charged in the month (`YYYY-MM`, UTC). Raises StoreUnavailable."""
        ...

    async def used_by(self, cust_ids: Sequence[str], month: str) -> list[int]:
        """Return what `used` returns, for each customer. Raises StoreUnavailable."""
        ...


class Rates(Protocol):
    """Counters of permits, one per customer and window of its rate limit. They are kept for minutes."""

    async def claim_permits(self, claims: Sequence[PermitClaim]) -> Sequence[int | Undecided]:
        """Add each `count` to the counter of its window, atomically; return the sum after it (`domain.rates.granted`).

        One call has at most one claim per window. An UNDECIDED claim may have been added, or may be later: then its
        permits are lost. The same holds if StoreUnavailable is raised.
        """
        ...


class Registry(Protocol):
    """Customers, API keys, and the queues of direct producers. Every method raises StoreUnavailable."""

    async def customer(self, cust_id: str) -> Customer | None: ...

    async def customer_by_key(self, key_hash: bytes) -> Customer | None:
        """Return the customer of a key; None if the key is unknown or revoked."""
        ...

    async def customers(self, prefix: str = "", limit: int | None = None) -> list[Customer]:
        """Return the customers whose cust_id begins with `prefix`, by cust_id; at most the first `limit`."""
        ...

    async def save_customer(self, customer: Customer) -> None: ...

    async def producers(self) -> dict[str, float]:
        """Return the direct producers that have queues of their own, by cust_id, with the weight of the customer."""
        ...

    async def add_producer(self, cust_id: str) -> None:
        """Add such a producer. It may exist."""
        ...

    async def remove_producer(self, cust_id: str) -> None:
        """Remove such a producer. It need not exist."""
        ...

    async def keys(self, cust_id: str) -> list[ApiKey]: ...

    async def key_counts(self, cust_ids: Sequence[str]) -> list[int]:
        """Return how many API keys that are not revoked each customer has."""
        ...

    async def record_key_use(self, key_ids: Sequence[str], used_at: int) -> None:
        """Set `last_used_at` of keys, in Unix milliseconds. Ids of keys that do not exist have no effect."""
        ...

    async def save_key(self, key: ApiKey) -> None: ...

    async def revoke_key(self, key_id: str) -> bool:
        """Revoke a key by its public name; return False if there is no such key."""
        ...


class Store(Ledger, Quotas, Rates, Registry, Protocol):
    """One store for all four."""

    async def ready(self) -> None:
        """Raise StoreUnavailable unless the store takes writes now."""
        ...

    async def close(self) -> None: ...


class Publisher(Protocol):
    """Publishes persistent messages and waits for the broker's confirms."""

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        """Publish all messages in order; return the outcome of each. Never raises for broker trouble, never hangs.

        If the caller is cancelled, messages that were written are still published.
        """
        ...

    async def ready(self) -> None:
        """Raise BrokerUnavailable, within seconds, unless the broker takes publishes now."""
        ...

    async def close(self) -> None: ...


class Acknowledger(Protocol):
    """Finishes deliveries."""

    def alive(self, delivery: Delivery) -> bool:
        """Return whether the delivery can still be acknowledged. If not, the broker delivers it again."""
        ...

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge deliveries. Those of a lost connection are ignored, because the broker delivers them again."""
        ...

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        """Return deliveries for another attempt. Each counts towards the delivery limit, unless it was in a bundle."""
        ...


class Consumer(Acknowledger, Protocol):
    """Consumes one queue, with at most `prefetch` unacknowledged deliveries."""

    async def receive(self) -> list[Delivery]:
        """Return all deliveries that have arrived; wait for the first one. An empty list means stopped.

        The consumer reconnects by itself; the broker redelivers what a lost connection had delivered.
        """
        ...

    @property
    def held(self) -> int:
        """The number of deliveries that are not finished, whether `receive` has returned them or not."""
        ...

    async def set_apart(self, deliveries: Sequence[Delivery], extra: int) -> None:
        """Let deliveries that were attempted wait without delaying others.

        Args:
            deliveries: they are not finished yet.
            extra: how many unacknowledged deliveries to allow in addition to the prefetch, until the connection is
                lost. A smaller number than before has no effect.

        Raises:
            BrokerUnavailable: no more deliveries can be allowed now.
        """
        ...

    async def pause(self) -> None:
        """Return everything unacknowledged, which may count as a delivery, and take no more."""
        ...

    async def resume(self) -> None:
        """Consume again after `pause`."""
        ...

    async def stop(self) -> None:
        """Take no more deliveries; those that were delivered can still be acknowledged."""
        ...

    async def close(self) -> None: ...


class ConnectionState(msgspec.Struct, frozen=True):
    """The state of one connection to a broker. `reconnects` and `blocked_seconds` only grow."""

    name: str
    connected: bool = False
    reconnects: int = 0
    blocked_seconds: float = 0.0


class Broker(Protocol):
    """Makes publishers and consumers, and declares the topology."""

    @property
    def user(self) -> str | None:
        """The AMQP user of the service, if it is known."""
        ...

    def connections(self) -> list[ConnectionState]:
        """Return the connections of all publishers and consumers."""
        ...

    async def declare(self) -> None:
        """Declare the topology. Existing parts are kept.

        Raises:
            BrokerUnavailable: the broker does not answer.
            ConfigurationError: a part exists with other properties, or the user may not declare it.
        """
        ...

    async def depths(self, queues: Sequence[str]) -> dict[str, int | None]:
        """Return how many messages each queue has that are not delivered; None for one that does not exist.

        Raises BrokerUnavailable.
        """
        ...

    async def publisher(self, connections: int = 1) -> Publisher:
        """Make a publisher that distributes its calls over so many connections, if the broker has connections."""
        ...

    async def consumer(self, queue: str, prefetch: int) -> Consumer: ...

    async def close(self) -> None: ...


class DeadLetterQueue(Protocol):
    """`ingest.dead`, to read and to clear. Messages that are not removed stay in their order."""

    async def count(self) -> int:
        """Return the number of messages. Raises BrokerUnavailable, or ConfigurationError if reading would lose some."""
        ...

    async def size(self) -> int | None:
        """Return how many bytes the messages have together, with their headers; None if that is not known.

        Raises as `count`.
        """
        ...

    def browse(self) -> AsyncIterator[list[Delivery]]:
        """Yield all messages that are in the queue at the start, oldest first. Call it once. Raises as `count`."""
        ...

    async def remove(self, deliveries: Sequence[Delivery]) -> None:
        """Remove messages. Raises BrokerUnavailable if they were not removed."""
        ...

    async def close(self) -> None:
        """Return the messages that were not removed."""
        ...
