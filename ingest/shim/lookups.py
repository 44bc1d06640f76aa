"""GET: a submission by its id, and health."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ingest.domain import events
from ingest.domain.errors import StoreUnavailable
from ingest.domain.identity import SubmissionKind, batch_and_index, is_id
from ingest.domain.ledger import UNDECIDED, Entry
from ingest.domain.ports import Store
from ingest.shim.auth import Auth
from ingest.shim.problems import Problem, store_unavailable
from ingest.shim.readiness import Readiness


class Lookups:
    """Serves the routes that only read.

    Args:
        store: the ledger.
        broker_ready: `/readyz` asks it; it raises BrokerUnavailable unless the broker takes submissions.
        auth: API keys.
    """

    def __init__(self, store: Store, broker_ready: Callable[[], Awaitable[None]], auth: Auth) -> None:
        self._store = store
        self._readiness = Readiness(broker_ready, store.ready)
        self._auth = auth

    def routes(self) -> list[Route]:
        return [
            Route("/v1/tasks/batch/{id}", self.batch, methods=["GET"]),
            Route("/v1/tasks/{id}", self.task, methods=["GET"]),
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
        ]

    async def task(self, request: Request) -> Response:
        """Return a task by its id. An unkeyed item of a batch has no entry, so the batch's entry is read too."""
        cust_id, task_id = await self._authenticate(request)
        own = batch = None
        if is_id(SubmissionKind.TASK, task_id):
            batch_id, index = batch_and_index(task_id)
            own, batch = await self._read([task_id, batch_id])
            if batch is not None and not batch.covers_index(index):
                batch = None
        entry = _durable(SubmissionKind.TASK, own or batch, cust_id)
        return _json({"task_id": task_id, "status": "pending", "created_at": events.rfc3339(entry.created_at)})

    async def batch(self, request: Request) -> Response:
        """Return a batch by its id, with the ids of its tasks in order."""
        cust_id, batch_id = await self._authenticate(request)
        stored = (await self._read([batch_id]))[0] if is_id(SubmissionKind.BATCH, batch_id) else None
        entry = _durable(SubmissionKind.BATCH, stored, cust_id)
        return _json(
            {
                "batch_id": entry.id,
                "task_count": entry.task_count,
                "status": "accepted",
                "created_at": events.rfc3339(entry.created_at),
                "task_ids": entry.task_ids,
            }
        )

    async def healthz(self, _: Request) -> Response:
        """Answer 200: the process can answer requests. Dependencies are not checked."""
        return _json({"status": "ok"})

    async def readyz(self, _: Request) -> Response:
        """Answer 200, or 503 if the broker or the store could not take a submission within the last second."""
        state = await self._readiness.dependencies()
        if state.ready:
            return _json({"status": "ok", "broker": state.broker, "store": state.store})
        return _json({"error": "not ready", "broker": state.broker, "store": state.store}, 503, {"Retry-After": "1"})

    async def _authenticate(self, request: Request) -> tuple[str, str]:
        """Return the customer's cust_id and the id in the path. Raises Problem."""
        authorization = request.headers.get("authorization")
        customer = await self._auth.customer(authorization.encode("latin-1") if authorization else None)
        return customer.cust_id, request.path_params["id"]

    async def _read(self, ids: Sequence[str]) -> list[Entry | None]:
        """Read ledger entries, in order; None for an id that is not stored.

        Raises Problem: 503 if the store is unavailable.
        """
        try:
            entries = await self._store.read(ids)
        except StoreUnavailable:
            raise store_unavailable() from None
        if UNDECIDED in entries:
            raise store_unavailable()
        return [entry or None for entry in entries]


def _durable(kind: SubmissionKind, entry: Entry | None, cust_id: str) -> Entry:
    """Return the entry, if it is the customer's own and durable. Raises Problem: 404."""
    if entry is None or not entry.is_durable or entry.cust_id != cust_id:
        raise Problem(404, f"no {kind} with this id was submitted, or it is no longer remembered")
    return entry


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")
