"""Ports wrapped to be watched, and to kill their own process at an exact boundary. Used by `tests.chaos.entry`.

The harness arms a point by writing its name to `<name>.arm`; the process that reaches it leaves a proof behind and
kills itself as a power cut would. What the watchers find goes to `violations`, one line each.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ingest.domain import admitted
from ingest.domain.dead_letters import digest
from ingest.domain.errors import StoreUnavailable
from ingest.domain.identity import SubmissionKind, keyed_id
from ingest.domain.ledger import Charge, Entry, Phase
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import Broker, Consumer, Publisher, Store
from ingest.domain.topology import INGEST_BATCHES
from tests.chaos.points import AFTER_CHARGE, AFTER_CLAIM, AFTER_PUBLISH, AFTER_SETTLE, MID_EXPANSION

_REMEMBERED = 200_000


class Probes:
    """What one process shares: the kill switch, the audit, and the file they write to."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._arm = directory / f"{name}.arm"
        self._poison = os.environ.get("CHAOS_POISON")
        self.confirmed: dict[str, None] = {}
        before = directory / f"{name}.most"
        self.most: dict[str, int] = json.loads(before.read_text()) if before.exists() else {}

    def decorate(self, broker: Broker, store: Store) -> tuple[Broker, Store]:
        """For `bootstrap.worker` and `bootstrap.shim`."""
        return cast("Broker", _Broker(broker, store, self)), cast("Store", _Store(store, self))

    def armed(self, point: str) -> bool:
        return self._arm.exists() and self._arm.read_text() == point

    def reach(self, point: str, detail: str) -> None:
        """Die here if the harness has asked for it."""
        if self.armed(point):
            self.leave("killed", {"point": point, "detail": detail, "pid": os.getpid(), "at": time.time()})
            self._arm.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def taste(self, message_ids: Sequence[str]) -> None:
        """Die of the message named by CHAOS_POISON, each time it is worked on."""
        if self._poison is not None and self._poison in message_ids:
            self.violate("poisoned")
            os.kill(os.getpid(), signal.SIGKILL)

    def leave(self, what: str, content: object) -> None:
        """Write `<name>.<what>`, whole or not at all."""
        path = self._directory / f"{self._name}.{what}"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(content))
        part.rename(path)

    def violate(self, sentence: str) -> None:
        with (self._directory / "violations").open("a") as file:
            file.write(f"{self._name}: {sentence}\n")

    def remember(self, id_: str) -> None:
        self.confirmed[id_] = None
        if len(self.confirmed) > _REMEMBERED:
            del self.confirmed[next(iter(self.confirmed))]


class _Around:
    """Everything that is not wrapped goes straight through."""

    def __init__(self, inner: Any, probes: Probes) -> None:
        self._inner = inner
        self._probes = probes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Store(_Around):
    async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
        self._probes.taste([entry.origin for entry in entries])
        found: list[Entry] = await self._inner.claim(entries)
        won = sum(a.owner == b.owner for a, b in zip(entries, found, strict=True))
        if won:
            self._probes.reach(AFTER_CLAIM, f"{won} claims just made")
        return found

    async def charge(self, charges: Sequence[Charge]) -> list[bool]:
        granted: list[bool] = await self._inner.charge(charges)
        if any(granted):
            tasks = sum(charge.count for charge, ok in zip(charges, granted, strict=True) if ok)
            self._probes.reach(AFTER_CHARGE, f"{tasks} tasks just charged")
        return granted

    async def accept(self, entries: Sequence[Entry]) -> None:
        await self._inner.accept(entries)
        if entries:
            self._probes.reach(AFTER_SETTLE, f"{len(entries)} entries just settled")


class _Publisher(_Around):
    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        items = [message for message in messages if b'"batch_index"' in message.body[:600]]
        if len(items) > 1 and self._probes.armed(MID_EXPANSION):
            half = len(messages) // 2
            outcomes = await self._inner.publish(messages[:half])
            if all(outcome is PublishOutcome.CONFIRMED for outcome in outcomes):
                self._probes.reach(MID_EXPANSION, f"{half} of {len(messages)} events confirmed")
        outcomes = await self._inner.publish(messages)
        confirmed = [m for m, o in zip(messages, outcomes, strict=True) if o is PublishOutcome.CONFIRMED]
        for message in confirmed:
            self._probes.remember(message.message_id)
        if confirmed:
            self._probes.reach(AFTER_PUBLISH, f"{len(confirmed)} messages just confirmed")
        return cast("list[PublishOutcome]", outcomes)


