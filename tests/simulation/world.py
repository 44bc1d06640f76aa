"""One simulated world: two shims, three workers, clients and producers, run along a schedule."""

import asyncio
import contextlib
import random
from datetime import UTC, datetime
from functools import partial
from typing import Final

from ingest.admission import Admission
from ingest.broker.bundles.broker import BundlingBroker
from ingest.broker.bundles.dead_letters import UnbundledDeadLetters
from ingest.domain.errors import BrokerUnavailable
from ingest.domain.ports import Publisher
from ingest.domain.topology import BULK_QUEUES, INGEST_QUEUES
from ingest.operations.dead_letters import Selection, redrive
from ingest.shim.heavy import HeavyCustomers
from ingest.shim.submit import Submitter
from ingest.shim.traffic import TrafficRouter
from ingest.worker import Worker
from ingest.worker.breaker import CircuitBreaker
from tests.simulation.broker import SimulatedBroker, SimulatedDeadLetters, SimulatedPublisher
from tests.simulation.clients import Attempt, Clients
from tests.simulation.customers import CUSTOMERS
from tests.simulation.disturb import disturb
from tests.simulation.loop import SimulatedLoop
from tests.simulation.machines import EPOCH, LEASE, Network, Process
from tests.simulation.queues import SERVICE_USER, WORKER_QUEUES, BrokerState
from tests.simulation.schedule import SHIMS, WORKERS, Expired, Fault, Redrive, Schedule, Submit
from tests.simulation.store import SimulatedStore
from tests.simulation.store_state import StoreState

DOUBT: Final = 120.0
"""Seconds for which a claim in doubt keeps its key from other bodies."""
START: Final = 0.2
"""Virtual seconds before the schedule begins, so that every process runs."""
_REQUEST_DEADLINE: Final = 10.0
_PREFETCH: Final = 4
_FLOOR: Final = 3
"""Tasks within some seconds from which on a customer is heavy, which few submissions reach."""
_REFUND_INTERVAL: Final = 20.0
_AFTERWARDS: Final = DOUBT / 2 + 2 * _REFUND_INTERVAL + 10.0
_SETTLE: Final = DOUBT + 60.0
_TRUSTED: Final = frozenset({SERVICE_USER})
_MONTH_END: Final = datetime(2026, 10, 1, tzinfo=UTC).timestamp()


