"""One simulated world: two shims, three workers, clients and producers, run along a schedule."""

import asyncio
import random
from typing import Final

from ingest.admission import Admission
from ingest.domain.customers import Customer
from ingest.domain.topology import INGEST_BATCHES, INGEST_TASKS
from ingest.operations.dead_letters import Selection, redrive
from ingest.shim.submit import Submitter
from ingest.worker import Worker
from ingest.worker.breaker import CircuitBreaker
from tests.simulation.bodies import WEBHOOK, batch_id, task_id
from tests.simulation.broker import SimulatedBroker, SimulatedDeadLetters, SimulatedPublisher
from tests.simulation.clients import Attempt, Clients, idle
from tests.simulation.loop import SimulatedLoop
from tests.simulation.machines import Network, Process, Server
from tests.simulation.queues import FEEDBACK, SERVICE_USER, BrokerState
from tests.simulation.schedule import (
    CUSTOMERS,
    SHIMS,
    WORKERS,
    Action,
    Crash,
    Doubt,
    FullQueue,
    LostConnection,
    LostRecord,
    MissingBindings,
    Outage,
    Pause,
    Schedule,
    Submit,
)
from tests.simulation.store import SimulatedStore, StoreState

QUOTAS: Final = {"free": 4, "paying": 1_000_000, "strict": 1_000_000}
LEASE: Final = 30.0
DOUBT: Final = 60.0
_REQUEST_DEADLINE: Final = 10.0
_PREFETCH: Final = 4
_REFUND_INTERVAL: Final = 20.0
_AFTERWARDS: Final = DOUBT / 2 + 2 * _REFUND_INTERVAL + 10.0
_SETTLE: Final = 240.0


class World:
    """Runs a schedule; afterwards the states and the attempts can be examined.

    Args:
        schedule: what happens.
        settle: virtual seconds after the last action within which everything must be finished.
    """

    def __init__(self, schedule: Schedule, *, settle: float = _SETTLE) -> None:
        self.schedule = schedule
        self._settle = settle
        self.loop = SimulatedLoop()
        self.network = Network(self.loop, schedule.seed)
        self.store = StoreState(self.network)
        self.broker = BrokerState(self.network)
        self.unfinished = ""
        """What was not finished in time; empty if everything was."""
        self._submitters: dict[str, Submitter] = {}
        self._consumers: dict[str, SimulatedBroker] = {}
        self.shims = {name: Process(name, self.network, self._shim, schedule.skews.get(name, 0.0)) for name in SHIMS}
        self.workers = {
            name: Process(name, self.network, self._worker, schedule.skews.get(name, 0.0)) for name in WORKERS
        }
        self._clients = Clients(self.network, self.store, self.broker, self.shims, self._submitters)
        for cust_id in CUSTOMERS:
            self.store.customers[cust_id] = Customer(
                cust_id=cust_id,
                monthly_quota=QUOTAS[cust_id],
                strict=cust_id == "strict",
                webhooks=frozenset({WEBHOOK}),
            )

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
        await asyncio.sleep(0.2)
        clients = []
        for action in self.schedule.actions:
            await asyncio.sleep(max(0.0, 0.2 + action.at - self.loop.time()))
            if isinstance(action, Submit):
                clients.append(asyncio.create_task(self._clients.run(action)))
            else:
                self._disturb(action)
        await self._settle_down(clients)
        if self.network.rng.random() < 0.3:
            # Replaying all dead letters twice adds nothing, or what can be accepted now.
            for _ in range(2):
                await self._redrive()
                await self._settle_down(clients)
        for client in clients:
            if client.done():
                client.result()

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

    async def _redrive(self) -> None:
        trusted = frozenset({SERVICE_USER})
        publisher = SimulatedPublisher(self.broker, self._clients.process)
        await redrive(SimulatedDeadLetters(self.broker), publisher, Selection(), trusted)

    def _in_progress(self) -> str:
        queues = [self.broker.queues[name] for name in (INGEST_TASKS, INGEST_BATCHES)]
        left = [f"{queue.definition.name} has {len(queue.ready)} ready" for queue in queues if queue.ready]
        left += [
            f"{queue.definition.name} has {consumer.held} unacknowledged"
            for queue in queues
            for consumer in queue.consumers
            if consumer.held
        ]
        left += [f"{name} is down" for name, process in self.processes.items() if not process.alive]
        return ", ".join(left)

    # Processes

    async def _shim(self, process: Process) -> None:
        store = SimulatedStore(self.store, process)
        admission = self._admission(process, store)
        publisher = SimulatedPublisher(self.broker, process)
        self._submitters[process.name] = Submitter(admission, publisher, _REQUEST_DEADLINE)
        await idle(process)

    def _admission(self, process: Process, store: SimulatedStore) -> Admission:
        return Admission(store, lease=LEASE, doubt=DOUBT, clock=process.clock, monotonic=self.loop.time)

    async def _worker(self, process: Process) -> None:
        store = SimulatedStore(self.store, process)
        broker = self._consumers[process.name] = SimulatedBroker(self.broker, process)
        worker = Worker(
            store=store,
            broker=broker,
            admission=self._admission(process, store),
            trusted_users=frozenset({SERVICE_USER}),
            prefetch={INGEST_TASKS: _PREFETCH, INGEST_BATCHES: 2},
            refund_interval=_REFUND_INTERVAL,
            circuit_breaker=CircuitBreaker(clock=self.loop.time),
        )
        await worker.run()
        raise AssertionError(f"{process.name} has stopped by itself")

    def _disturb(self, action: Action) -> None:
        match action:
            case Crash(process=name, down=down):
                self.processes[name].crash(down)
            case Pause(process=name, seconds=seconds):
                self.processes[name].pause(seconds)
            case LostConnection(process=name):
                for consumer in self._consumers[name].consumers:
                    consumer.lose_connection()
            case _:
                self._disturb_server(action)

    def _disturb_server(self, action: Action) -> None:
        now = self.loop.time()
        match action:
            case Outage(server=server, seconds=seconds, process=name):
                faults = self.network.outages if name is None else self.processes[name].outages
                faults[Server[server.upper()]] = now + seconds
            case Doubt(server=server, seconds=seconds, process=name):
                faults = self.network.doubts if name is None else self.processes[name].doubts
                faults[Server[server.upper()]] = now + seconds
            case FullQueue(queue=queue, seconds=seconds):
                self.broker.queues[queue].full_until = now + seconds
            case MissingBindings(exchange=exchange, seconds=seconds):
                for state in self.broker.queues.values():
                    if state.definition.exchange == exchange and state.definition.name != FEEDBACK:
                        state.unbound_until = now + seconds
            case LostRecord(customer=customer, key=key):
                for entry in [entry for _, entry in self.store.ledger.values()]:
                    if entry.id in (task_id(customer, key), batch_id(customer, key)):
                        del self.store.ledger[entry.id]
