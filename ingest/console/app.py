"""The pages of the console. Every one is rendered by the server, and needs no script."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib import resources
from typing import Any, Final

import structlog
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingest.console.access import Access
from ingest.console.action_pages import ActionPages
from ingest.console.actions import Actions, Kind
from ingest.console.customer_pages import CustomerPages
from ingest.console.customers import Customers
from ingest.console.dead_letters import DeadLetters
from ingest.console.dead_pages import DeadPages
from ingest.console.events import Events
from ingest.console.history import SPAN, History
from ingest.console.problems import linked
from ingest.console.rendering import Renderer
from ingest.console.sparkline import HEIGHT, WIDTH, chart
from ingest.domain.display import age, shown
from ingest.domain.events import rfc3339
from ingest.domain.overview import Problem, by_class
from ingest.operations.find import Findings
from ingest.operations.find.facts import dead_letter_facts, entry_facts, reason_not_found

Find = Callable[[str, str | None], Awaitable[Findings]]
"""Looks for an id, key or message_id, of one customer or of all."""

Page = Callable[[Request], Awaitable[Response]]

FIND_TIMEOUT: Final = 30.0
"""Seconds for one search."""
_MOST_SOUGHT: Final = 300
"""Characters of the longest thing to look for: a key has at most 255."""
_OLD: Final = 20.0
"""Seconds after which the overview is not current."""
_HEALTH: Final = "/healthz"
"""The path for probes: 200 while the console answers requests."""
_POLICY: Final = (
    b"default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
"""Headers of every answer: a page loads nothing from other hosts, runs no script, and is not framed or cached."""

_MESSAGES: Final = {
    404: "There is no such page.",
    405: "Use the links and forms of the pages.",
}

_log = structlog.get_logger(__name__)


class Console:
    """The ASGI application.

    Args:
        access: says who may read it.
        history: the state of the service.
        find: looks for a submission.
        dead_letters: what is in ingest.dead.
        customers: the customers in the store.
        actions: changes ingest.dead; None if the console only reads.
        find_timeout: seconds for one search.
        events: the events of this process; None for no such page.
    """

    def __init__(
        self,
        access: Access,
        history: History,
        find: Find,
        dead_letters: DeadLetters,
        customers: Customers,
        actions: Actions | None = None,
        find_timeout: float = FIND_TIMEOUT,
        events: Events | None = None,
    ) -> None:
        self._access = access
        self._history = history
        self._find = find
        self._dead_letters = dead_letters
        self._find_timeout = find_timeout
        self._events = events
        self._renderer = Renderer(has_actions=actions is not None, has_events=events is not None)
        dead = DeadPages(self._renderer, dead_letters)
        self._style = resources.files("ingest.console").joinpath("static/console.css").read_text()
        customer_pages = CustomerPages(customers, dead_letters, self._renderer.page)
        self._app = Starlette(
            routes=[
                Route("/", self._safely(self._overview)),
                Route("/find", self._safely(self._find_page)),
                Route("/dead", self._safely(dead.groups)),
                Route("/dead/list", self._safely(dead.list)),
                Route("/dead/letter", self._safely(dead.letter)),
                Route("/customers", self._safely(customer_pages.all)),
                Route("/customers/one", self._safely(customer_pages.one)),
                Route("/events", self._safely(self._events_page)),
                Route("/console.css", self._safely(self._css)),
                *self._action_routes(dead, dead_letters, actions),
            ],
            exception_handlers={HTTPException: self._http_error},
        )
        # A redirect would name the scheme and host that this process sees, not those of a proxy.
        self._app.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += _HEADERS
            await send(message)

        answer: ASGIApp = self._app
        if scope["path"] == _HEALTH and scope["method"] in ("GET", "HEAD"):  # probes have no token
            await PlainTextResponse("ok\n")(scope, receive, send_with_headers)
            return
        refused = self._access.refusal(Headers(scope=scope), scope["method"])
        if refused is not None:
            answer = self._renderer.error(refused.status, refused.message)
            if refused.status == HTTPStatus.UNAUTHORIZED:
                answer.headers["www-authenticate"] = 'Basic realm="ingest console", charset="UTF-8"'
        await answer(scope, receive, send_with_headers)

    def _safely(self, page: Page) -> Page:
        """Return a page that answers a defect without its details, and logs it once."""

        async def answer(request: Request) -> Response:
            try:
                return await page(request)
            except HTTPException:
                raise
            except Exception:  # noqa: BLE001 - see above
                _log.exception("page_failed", path=request.url.path)
                return self._renderer.error(500, "The page could not be rendered. The log of the console says why.")

        return answer

    def _action_routes(self, dead: DeadPages, letters: DeadLetters, actions: Actions | None) -> list[Route]:
        if actions is None:
            return []
        pages = ActionPages(dead, letters, actions, self._access)
        new = self._safely(pages.new)
        return [
            *[Route(f"/dead/{kind}", new, methods=["GET", "POST"]) for kind in Kind],
            Route("/dead/actions", self._safely(pages.list)),
            Route("/dead/actions/{number}", self._safely(pages.one)),
            Route("/dead/actions/{number}/stop", self._safely(pages.stop), methods=["POST"]),
            Route("/dead/actions/{number}/file", self._safely(pages.file)),
        ]

    async def _overview(self, _: Request) -> Response:
        await self._history.wait()
        latest = self._history.latest
        if latest is None:
            return self._renderer.error(503, f"the state could not be collected: {self._history.failure}")
        history = self._history
        queues = [
            {
                "state": queue,
                "ready": chart(history.of(queue.name, lambda state: state.ready), SPAN),
                "rate": chart(history.of(queue.name, lambda state: state.rate_in), SPAN),
            }
            for queue in by_class(latest.broker.queues)
        ]
        problems = latest.problems()
        old = time.time() - latest.at
        if self._history.failure or old > _OLD:
            why = self._history.failure or "the broker or the store answers slowly"
            problems.insert(0, Problem(f"what is shown is {age(old)} old: {why}"))
        return self._renderer.page(
            "overview.html",
            section="Overview",
            title="Overview",
            overview=latest,
            at=rfc3339(int(latest.at * 1000)),
            problems=[linked(problem, latest.dead or []) for problem in problems],
            queues=queues,
            size={"width": WIDTH, "height": HEIGHT},
        )

    async def _find_page(self, request: Request) -> Response:
        sought = request.query_params.get("q", "")
        customer = request.query_params.get("customer", "").strip()
        fields: dict[str, Any] = {
            "section": "Find",
            "title": shown(sought[:_MOST_SOUGHT]) or "Find",
            "sought": sought,
            "customer": customer,
            "findings": None,
            "error": "",
        }
        if max(len(sought), len(customer)) > _MOST_SOUGHT:
            fields["error"] = f"An id, key or message_id has at most {_MOST_SOUGHT} characters."
            return self._renderer.page("find.html", 400, **fields)
        if sought.strip():
            try:
                async with asyncio.timeout(self._find_timeout):
                    findings = await self._find(sought, customer or None)
                    if sought != sought.strip() and not (findings.entries or findings.dead_letters):
                        findings = await self._find(sought.strip(), customer or None)  # copied with a space
            except TimeoutError:
                fields["error"] = f"The search took longer than {self._find_timeout:g} s: use `ingest find`."
                return self._renderer.page("find.html", 503, **fields)
            fields["findings"] = findings
            fields["entries"] = [(entry, entry_facts(entry)) for entry in findings.entries]
            fields["dead_letters"] = [(letter, dead_letter_facts(letter)) for letter in findings.dead_letters]
            fields["reason_not_found"] = reason_not_found(findings)
            snapshot = self._dead_letters.snapshot
            fields["dead_at"] = None if snapshot is None else rfc3339(int(snapshot.at * 1000))
        return self._renderer.page("find.html", **fields)

    async def _events_page(self, request: Request) -> Response:
        if self._events is None:
            raise HTTPException(404)
        fields = await self._events.fields(paused=bool(request.query_params.get("paused")))
        answer = self._renderer.page("events.html", section="Events", title="Events", **fields)
        if not fields["paused"]:
            answer.headers["refresh"] = str(fields["refresh"])
        return answer

    async def _css(self, _: Request) -> Response:
        return Response(self._style, media_type="text/css")

    async def _http_error(self, _: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        detail = error.detail if isinstance(error, HTTPException) else ""
        if detail in ("", HTTPStatus(status).phrase):
            detail = _MESSAGES.get(status, HTTPStatus(status).phrase)
        return self._renderer.error(status, detail)