class World:
    """Runs a schedule; afterwards the states and the attempts can be examined.

    Args:
        schedule: what happens.
        settle: virtual seconds after the end of the schedule within which everything must be finished.
    """

    def __init__(self, schedule: Schedule, *, settle: float = _SETTLE) -> None:
        self.schedule = schedule
        self._settle = settle
        self.loop = SimulatedLoop()
        month_end = schedule.month_end
        epoch = EPOCH if month_end is None else _MONTH_END - START - month_end
        self.network = Network(self.loop, schedule.seed, epoch)
        self.store = StoreState(self.network)
        self.broker = BrokerState(self.network)
        self.unfinished = ""
        """What was not finished in time; empty if everything was."""
        self.consumers: dict[str, SimulatedBroker] = {}
        """What each worker consumes with."""
        self._submitters: dict[str, Submitter] = {}
        self._redrives: list[asyncio.Task[None]] = []
        self.shims = {name: Process(name, self.network, self._shim, schedule.skews.get(name, 0.0)) for name in SHIMS}
        self.workers = {
            name: Process(name, self.network, self._worker, schedule.skews.get(name, 0.0)) for name in WORKERS
        }
        self._clients = Clients(self.network, self.store, self.broker, self.shims, self._submitters)
        self.store.customers |= CUSTOMERS

    @property
    def attempts(self) -> list[Attempt]:
        """Every attempt of a client, in the order in which they ended."""
        return self._clients.attempts

    @property
    def processes(self) -> dict[str, Process]:
        return self.shims | self.workers

    def run(self) -> None:
        """Run to the end. Raises Stuck."""
        random.seed(self.schedule.seed)  # jitter
        self.loop.run(self._main())

    async def _main(self) -> None:
        for process in (self._clients.process, *self.processes.values()):
            process.start()
        clients: list[asyncio.Task[None]] = []
        for action in self.schedule.actions:
            await asyncio.sleep(max(0.0, START + action.at - self.loop.time()))
            if isinstance(action, Submit):
                clients.append(asyncio.create_task(self._clients.run(action)))
            else:
                self._disturb(action)
        await asyncio.sleep(max(0.0, START + self.schedule.end - self.loop.time()))
        await self._settle_down(clients)
        expired = any(isinstance(action, Expired) for action in self.schedule.actions)
        if self.network.rng.random() < 0.3 or expired:
            # Replaying all dead letters twice adds nothing, or what can be accepted now.
            for _ in range(2):
                await self._redrive(self._settle)
                await self._settle_down(clients)
        for task in (*clients, *self._redrives):
            if task.done():
                task.result()

    async def _settle_down(self, clients: list[asyncio.Task[None]]) -> None:
        """Wait until nothing is in progress and nothing is in doubt; record it if that takes too long."""
        give_up = self.loop.time() + self._settle
        while self.loop.time() < give_up:
            if all(client.done() for client in clients) and not self._in_progress():
                await asyncio.sleep(_AFTERWARDS)
                return
            await asyncio.sleep(1.0)
        waiting = sum(not client.done() for client in clients)
        self.unfinished = f"{waiting} clients wait; {self._in_progress()}"

    def _in_progress(self) -> str:
        queues = [self.broker.queues[name] for name in WORKER_QUEUES]
        left = [f"{queue.definition.name} has {len(queue.ready)} ready" for queue in queues if queue.ready]
        left += [
            f"{queue.definition.name} has {consumer.held} unacknowledged"
            for queue in queues
            for consumer in queue.consumers
            if consumer.held
        ]
        left += [f"{name} is down" for name, process in self.processes.items() if not process.alive]
        return ", ".join(left)

    def _disturb(self, fault: Fault) -> None:
        if isinstance(fault, Redrive):
            self._redrives.append(asyncio.create_task(self._redrive(fault.seconds, fault.customer)))
        else:
            disturb(self, fault)

    async def _redrive(self, seconds: float, customer: str | None = None) -> None:
        """Redrive; crash after so many seconds, at any await: what was not removed until then is in the queue again."""
        publisher = SimulatedPublisher(self.broker, self._clients.process)
        queue = UnbundledDeadLetters(SimulatedDeadLetters(self.broker), _TRUSTED, partial(_return, publisher))
        redriving = asyncio.create_task(redrive(queue, publisher, Selection(customer=customer), _TRUSTED))
        try:
            await asyncio.wait([redriving], timeout=seconds)
        finally:
            await queue.close()
            redriving.cancel()
        with contextlib.suppress(asyncio.CancelledError, BrokerUnavailable):
            await redriving

    # Processes

    async def _shim(self, process: Process) -> None:
        store = SimulatedStore(self.store, process)
        publisher = await BundlingBroker(SimulatedBroker(self.broker, process), _TRUSTED).publisher()
        router = TrafficRouter(HeavyCustomers(clock=self.loop.time, floor=_FLOOR))
        submitter = Submitter(self._admission(process, store), publisher, _REQUEST_DEADLINE, router=router)
        self._submitters[process.name] = submitter
        await process.stopping.wait()
        while requests := self._clients.requests[process.name]:
            await asyncio.wait(requests)
        await submitter.drain()
        await publisher.close()
        await store.close()

    def _admission(self, process: Process, store: SimulatedStore) -> Admission:
        return Admission(store, lease=LEASE, doubt=DOUBT, clock=process.clock, monotonic=self.loop.time)

    async def _worker(self, process: Process) -> None:
        store = SimulatedStore(self.store, process)
        broker = self.consumers[process.name] = SimulatedBroker(self.broker, process)
        worker = Worker(
            store=store,
            broker=BundlingBroker(broker, _TRUSTED),
            admission=self._admission(process, store),
            trusted_users=_TRUSTED,
            prefetch=dict.fromkeys(INGEST_QUEUES, _PREFETCH) | dict.fromkeys(BULK_QUEUES, 2),
            refund_interval=_REFUND_INTERVAL,
            circuit_breaker=CircuitBreaker(clock=self.loop.time),
            monotonic=self.loop.time,
        )
        process.run(_stop_worker(process, worker))
        await worker.run()
        await broker.close()
        await store.close()


async def _return(publisher: Publisher) -> Publisher:
    return publisher


async def _stop_worker(process: Process, worker: Worker) -> None:
    await process.stopping.wait()
    worker.stop()
