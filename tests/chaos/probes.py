"""Decorators of the ports that watch a process and can kill it at an exact point. Used by `tests.chaos.entry`.

The harness arms a point by writing its name to `<name>.arm`. A process that reaches the point writes a proof and kills
itself with SIGKILL. Violations of invariants are appended to the file `violations`, one per line.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ingest.broker.bundles.consumer import is_bundled
from ingest.domain import admitted
from ingest.domain.bundles import MAX_SUBMISSIONS
from ingest.domain.dead_letters import digest
from ingest.domain.errors import Reason, StoreUnavailable
from ingest.domain.events import acceptance_id
from ingest.domain.identity import SubmissionKind, keyed_id
from ingest.domain.ledger import UNDECIDED, Charge, Entry, Phase, Undecided
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import Broker, Consumer, Publisher, Store
from ingest.domain.topology import ADMITTED_QUEUES, BULK_QUEUES, INGEST_BATCHES
from tests.chaos.points import AFTER_CHARGE, AFTER_CLAIM, AFTER_PUBLISH, AFTER_SETTLE, MID_EXPANSION

_WITH_BUNDLES = frozenset(ADMITTED_QUEUES) - frozenset(BULK_QUEUES)
_REMEMBERED = 200_000
"""Message ids that a process remembers as confirmed."""


class Probes:
    """State that the probes of one process share.

    `confirmed` has the ids of confirmed messages, in order, those of acceptances also without their time, because it is
    not in the message of a direct producer. `peak_in_flight` is the most deliveries that this process
    or its predecessors of the same name held at once, by queue; `bundled` is how many they received in bundles.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._arm = directory / f"{name}.arm"
        self._poison = os.environ.get("CHAOS_POISON")
        self.confirmed: dict[str, None] = {}
        peaks = directory / f"{name}.in-flight"
        self.peak_in_flight: dict[str, int] = json.loads(peaks.read_text()) if peaks.exists() else {}
        bundled = directory / f"{name}.bundled"
        self.bundled: int = json.loads(bundled.read_text()) if bundled.exists() else 0

    def decorate(self, broker: Broker, store: Store) -> tuple[Broker, Store]:
        """Return the ports with probes around them, for `bootstrap.run_worker` and `bootstrap.run_shim`."""
        return cast("Broker", _BrokerProbe(broker, store, self)), cast("Store", _StoreProbe(store, self))

    def armed(self, point: str) -> bool:
        return self._arm.exists() and self._arm.read_text() == point

    def kill_if_armed(self, point: str, detail: str) -> None:
        """Kill this process if the harness has armed this point."""
        if self.armed(point):
            self.write_file("killed", {"point": point, "detail": detail, "pid": os.getpid(), "at": time.time()})
            self._arm.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def kill_if_poisoned(self, message_ids: Sequence[str]) -> None:
        """Kill this process if it processes the message with the id CHAOS_POISON."""
        if self._poison is not None and self._poison in message_ids:
            self.record_violation("poisoned")
            os.kill(os.getpid(), signal.SIGKILL)

    def write_file(self, suffix: str, content: object) -> None:
        """Write `<name>.<suffix>` atomically, as JSON."""
        path = self._directory / f"{self._name}.{suffix}"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(content))
        part.rename(path)

    def record_violation(self, sentence: str) -> None:
        with (self._directory / "violations").open("a") as file:
            file.write(f"{self._name}: {sentence}\n")

    def remember_confirmed(self, message_id: str) -> None:
        self.confirmed[message_id] = None
        if ":accepted:" in message_id:
            self.confirmed[message_id.rpartition(":")[0]] = None
        while len(self.confirmed) > _REMEMBERED:
            del self.confirmed[next(iter(self.confirmed))]


class _Probe:
    """A decorator that passes everything through. Subclasses override the methods that they watch."""

    def __init__(self, inner: Any, probes: Probes) -> None:
        self._inner = inner
        self._probes = probes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _StoreProbe(_Probe):
    async def read(self, ids: Sequence[str]) -> Sequence[Entry | Undecided | None]:
        self._probes.kill_if_poisoned(ids)
        entries: Sequence[Entry | Undecided | None] = await self._inner.read(ids)
        return entries

    async def claim(self, entries: Sequence[Entry]) -> list[Entry | Undecided]:
        self._probes.kill_if_poisoned([entry.origin for entry in entries])
        stored: list[Entry | Undecided] = await self._inner.claim(entries)
        claims = sum(entry.owner == own.owner for own, entry in zip(entries, stored, strict=True) if entry)
        if claims:
            self._probes.kill_if_armed(AFTER_CLAIM, f"claims just made: {claims}")
        return stored

    async def charge(self, charges: Sequence[Charge]) -> list[bool | Undecided]:
        granted: list[bool | Undecided] = await self._inner.charge(charges)
        if any(granted):
            tasks = sum(charge.count for charge, ok in zip(charges, granted, strict=True) if ok)
            self._probes.kill_if_armed(AFTER_CHARGE, f"tasks just charged: {tasks}")
        return granted

    async def accept(self, entries: Sequence[Entry]) -> list[bool]:
        accepted: list[bool] = await self._inner.accept(entries)
        if any(accepted):
            self._probes.kill_if_armed(AFTER_SETTLE, f"entries just settled: {sum(accepted)}")
        return accepted


