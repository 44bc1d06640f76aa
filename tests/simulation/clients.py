"""The clients: HTTP clients that retry, and direct producers."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import msgspec

from ingest.domain.errors import StoreUnavailable
from ingest.domain.identity import SubmissionKind
from ingest.domain.messages import Message, PublishOutcome
from ingest.domain.topology import SUBMISSIONS
from ingest.shim.problems import Problem
from ingest.shim.submit import Submitter
from tests.simulation.bodies import body_of, message_id
from tests.simulation.broker import SimulatedPublisher
from tests.simulation.machines import Network, Process
from tests.simulation.queues import BrokerState
from tests.simulation.schedule import Submit
from tests.simulation.store import SimulatedStore
from tests.simulation.store_state import StoreState

_CLIENT_TIMEOUT: Final = 15.0
_ATTEMPTS_AGAIN: Final = 10


class Attempt(msgspec.Struct, frozen=True):
    """One attempt of a client, which ended at `at`, in virtual seconds.

    `status` 0: no answer. A direct producer has 202 for a confirm, otherwise 503.
    """

    submit: Submit
    at: float
    status: int
    answer: dict[str, Any] = {}
    headers: dict[str, str] = {}


Answer = tuple[int, dict[str, Any], dict[str, str]]
"""Status, body and headers."""


class Clients:
    """Runs submissions and records every attempt.

    Args:
        network: chance.
        store: where shims look customers up.
        broker: where direct producers publish.
        shims: the processes that serve HTTP.
        submitters: what each of them runs, by name; missing while it is down.
    """

    def __init__(
        self,
        network: Network,
        store: StoreState,
        broker: BrokerState,
        shims: Mapping[str, Process],
        submitters: Mapping[str, Submitter],
    ) -> None:
        self.process = Process("clients", network, idle)
        self.attempts: list[Attempt] = []
        self.requests: dict[str, set[asyncio.Task[None]]] = {name: set() for name in shims}
        """Requests in progress, by shim."""
        self._network = network
        self._store = store
        self._broker = broker
        self._shims = shims
        self._submitters = submitters

    async def run(self, submit: Submit) -> None:
        """Submit until there is a final answer, perhaps twice."""
        again_at = self._network.loop.time() + submit.again
        await self._submit(submit, submit.attempts)
        if submit.again:
            await asyncio.sleep(max(0.0, again_at - self._network.loop.time()))
            await self._submit(submit, _ATTEMPTS_AGAIN)

    async def _submit(self, submit: Submit, attempts: int) -> None:
        attempt: Callable[[Submit], Coroutine[Any, Any, Answer]] = self._publish if submit.direct else self._post
        for _ in range(attempts):
            status, body, headers = await attempt(submit)
            self.attempts.append(Attempt(submit, self._network.loop.time(), status, body, headers))
            if status not in (0, 409, 503):
                return
            await asyncio.sleep(self._network.rng.uniform(0.3, 2.0))

    async def _post(self, submit: Submit) -> Answer:
        shim = self._network.rng.choice(list(self._shims.values()))
        if not shim.alive or shim.stopping.is_set() or shim.name not in self._submitters:
            return 0, {}, {}
        answers: list[Answer] = []
        request = shim.run(self._handle(shim, submit, answers))
        requests = self.requests[shim.name]
        requests.add(request)
        request.add_done_callback(requests.discard)
        await asyncio.wait({request}, timeout=_CLIENT_TIMEOUT)
        if request.done() and not request.cancelled():
            request.result()
        return answers[0] if answers else (0, {}, {})

    async def _handle(self, shim: Process, submit: Submit, answers: list[Answer]) -> None:
        life = shim.life
        await shim.runs(life)
        try:
            customer = await SimulatedStore(self._store, shim).customer(submit.customer)
        except StoreUnavailable:
            answers.append((503, {}, {}))
            return
        if customer is None:
            answers.append((401, {}, {}))
            return
        kind = SubmissionKind.BATCH if submit.items else SubmissionKind.TASK
        headers = {b"prefer": b"return=representation"}
        try:
            status, body, pairs = await self._submitters[shim.name].submit(kind, body_of(submit), headers, customer, "")
        except Problem as problem:
            status, body, pairs = problem.status, problem.body(), list(problem.headers)
        await shim.runs(life)
        answers.append((status, json.loads(body), {name.decode(): value.decode() for name, value in pairs}))

    async def _publish(self, submit: Submit) -> Answer:
        publisher = SimulatedPublisher(self._broker, self.process, submit.customer)
        kind = "batch" if submit.items else "task"
        message = Message(
            exchange=SUBMISSIONS,
            routing_key=f"{kind}.submitted.{submit.customer}",
            body=body_of(submit),
            message_id=submit.key or message_id(submit),
        )
        outcomes = await publisher.publish([message] * submit.copies)
        return (202 if PublishOutcome.CONFIRMED in outcomes else 503), {}, {}


async def idle(process: Process) -> None:
    """Run a process that only reacts."""
    while process.alive:
        await asyncio.sleep(3600.0)
