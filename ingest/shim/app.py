"""The ASGI application: the two POSTs in plain ASGI, everything else through Starlette.

Starlette's routing takes 5 µs of the 120 µs that a POST takes (4 %), so the two POSTs do not go through it.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Message, Receive, Scope, Send

from ingest.admission import Admission
from ingest.domain import metrics
from ingest.domain.errors import Reason
from ingest.domain.header_lines import joined
from ingest.domain.identity import SubmissionKind
from ingest.domain.metrics import NO_METER, EntryPoint, Meter, Outcome
from ingest.domain.ports import Publisher, Store
from ingest.domain.topology import DEFAULT, Layout
from ingest.parsing.parser import SubmissionParser
from ingest.shim import pages
from ingest.shim.auth import Auth
from ingest.shim.heavy import HeavyCustomers
from ingest.shim.http.body import (
    BodyMemoryBudget,
    ClientDisconnected,
    Reservation,
    read_json_body,
    refuse_repeated_headers,
    request_id_of,
    send_json,
)
from ingest.shim.lookups import Lookups
from ingest.shim.problems import Header, Problem, internal, method_not_allowed
from ingest.shim.rate_limits import RateLimiter
from ingest.shim.submit import Answer, Submitter
from ingest.shim.traffic import TrafficRouter

REQUEST_DEADLINE: Final = 10.0

_KINDS: Final = {"/v1/tasks": SubmissionKind.TASK, "/v1/tasks/batch": SubmissionKind.BATCH}
_OUTCOMES: Final = {409: Outcome.BUSY, 429: Outcome.LIMITED, 503: Outcome.UNAVAILABLE}
_MISMATCH: Final = (b"idempotency-payload-mismatch", b"true")

_log = structlog.get_logger(__name__)


class Shim:
    """The ASGI application.

    Args:
        store: ledger, quotas, rates and customers.
        publisher: publishes to the ingest queues.
        admission: uses the same store.
        deadline: time for parsing a large body, and then for admission and publish, in seconds.
        meter: counts each submission's outcome.
        memory: the memory for bodies of requests in progress.
        parser: for tests; by default one of its own.
        layout: how many queues there are.
        broker_ready: raises BrokerUnavailable unless the broker takes submissions; by default, as the publisher says.
    """

    def __init__(
        self,
        *,
        store: Store,
        publisher: Publisher,
        admission: Admission,
        deadline: float = REQUEST_DEADLINE,
        meter: Meter = NO_METER,
        memory: BodyMemoryBudget | None = None,
        parser: SubmissionParser | None = None,
        layout: Layout = DEFAULT,
        broker_ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._meter = meter
        metrics.init_series(meter, EntryPoint.HTTP)
        # Half of the deadline, so that a look-up and what follows it stay within one and a half.
        self._auth = Auth(store, deadline=deadline / 2)
        self._limiter = RateLimiter(store)
        self._memory = memory or BodyMemoryBudget()
        router = TrafficRouter(HeavyCustomers(meter), layout)
        self._submitter = Submitter(admission, publisher, deadline, parser, router)
        self._other_routes = Starlette(
            routes=[*Lookups(store, broker_ready or publisher.ready, self._auth).routes(), *pages.routes()],
            exception_handlers={
                Problem: _answer_problem,
                HTTPException: _answer_http_error,
                Exception: _answer_defect,
            },
        )
        # Clients follow redirects with their API key, to the host that the request names.
        self._other_routes.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Every answer has an `X-Request-Id`."""
        if scope["type"] != "http":
            await self._other_routes(scope, receive, send)
            return
        headers = dict(scope["headers"])
        id_header = (b"x-request-id", request_id_of(headers))
        added = [id_header]
        request_id = id_header[1].decode()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        kind = _KINDS.get(scope["path"])
        try:
            if len(headers) < len(scope["headers"]):
                refuse_repeated_headers(scope["headers"])
                headers = joined(scope["headers"])
            if kind is None:
                await self._other_routes(scope, receive, _with_header(send, id_header))
                return
            status, body, extra = await self._submit(kind, scope, headers, receive, request_id, added)
            self._record_success(kind, status, mismatch=_MISMATCH in extra)
        except Problem as problem:
            status, body, extra = problem.status, problem.body(), list(problem.headers)
            if kind is not None:
                self._record_problem(kind, problem)
        except ClientDisconnected:
            return
        except Exception:  # noqa: BLE001 - a client must not see the details of a defect
            _log.exception("request_failed", path=scope["path"])
            if kind is None:
                return  # Starlette has answered
            status, body, extra = 500, internal().body(), []
            self._record_problem(kind, internal())
        extra += added
        await send_json(send, status, body, extra)

    async def drain(self) -> None:
        """Wait for the submissions in progress."""
        await self._submitter.drain()
        await self._auth.close()

    async def _submit(
        self,
        kind: SubmissionKind,
        scope: Scope,
        headers: dict[bytes, bytes],
        receive: Receive,
        request_id: str,
        added: list[Header],
    ) -> Answer:
        """Return the answer. Raises Problem, ClientDisconnected. `added` gets the headers of every answer."""
        if scope["method"] != "POST":
            raise method_not_allowed(scope["method"])
        customer = await self._auth.customer(headers.get(b"authorization"))
        if customer.rate is not None:  # before the body is read, so that a refusal costs little
            added += await self._limiter.take(customer.cust_id, customer.rate)
        reservation = Reservation(self._memory, customer.cust_id)
        try:
            body = await read_json_body(headers, receive, reservation)
            return await self._submitter.submit(kind, body, headers, customer, request_id)
        finally:
            reservation.release()

    def _record_success(self, kind: SubmissionKind, status: int, *, mismatch: bool) -> None:
        outcome = Outcome.ACCEPTED if status == 202 else Outcome.REPLAY
        self._meter.add(metrics.SUBMISSIONS, 1, EntryPoint.HTTP, kind, outcome, "")
        if mismatch:
            self._meter.add(metrics.PAYLOAD_MISMATCHES, 1, EntryPoint.HTTP)

    def _record_problem(self, kind: SubmissionKind, problem: Problem) -> None:
        _log.debug("submission_refused", kind=kind, status=problem.status, error=problem.message)
        outcome = _OUTCOMES.get(problem.status, Outcome.REJECTED)
        self._meter.add(metrics.SUBMISSIONS, 1, EntryPoint.HTTP, kind, outcome, problem.reason)
        if problem.reason == Reason.KEY_CONFLICT:
            self._meter.add(metrics.PAYLOAD_MISMATCHES, 1, EntryPoint.HTTP)