class _PublisherProbe(_Probe):
    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        item_events = [message for message in messages if b'"batch_index"' in message.body[:600]]
        if len(item_events) > 1 and self._probes.armed(MID_EXPANSION):
            half = len(messages) // 2
            outcomes = await self._inner.publish(messages[:half])
            if all(outcome is PublishOutcome.CONFIRMED for outcome in outcomes):
                self._probes.kill_if_armed(MID_EXPANSION, f"{half} of {len(messages)} events confirmed")
        outcomes = await self._inner.publish(messages)
        confirmed = [
            message for message, outcome in zip(messages, outcomes, strict=True) if outcome is PublishOutcome.CONFIRMED
        ]
        for message in confirmed:
            self._probes.remember_confirmed(message.message_id)
        if confirmed:
            self._probes.kill_if_armed(AFTER_PUBLISH, f"messages just confirmed: {len(confirmed)}")
        return cast("list[PublishOutcome]", outcomes)


class _ConsumerProbe(_Probe):
    """Counts deliveries in flight, and checks at every ack that the events are confirmed or the entries settled."""

    def __init__(self, inner: Consumer, queue: str, prefetch: int, store: Store, probes: Probes) -> None:
        super().__init__(inner, probes)
        self._queue = queue
        # The prefetch of RabbitMQ limits messages, which may be bundles.
        self._prefetch = prefetch * (MAX_SUBMISSIONS if queue in _WITH_BUNDLES else 1)
        self._store = store
        self._held: dict[Any, Delivery] = {}
        self._extra = 0

    async def receive(self) -> list[Delivery]:
        received: list[Delivery] = await self._inner.receive()
        self._held = {token: delivery for token, delivery in self._held.items() if self._inner.alive(delivery)}
        self._held |= {delivery.token: delivery for delivery in received}
        if bundled := sum(is_bundled(delivery) for delivery in received):
            self._probes.bundled += bundled
            self._probes.write_file("bundled", self._probes.bundled)
        count = len(self._held)
        # If a queue's leader loses its connection to the consumer's node, it returns the consumer's deliveries to the
        # queue and sends others, while the first can still be acknowledged. So twice the prefetch is possible.
        if count > 2 * (self._prefetch + self._extra):
            self._probes.record_violation(
                f"{count} deliveries of {self._queue} in flight, prefetch is {self._prefetch}"
            )
        if count > self._probes.peak_in_flight.get(self._queue, 0):
            self._probes.peak_in_flight[self._queue] = count
            self._probes.write_file("in-flight", self._probes.peak_in_flight)
        return received

    async def set_apart(self, deliveries: Sequence[Delivery], extra: int) -> None:
        # For what waits apart the prefetch is raised, in steps, until the connection is lost.
        self._extra = max(self._extra, extra + self._prefetch)
        await self._inner.set_apart(deliveries, extra)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        alive = [delivery for delivery in deliveries if self._inner.alive(delivery)]
        unconfirmed = [
            (delivery, submission_id)
            for delivery in alive
            if (submission_id := self._unconfirmed_submission(delivery)) is not None
        ]
        if unconfirmed:
            await self._check_ledger(unconfirmed)
        for delivery in deliveries:
            self._held.pop(delivery.token, None)
        await self._inner.ack(deliveries)

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._held.pop(delivery.token, None)
        await self._inner.requeue(deliveries)

    async def close(self) -> None:
        unacknowledged = sum(self._inner.alive(delivery) for delivery in self._held.values())
        self._probes.write_file(f"closed-{self._queue}", {"pid": os.getpid(), "unacknowledged": unacknowledged})
        await self._inner.close()

    def _unconfirmed_submission(self, delivery: Delivery) -> str | None:
        """Return the submission's id if this process has not seen a confirm of each of its events, otherwise None."""
        confirmed = self._probes.confirmed
        if delivery.type == admitted.TYPE:
            message = admitted.from_body(delivery.body)
            submission, own = message.submission, message.item_created_at
            ids = [submission.id, *[task.task_id for task in submission.tasks]]
            event_ids = [acceptance_id(id_, own.get(id_, message.created_at)) for id_ in ids]
            return None if all(event_id in confirmed for event_id in event_ids) else submission.id
        if any(f"rejected:{reason}:{digest(delivery)}" in confirmed for reason in Reason):
            return None
        body = json.loads(delivery.body)
        cust_id = delivery.routing_key.rpartition(".")[2]
        kind: SubmissionKind = SubmissionKind.BATCH if self._queue == INGEST_BATCHES else SubmissionKind.TASK
        submission_id = keyed_id(kind, cust_id, body.get("idempotency_key") or delivery.message_id or "")
        return None if f"{submission_id}:accepted" in confirmed else submission_id

    async def _check_ledger(self, unconfirmed: list[tuple[Delivery, str]]) -> None:
        """Record a violation unless another process has settled the submission.

        Nothing is checked if the store is unavailable for ten seconds.
        """
        for _ in range(50):
            try:
                entries = await self._store.read([submission_id for _, submission_id in unconfirmed])
                break
            except StoreUnavailable:
                await asyncio.sleep(0.2)
        else:
            return
        for (delivery, submission_id), entry in zip(unconfirmed, entries, strict=True):
            if entry is UNDECIDED:
                continue
            if delivery.type != admitted.TYPE and (entry is None or entry.is_durable):
                continue  # a duplicate or a rejection: the checker counts the events of these
            if entry is None or entry.phase is not Phase.ACCEPTED:
                phase = entry.phase if entry else "not in the ledger"
                self._probes.record_violation(f"{submission_id} acknowledged with events not confirmed, it is {phase}")


class _BrokerProbe(_Probe):
    def __init__(self, inner: Broker, store: Store, probes: Probes) -> None:
        super().__init__(inner, probes)
        self._store = store

    async def publisher(self, connections: int = 1) -> Publisher:
        return cast("Publisher", _PublisherProbe(await self._inner.publisher(connections), self._probes))

    async def consumer(self, queue: str, prefetch: int) -> Consumer:
        inner = await self._inner.consumer(queue, prefetch)
        return cast("Consumer", _ConsumerProbe(inner, queue, prefetch, self._store, self._probes))
