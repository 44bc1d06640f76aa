"""The pages of the console. They only read; every one is rendered by the server, and needs no script."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib import resources
from typing import Any, Final

import structlog
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingest import __version__
from ingest.console.access import Access
from ingest.console.dead_letters import DeadLetters
from ingest.console.history import SPAN, History
from ingest.console.letter_facts import details_facts
from ingest.console.snapshot import Snapshot, ordered
from ingest.console.sparkline import HEIGHT, WIDTH, chart
from ingest.domain.display import age, shown, shown_lines
from ingest.domain.events import rfc3339
from ingest.domain.identity import is_submission_id
from ingest.domain.overview import by_class
from ingest.operations.find import Findings, FoundDeadLetter
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
_PAGE: Final = 50
"""Dead letters of a page."""
_MOST_GROUPS: Final = 200
"""Groups of dead letters that are shown."""
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
"""Of every answer: a page loads nothing from elsewhere, runs no script, and is neither framed nor kept."""

_log = structlog.get_logger(__name__)


class Console:
    """The ASGI application.

    Args:
        access: says who may read it.
        history: the state of the service.
        find: looks for a submission.
        dead_letters: what is in ingest.dead.
        find_timeout: seconds for one search.
    """

    def __init__(
        self,
        access: Access,
        history: History,
        find: Find,
        dead_letters: DeadLetters,
        find_timeout: float = FIND_TIMEOUT,
    ) -> None:
        self._access = access
        self._history = history
        self._find = find
        self._dead_letters = dead_letters
        self._find_timeout = find_timeout
        self._pages = Environment(
            loader=PackageLoader("ingest.console"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self._pages.filters |= {"age": age, "shown": shown, "shown_lines": shown_lines, "number": _number}
        self._style = resources.files("ingest.console").joinpath("static/console.css").read_text()
        self._app = Starlette(
            routes=[
                Route("/", self._safely(self._overview)),
                Route("/find", self._safely(self._find_page)),
                Route("/dead", self._safely(self._dead_groups)),
                Route("/dead/list", self._safely(self._dead_list)),
                Route("/dead/letter", self._safely(self._dead_letter)),
                Route("/console.css", self._safely(self._css)),
            ],
            exception_handlers={HTTPException: self._http_error},
        )
        # A redirect would name the scheme and host that this process sees, not those of a proxy.
        self._app.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Only GET and HEAD are allowed."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += _HEADERS
            await send(message)

        answer: ASGIApp = self._app
        refused = self._access.refusal(Headers(scope=scope))
        if refused is not None:
            answer = self._error(refused.status, refused.message)
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
                return self._error(500, "The page could not be rendered. The log of the console says why.")

        return answer

    async def _overview(self, _: Request) -> Response:
        await self._history.wait()
        latest = self._history.latest
        if latest is None:
            return self._error(503, f"the state could not be collected: {self._history.failure}")
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
            problems.insert(0, f"what is shown is {age(old)} old: {why}")
        return self._page(
            "overview.html",
            section="Overview",
            title="Overview",
            overview=latest,
            at=rfc3339(int(latest.at * 1000)),
            problems=problems,
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
            return self._page("find.html", 400, **fields)
        if sought.strip():
            try:
                async with asyncio.timeout(self._find_timeout):
                    findings = await self._find(sought, customer or None)
                    if sought != sought.strip() and not (findings.entries or findings.dead_letters):
                        findings = await self._find(sought.strip(), customer or None)  # copied with a space
            except TimeoutError:
                fields["error"] = f"The search took longer than {self._find_timeout:g} s: use `ingest find`."
                return self._page("find.html", 503, **fields)
            fields["findings"] = findings
            fields["entries"] = [(entry, entry_facts(entry)) for entry in findings.entries]
            fields["dead_letters"] = [(letter, dead_letter_facts(letter)) for letter in findings.dead_letters]
            fields["reason_not_found"] = reason_not_found(findings)
            snapshot = self._dead_letters.snapshot
            fields["dead_at"] = None if snapshot is None else rfc3339(int(snapshot.at * 1000))
        return self._page("find.html", **fields)

    async def _dead_groups(self, _: Request) -> Response:
        snapshot = await self._dead_letters.look()
        groups = [] if snapshot is None else ordered(snapshot.groups.values())
        return self._dead_page("dead.html", snapshot, groups=groups[:_MOST_GROUPS], hidden=len(groups[_MOST_GROUPS:]))

    async def _dead_list(self, request: Request) -> Response:
        snapshot = await self._dead_letters.look()
        reason, customer = request.query_params.get("reason"), request.query_params.get("customer")
        number = request.query_params.get("page", "1")
        page = max(1, int(number)) if number.isdecimal() and len(number) < 9 else 1
        letters: list[FoundDeadLetter] = []
        count = 0
        if snapshot is not None:
            letters, count = snapshot.letters(reason, customer, limit=_PAGE, offset=(page - 1) * _PAGE)
        fields: dict[str, Any] = {"reason": reason, "customer": customer, "count": count, "page": page}
        return self._dead_page("dead_list.html", snapshot, letters=letters, last=max(1, -(-count // _PAGE)), **fields)

    async def _dead_letter(self, request: Request) -> Response:
        snapshot = await self._dead_letters.look()
        row = None if snapshot is None else snapshot.row(request.query_params.get("id", ""))
        if snapshot is None or row is None:
            return self._dead_page("dead_gone.html", snapshot, 404)
        facts, body = ({}, "") if row.details is None else details_facts(row.details)
        return self._dead_page("dead_letter.html", snapshot, row=row, facts=facts, body=body)

    def _dead_page(self, template: str, snapshot: Snapshot | None, status: int = 200, **fields: Any) -> Response:
        letters = self._dead_letters
        reading = {"done": letters.progress.handled, "of": letters.total} if letters.is_reading else None
        at = None if snapshot is None else rfc3339(int(snapshot.at * 1000))
        count = None if snapshot is None else snapshot.count
        state = {"at": at, "total": count, "reading": reading, "failure": letters.failure, "now": time.time()}
        return self._page(template, status, section="Dead letters", title="Dead letters", state=state, **fields)

    async def _css(self, _: Request) -> Response:
        return Response(self._style, media_type="text/css")

    def _page(self, template: str, status: int = 200, **fields: Any) -> HTMLResponse:
        page = self._pages.get_template(template)
        return HTMLResponse(page.render(version=__version__, is_linked=is_submission_id, **fields), status)

    def _error(self, status: int, message: str) -> HTMLResponse:
        return self._page("error.html", status, section="", title=HTTPStatus(status).phrase, message=message)

    async def _http_error(self, _: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        what = {404: "There is no such page.", 405: "The console only reads: use GET."}
        return self._error(status, what.get(status, HTTPStatus(status).phrase))


def _number(value: float | None) -> str:
    """Return a number for people; `-` if it is unknown."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