class _Consumer(_Around):
    """Counts what is in flight, and looks at every ack: are the outputs confirmed, or the entries settled?"""

    def __init__(self, inner: Consumer, queue: str, prefetch: int, store: Store, probes: Probes) -> None:
        super().__init__(inner, probes)
        self._queue = queue
        self._prefetch = prefetch
        self._store = store
        self._held: dict[Any, Delivery] = {}

    async def receive(self) -> list[Delivery]:
        got: list[Delivery] = await self._inner.receive()
        self._held = {key: each for key, each in self._held.items() if self._inner.alive(each)}
        self._held |= {each.token: each for each in got}
        count = len(self._held)
        # A leader that loses sight of this node takes its deliveries back and sends as many again, while those held
        # here can still be acknowledged: up to twice the prefetch is RabbitMQ's doing.
        if count > 2 * self._prefetch:
            self._probes.violate(f"{count} deliveries of {self._queue} in flight, prefetch is {self._prefetch}")
        if count > self._probes.most.get(self._queue, 0):
            self._probes.most[self._queue] = count
            self._probes.leave("most", self._probes.most)
        return got

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        alive = [each for each in deliveries if self._inner.alive(each)]
        doubtful = [(each, id_) for each in alive if (id_ := self._owed(each)) is not None]
        if doubtful:
            await self._look_up(doubtful)
        for each in deliveries:
            self._held.pop(each.token, None)
        await self._inner.ack(deliveries)

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        for each in deliveries:
            self._held.pop(each.token, None)
        await self._inner.requeue(deliveries)

    async def close(self) -> None:
        left = sum(self._inner.alive(each) for each in self._held.values())
        self._probes.leave(f"closed-{self._queue}", {"pid": os.getpid(), "unacknowledged": left})
        await self._inner.close()

    def _owed(self, delivery: Delivery) -> str | None:
        """The id of a submission whose events this process has not seen confirmed."""
        confirmed = self._probes.confirmed
        if delivery.type == admitted.TYPE:
            submission = admitted.from_body(delivery.body).submission
            owed = [f"{task.task_id}:accepted" for task in submission.tasks]
            if submission.kind == SubmissionKind.BATCH:
                owed.append(f"{submission.id}:accepted")
            return None if all(each in confirmed for each in owed) else submission.id
        if f"rejected:{digest(delivery)}" in confirmed:
            return None
        body = json.loads(delivery.body)
        cust_id = delivery.routing_key.rpartition(".")[2]
        kind: SubmissionKind = SubmissionKind.BATCH if self._queue == INGEST_BATCHES else SubmissionKind.TASK
        id_ = keyed_id(kind, cust_id, body.get("idempotency_key") or delivery.message_id or "")
        return None if f"{id_}:accepted" in confirmed else id_

    async def _look_up(self, doubtful: list[tuple[Delivery, str]]) -> None:
        """Another process may have done it: then the ledger says so. A refused one left a dead letter and no entry."""
        for _ in range(50):
            try:
                found = await self._store.read([id_ for _, id_ in doubtful])
                break
            except StoreUnavailable:
                await asyncio.sleep(0.2)
        else:
            return
        for (delivery, id_), entry in zip(doubtful, found, strict=True):
            if delivery.type != admitted.TYPE and (entry is None or entry.is_durable):
                continue  # a duplicate or a refusal: told by the events, which the checker counts
            if entry is None or entry.phase is not Phase.ACCEPTED:
                phase = entry.phase if entry else "not in the ledger"
                self._probes.violate(f"{id_} acknowledged with events not confirmed, it is {phase}")


class _Broker(_Around):
    def __init__(self, inner: Broker, store: Store, probes: Probes) -> None:
        super().__init__(inner, probes)
        self._store = store

    async def publisher(self, connections: int = 1) -> Publisher:
        return cast("Publisher", _Publisher(await self._inner.publisher(connections), self._probes))

    async def consumer(self, queue: str, prefetch: int) -> Consumer:
        inner = await self._inner.consumer(queue, prefetch)
        return cast("Consumer", _Consumer(inner, queue, prefetch, self._store, self._probes))