def _with_header(send: Send, header: Header) -> Send:
    """Return a `send` that adds a header to the response."""

    async def send_with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], header]
        await send(message)

    return send_with_header


async def _answer_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101 - registered for it alone
    headers = {name.decode(): value.decode() for name, value in error.headers}
    return Response(error.body(), error.status, headers, media_type="application/json")


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
    path = request.scope["path"]
    right_path = _right_path(path, request.app.routes)
    hint = f"did you mean {right_path[:200]}?" if right_path else "/docs describes every path"
    message = {
        404: f"there is nothing at {path[:200]}, {hint}",
        405: f"{request.method} is not allowed here",
    }.get(error.status_code, error.detail)
    return Response(Problem(error.status_code, message).body(), error.status_code, error.headers, "application/json")


def _right_path(path: str, routes: Iterable[BaseRoute]) -> str | None:
    """Return the path without upper case and without surplus slashes, if that makes it right."""
    tidy = "/" + "/".join(part for part in path.lower().split("/") if part)
    scope = {"type": "http", "method": "GET", "path": tidy}
    is_right = tidy in _KINDS or any(route.matches(scope)[0] is Match.FULL for route in routes)
    return tidy if is_right and tidy != path else None


async def _answer_defect(_: Request, __: Exception) -> Response:
    return Response(internal().body(), 500, media_type="application/json")
