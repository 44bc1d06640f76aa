"""The pages of the console. They only read; every one is rendered by the server, and needs no script."""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib import resources
from typing import Any, Final

import structlog
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingest import __version__
from ingest.console.access import Access
from ingest.console.history import SAMPLES, History
from ingest.console.sparkline import HEIGHT, WIDTH, chart
from ingest.domain.display import age, shown
from ingest.domain.events import rfc3339
from ingest.domain.identity import SubmissionKind, is_id
from ingest.domain.overview import by_class
from ingest.operations.find import Findings
from ingest.operations.find_facts import dead_letter_facts, entry_facts, reason_not_found

Find = Callable[[str, str | None], Awaitable[Findings]]
"""Looks for an id, key or message_id, of one customer or of all."""

FIND_TIMEOUT: Final = 30.0
"""Seconds for one search. Reading very many dead letters takes longer."""
_MOST_SOUGHT: Final = 300
"""Characters of the longest thing to look for: a key has at most 255."""
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every answer: a page loads nothing from elsewhere, runs no script, and is neither framed nor kept."""

_log = structlog.get_logger(__name__)


class Console:
    """The ASGI application.

    Args:
        access: says who may read it.
        history: the state of the service.
        find: looks for a submission.
        find_timeout: seconds for one search.
    """

    def __init__(self, access: Access, history: History, find: Find, find_timeout: float = FIND_TIMEOUT) -> None:
        self._access = access
        self._history = history
        self._find = find
        self._find_timeout = find_timeout
        self._finding = asyncio.Lock()
        self._pages = Environment(
            loader=PackageLoader("ingest.console"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self._pages.filters |= {"age": age, "shown": shown, "number": _number}
        self._style = resources.files("ingest.console").joinpath("static/console.css").read_text()
        self._app = Starlette(
            routes=[
                Route("/", self._overview),
                Route("/find", self._find_page),
                Route("/console.css", self._css),
            ],
            exception_handlers={HTTPException: self._http_error, Exception: self._defect},
        )
        self._guarded: ASGIApp = self._guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Only GET and HEAD are allowed."""
        await self._guarded(scope, receive, send)

    async def _guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            await send(message)

        answer: ASGIApp = self._app
        refused = self._access.refusal(Request(scope).headers)
        if refused is not None:
            answer = self._error(refused.status, refused.message)
            if refused.status == HTTPStatus.UNAUTHORIZED:
                answer.headers["www-authenticate"] = 'Basic realm="ingest console", charset="UTF-8"'
        await answer(scope, receive, send_with_headers)

    async def _overview(self, _: Request) -> Response:
        await self._history.wait()
        latest = self._history.latest
        if latest is None:
            return self._error(503, f"the state could not be collected: {self._history.failure}")
        history = self._history
        queues = [
            {
                "state": queue,
                "ready": chart(history.of(queue.name, lambda state: state.ready), SAMPLES),
                "rate": chart(history.of(queue.name, lambda state: state.rate_in), SAMPLES),
            }
            for queue in by_class(latest.broker.queues)
        ]
        problems = latest.problems()
        if self._history.failure:
            problems.insert(0, f"what is shown is not current: {self._history.failure}")
        return self._page(
            "overview.html",
            title="Overview",
            overview=latest,
            at=rfc3339(int(latest.at * 1000)),
            problems=problems,
            queues=queues,
            size={"width": WIDTH, "height": HEIGHT},
        )

    async def _find_page(self, request: Request) -> Response:
        sought = request.query_params.get("q", "").strip()
        customer = request.query_params.get("customer", "").strip()
        fields: dict[str, Any] = {
            "title": "Find",
            "sought": sought,
            "customer": customer,
            "findings": None,
            "error": "",
        }
        if max(len(sought), len(customer)) > _MOST_SOUGHT:
            fields["error"] = f"An id, key or message_id has at most {_MOST_SOUGHT} characters."
            return self._page("find.html", 400, **fields)
        if sought:
            try:
                async with asyncio.timeout(self._find_timeout), self._finding:  # a search holds the dead letters
                    findings = await self._find(sought, customer or None)
            except TimeoutError:
                fields["error"] = f"The search took longer than {self._find_timeout:g} s: use `ingest find`."
                return self._page("find.html", 503, **fields)
            fields["findings"] = findings
            fields["entries"] = [(entry, entry_facts(entry)) for entry in findings.entries]
            fields["dead_letters"] = [(letter, dead_letter_facts(letter)) for letter in findings.dead_letters]
            fields["reason_not_found"] = reason_not_found(findings)
        return self._page("find.html", **fields)

    async def _css(self, _: Request) -> Response:
        return Response(self._style, media_type="text/css")

    def _page(self, template: str, status: int = 200, **fields: Any) -> HTMLResponse:
        page = self._pages.get_template(template)
        return HTMLResponse(page.render(version=__version__, is_linked=_is_linked, **fields), status)

    def _error(self, status: int, message: str) -> HTMLResponse:
        return self._page("error.html", status, title=HTTPStatus(status).phrase, message=message)

    async def _http_error(self, _: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        what = {404: "There is no such page.", 405: "The console only reads: use GET."}
        return self._error(status, what.get(status, HTTPStatus(status).phrase))

    async def _defect(self, request: Request, error: Exception) -> Response:
        _log.error("page_failed", path=request.url.path, exc_info=error)
        return self._error(500, "The page could not be made. The log of the console says why.")


def _is_linked(name: str) -> bool:
    """Return whether a fact is an id that `find` takes as it is."""
    return any(is_id(kind, name) for kind in SubmissionKind)


def _number(value: float | None) -> str:
    """Return a number for people; `-` if it is unknown."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
