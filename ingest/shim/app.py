"""The ASGI application: the two POSTs in plain ASGI, everything else through Starlette."""

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ingest.admission import Admission
from ingest.domain import metrics
from ingest.domain.errors import Reason
from ingest.domain.header_lines import joined
from ingest.domain.identity import SubmissionKind
from ingest.domain.metrics import NO_METER, Meter
from ingest.domain.ports import Publisher, Store
from ingest.shim.auth import Auth
from ingest.shim.http.body import (
    BodyMemoryBudget,
    ClientGone,
    Receive,
    Reservation,
    Scope,
    Send,
    read_json_body,
    refuse_repeats,
    request_id,
    send_json,
)
from ingest.shim.lookups import Lookups
from ingest.shim.problems import Header, Problem, internal, not_allowed
from ingest.shim.submit import Answer, Submitter

REQUEST_DEADLINE = 10.0
_SUBMISSIONS: dict[str, SubmissionKind] = {"/v1/tasks": SubmissionKind.TASK, "/v1/tasks/batch": SubmissionKind.BATCH}

_OUTCOMES = {409: "busy", 503: "unavailable"}
_MISMATCH = (b"idempotency-payload-mismatch", b"true")

_log = structlog.get_logger(__name__)


class Shim:
    """The ASGI application.

    Args:
        store: ledger, quotas and customers.
        publisher: to the ingest queues.
        admission: on the same store.
        deadline: seconds for one submission.
        meter: told of each submission's outcome.
        room: for the bodies of requests under way.
    """

    def __init__(
        self,
        *,
        store: Store,
        publisher: Publisher,
        admission: Admission,
        deadline: float = REQUEST_DEADLINE,
        meter: Meter = NO_METER,
        room: BodyMemoryBudget | None = None,
    ) -> None:
        self._meter = meter
        metrics.init_series(meter, "http")
        self._auth = Auth(store)
        self._room = room or BodyMemoryBudget()
        self._submitter = Submitter(admission, publisher, deadline)
        self._others = Starlette(
            routes=Lookups(store, publisher, self._auth).routes(),
            exception_handlers={
                Problem: _show_problem,
                HTTPException: _show_http_error,
                Exception: _show_defect,
            },
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._others(scope, receive, send)
            return
        headers = dict(scope["headers"])
        tag = (b"x-request-id", request_id(headers))
        structlog.contextvars.bind_contextvars(request_id=tag[1].decode())
        kind = _SUBMISSIONS.get(scope["path"])
        try:
            if len(headers) < len(scope["headers"]):
                refuse_repeats(scope["headers"])
                headers = joined(scope["headers"])
            if kind is None:
                await self._others(scope, receive, _tagged(send, tag))
                return
            status, body, extra = await self._submit(kind, scope, headers, receive)
            self._meter.add(metrics.SUBMISSIONS, 1, "http", kind, "accepted" if status == 202 else "replay", "")
            if _MISMATCH in extra:
                self._meter.add(metrics.PAYLOAD_MISMATCHES, 1, "http")
        except Problem as problem:
            status, body, extra = problem.status, problem.body(), list(problem.headers)
            if kind is not None:
                self._refused(kind, problem)
        except ClientGone:
            return
        except Exception:  # noqa: BLE001 - a defect of ours must not show its inside
            _log.exception("request failed", path=scope["path"])
            if kind is None:
                return  # Starlette has answered
            status, body, extra = 500, internal().body(), []
            self._refused(kind, internal())
        extra.append(tag)
        await send_json(send, status, body, extra)

    def _refused(self, kind: SubmissionKind, problem: Problem) -> None:
        _log.debug("submission refused", kind=kind, status=problem.status, error=problem.message)
        outcome = _OUTCOMES.get(problem.status, "rejected")
        self._meter.add(metrics.SUBMISSIONS, 1, "http", kind, outcome, problem.reason)
        if problem.reason == Reason.KEY_CONFLICT:
            self._meter.add(metrics.PAYLOAD_MISMATCHES, 1, "http")

    async def drain(self) -> None:
        """Wait for submissions that are under way."""
        await self._submitter.drain()

    async def _submit(
        self, kind: SubmissionKind, scope: Scope, headers: dict[bytes, bytes], receive: Receive
    ) -> Answer:
        if scope["method"] != "POST":
            raise not_allowed(scope["method"])
        customer = await self._auth.customer(headers.get(b"authorization"))
        held = Reservation(self._room)
        try:
            body = await read_json_body(headers, receive, held)
            return await self._submitter.submit(kind, body, headers, customer)
        finally:
            held.release()


def _tagged(send: Send, tag: Header) -> Send:
    """Adds the request id to whatever Starlette answers."""

    async def tagged(message: Scope) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], tag]
        await send(message)

    return tagged


async def _show_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101 - registered for it alone
    headers = {name.decode(): value.decode() for name, value in error.headers}
    return Response(error.body(), error.status, headers, media_type="application/json")


async def _show_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
    what = {
        404: f"there is nothing at {request.url.path}",
        405: f"{request.method} is not allowed here",
    }.get(error.status_code, error.detail)
    return Response(Problem(error.status_code, what).body(), error.status_code, error.headers, "application/json")


async def _show_defect(_: Request, __: Exception) -> Response:
    return Response(internal().body(), 500, media_type="application/json")
