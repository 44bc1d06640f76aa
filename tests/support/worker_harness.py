"""Parts of a worker for tests: a processor with a scripted publisher, and a whole running worker."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence

from ingest.admission import Admission
from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.domain import topology
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.metrics import NO_METER, Meter
from ingest.domain.ports import Store
from ingest.parsing.parser import SubmissionParser
from ingest.worker import Worker
from ingest.worker.breaker import CircuitBreaker
from ingest.worker.classify import DeliveryClassifier
from ingest.worker.processor import DeliveryProcessor, Unfinished
from ingest.worker.worker import OUTAGE_HOLD
from tests.support.fakes import AckingConsumer, ScriptedPublisher
from tests.support.tasks import TASK


class ProcessorHarness:
    """A `DeliveryProcessor` on a real ledger; its publisher and consumer record the calls."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], float] = time.time,
        meter: Meter = NO_METER,
        publisher: ScriptedPublisher | None = None,
    ) -> None:
        self.admission = Admission(store, clock=clock)
        self.publisher = publisher or ScriptedPublisher()
        self.consumer = AckingConsumer()
        self.unfinished = Unfinished()
        """What the last attempt did not finish."""
        self._parser = SubmissionParser()
        classifier = DeliveryClassifier(store, frozenset({"shim"}), self._parser, clock)
        self.processor = DeliveryProcessor(store, self.publisher, self.admission, classifier, meter)

    @property
    def unavailable(self) -> list[Delivery]:
        """The deliveries that the last attempt did not finish because a dependency was unavailable."""
        return self.unfinished.unavailable

    @property
    def undecided(self) -> list[Delivery]:
        """Those that it did not finish because the store had trouble with one of their records."""
        return self.unfinished.undecided

    async def attempt(self, *deliveries: Delivery) -> list[str]:
        """Make one attempt; return the ids of the messages that it published."""
        self.publisher.sent.clear()
        self.unfinished = await self.processor.attempt(self.consumer, deliveries)
        return [message.message_id for message in self.publisher.sent]

    async def move_to_end(self, *deliveries: Delivery) -> list[Delivery]:
        """Move deliveries to the end of their queue; return those that were not moved."""
        self.publisher.sent.clear()
        return await self.processor.move_to_end(self.consumer, deliveries)

    async def close(self) -> None:
        """End the process that parses, if an attempt has started it."""
        await self._parser.close()


class WorkerHarness:
    """A worker on the embedded broker. It runs while the context is open."""

    def __init__(
        self,
        store: Store,
        broker: EmbeddedBroker,
        prefetch: Mapping[str, int],
        *,
        outage_hold: float = OUTAGE_HOLD,
        circuit_breaker: CircuitBreaker | None = None,
        parser: SubmissionParser | None = None,
    ) -> None:
        self.broker = broker
        self.worker = Worker(
            store=store,
            broker=broker,
            admission=Admission(store),
            trusted_users=frozenset({"ingest"}),
            prefetch=prefetch,
            outage_hold=outage_hold,
            circuit_breaker=circuit_breaker,
            parser=parser,
        )
        self.running: asyncio.Task[None]
        self._submitted = 0

    async def __aenter__(self) -> "WorkerHarness":
        self.running = asyncio.create_task(self.worker.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.worker.stop()
        await asyncio.wait_for(self.running, 5)

    async def submit(self, count: int) -> None:
        """Publish tasks of the direct producer `c` in one publish, with the message_ids m0, m1, and so on."""
        await self.publish([json.dumps(TASK).encode()] * count)

    async def publish(self, bodies: Sequence[bytes]) -> None:
        """The same with any bodies."""
        first, self._submitted = self._submitted, self._submitted + len(bodies)
        messages = [
            Message(
                exchange=topology.SUBMISSIONS,
                routing_key="task.submitted.c",
                body=body,
                message_id=f"m{number}",
            )
            for number, body in enumerate(bodies, first)
        ]
        publisher = await self.broker.publisher()
        assert set(await publisher.publish(messages)) == {PublishOutcome.CONFIRMED}

    async def take(self, queue: str, count: int, seconds: float = 10) -> list[Delivery]:
        """Receive and ack at least `count` messages of a queue. Raises TimeoutError after `seconds`."""
        consumer = await self.broker.consumer(queue, 100)
        deliveries: list[Delivery] = []
        async with asyncio.timeout(seconds):
            while len(deliveries) < count:
                deliveries += await consumer.receive()
        await consumer.ack(deliveries)
        await consumer.close()
        return deliveries
