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
from tests.simulation.store import SimulatedStore, StoreState

_CLIENT_TIMEOUT: Final = 15.0


class Attempt(msgspec.Struct, frozen=True):
    """One attempt of a client. `status` 0: no answer. A direct producer has 202 for a confirm, otherwise 503."""

    submit: Submit
    status: int
    answer: dict[str, Any] = {}
    headers: dict[str, str] = {}


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
        self._network = network
        self._store = store
        self._broker = broker
        self._shims = shims
        self._submitters = submitters

    async def run(self, submit: Submit) -> None:
        """Submit until there is a final answer."""
        attempt: Callable[[Submit], Coroutine[Any, Any, Attempt]] = self._publish if submit.direct else self._post
        for _ in range(submit.attempts):
            result = await attempt(submit)
            self.attempts.append(result)
            if result.status not in (0, 409, 503):
                return
            await asyncio.sleep(self._network.rng.uniform(0.3, 2.0))

    async def _post(self, submit: Submit) -> Attempt:
        shim = self._network.rng.choice(list(self._shims.values()))
        if not shim.alive or shim.name not in self._submitters:
            return Attempt(submit, 0)
        answer: list[Attempt] = []
        request = shim.run(self._handle(shim, submit, answer))
        await asyncio.wait({request}, timeout=_CLIENT_TIMEOUT)
        if request.done() and not request.cancelled():
            request.result()
        return answer[0] if answer else Attempt(submit, 0)

    async def _handle(self, shim: Process, submit: Submit, answer: list[Attempt]) -> None:
        life = shim.life
        await shim.runs(life)
        try:
            customer = await SimulatedStore(self._store, shim).customer(submit.customer)
        except StoreUnavailable:
            answer.append(Attempt(submit, 503))
            return
        assert customer is not None
        kind = SubmissionKind.BATCH if submit.items else SubmissionKind.TASK
        headers = {b"prefer": b"return=representation"}
        try:
            status, body, pairs = await self._submitters[shim.name].submit(kind, body_of(submit), headers, customer)
        except Problem as problem:
            status, body, pairs = problem.status, problem.body(), list(problem.headers)
        await shim.runs(life)
        answer.append(
            Attempt(submit, status, json.loads(body), {name.decode(): value.decode() for name, value in pairs})
        )

    async def _publish(self, submit: Submit) -> Attempt:
        publisher = SimulatedPublisher(self._broker, self.process, submit.customer)
        kind = "batch" if submit.items else "task"
        message = Message(
            exchange=SUBMISSIONS,
            routing_key=f"{kind}.submitted.{submit.customer}",
            body=body_of(submit),
            message_id=submit.key or message_id(submit),
        )
        (outcome,) = await publisher.publish([message])
        return Attempt(submit, 202 if outcome is PublishOutcome.CONFIRMED else 503)


async def idle(process: Process) -> None:
    """Run a process that only reacts."""
    while process.alive:
        await asyncio.sleep(3600.0)
