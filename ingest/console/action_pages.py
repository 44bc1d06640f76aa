"""The pages that change dead letters: confirmation, start and progress of an action."""

from typing import Any, Final

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from ingest.console.access import Access, Visitor
from ingest.console.actions import Action, Actions, Busy, Kind, Order, State
from ingest.console.dead_letters import DeadLetters
from ingest.console.dead_pages import DeadPages
from ingest.console.filters import Filter, filter_of
from ingest.console.forms import FIELD, Forms, keep_session, new_session, session_of
from ingest.console.paging import number_of
from ingest.domain.errors import ConfigurationError
from ingest.operations import parameters
from ingest.operations.remedies import REMEDIES

_REFRESH: Final = "2"
"""Seconds after which the browser loads the page of a running action again."""
_PATIENCE: Final = 0.3
"""Seconds that an answer waits for the end of an action, so that a short one is shown with its result."""
_BUSY: Final = "Another action is running. Wait for its end, or stop it."
_CONFLICT: Final = 409
_DIGITS: Final = 9
"""Digits of the largest number that is taken."""

_log = structlog.get_logger(__name__)


class ActionPages:
    """Answers the pages under `/dead` that change dead letters. A console that only reads does not have them.

    Args:
        pages: the pages of dead letters.
        letters: the dead letters.
        actions: carries out orders.
        access: says who the visitor is.
    """

    def __init__(self, pages: DeadPages, letters: DeadLetters, actions: Actions, access: Access) -> None:
        self._pages = pages
        self._letters = letters
        self._actions = actions
        self._access = access
        self._forms = Forms()

    async def new(self, request: Request) -> Response:
        """Show the form of an action; on POST, start the action."""
        kind = _kind(request)
        visitor = self._access.visitor(request.headers)
        chosen = filter_of(request.query_params)
        if request.method != "POST":
            return await self._ask(request, kind, visitor, chosen, {})
        fields = await self._fields(request, visitor)
        try:
            order = _order(kind, chosen, fields, visitor)
            if order.confirmed is not None:
                self._check_count(order)
            action = self._actions.start(order)
        except ConfigurationError as problem:
            _refused(request, visitor, str(problem))
            return await self._ask(request, kind, visitor, chosen, fields, str(problem), 400)
        except Busy:
            _refused(request, visitor, _BUSY)
            return await self._ask(request, kind, visitor, chosen, fields, _BUSY, _CONFLICT)
        await self._actions.wait(_PATIENCE)
        return RedirectResponse(f"/dead/actions/{action.number}", 303)

    async def list(self, _: Request) -> Response:
        """Show the latest actions."""
        return self._pages.page("actions.html", self._letters.snapshot, actions=list(reversed(self._actions.all)))

    async def one(self, request: Request) -> Response:
        """Show how far an action is."""
        action = self._action(request)
        session = session_of(request) or new_session()
        paused = request.query_params.get("paused") == "1"
        visitor = self._access.visitor(request.headers)
        answer = self._pages.page(
            "action.html",
            self._letters.snapshot,
            action=action,
            token=self._forms.token(session, visitor.name),
            token_field=FIELD,
            paused=paused,
        )
        if action.state is State.RUNNING and not paused:
            answer.headers["refresh"] = _REFRESH
        keep_session(answer, session)
        return answer

    async def stop(self, request: Request) -> Response:
        """Stop an action."""
        action = self._action(request)
        visitor = self._access.visitor(request.headers)
        await self._fields(request, visitor)
        self._actions.stop(action, visitor)
        await self._actions.wait(_PATIENCE)
        return RedirectResponse(f"/dead/actions/{action.number}", 303)

    async def file(self, request: Request) -> Response:
        """Return what was exported."""
        action = self._action(request)
        if action.file is None:
            raise HTTPException(404, "This file is not kept any more: export again.")
        visitor = self._access.visitor(request.headers)
        _log.info("console_export_downloaded", number=action.number, **action.order.facts() | visitor.facts())
        headers = {
            "content-disposition": f'attachment; filename="dead-letters-{action.number}.jsonl"',
            "content-length": str(action.file_size),
        }
        return StreamingResponse(action.chunks(), headers=headers, media_type="application/x-ndjson")

    async def _ask(
        self,
        request: Request,
        kind: Kind,
        visitor: Visitor,
        chosen: Filter,
        fields: dict[str, str],
        problem: str = "",
        status: int = 200,
    ) -> Response:
        snapshot = await self._letters.look()
        counts: list[Any] = []
        try:
            if snapshot is not None:
                counts = snapshot.counts(chosen.selection())
        except ConfigurationError as error:
            problem, status = str(error), 400
        session = session_of(request) or new_session()
        answer = self._pages.page(
            "action_new.html",
            snapshot,
            status,
            kind=kind,
            chosen=chosen,
            counts=counts,
            remedies=REMEDIES,
            matched=sum(count.count for count in counts),
            redrivable=sum(count.count for count in counts if count.blocker is None),
            problem=problem,
            running=self._actions.running.number if status == _CONFLICT and self._actions.running else None,
            rate=fields.get("rate", ""),
            token=self._forms.token(session, visitor.name),
            token_field=FIELD,
        )
        keep_session(answer, session)
        return answer

    async def _fields(self, request: Request, visitor: Visitor) -> dict[str, str]:
        try:
            return await self._forms.fields(request, visitor.name)
        except HTTPException as error:
            _refused(request, visitor, error.detail)
            raise

    def _check_count(self, order: Order) -> None:
        """Raise ConfigurationError if the number that was typed is not the one that the page has shown."""
        snapshot = self._letters.snapshot
        selected = 0 if snapshot is None else sum(group.count for group in snapshot.counts(order.chosen.selection()))
        if order.confirmed != selected:
            raise ConfigurationError(
                f"you typed {order.confirmed:,}, and {selected:,} are selected: nothing was deleted"
            )

    def _action(self, request: Request) -> Action:
        text = request.path_params["number"]
        number = number_of(text)
        action = None if number is None else self._actions.find(number)
        if action is None:
            raise HTTPException(404, f"Action {text[:_DIGITS]} is not among the latest since the start: see the log.")
        return action


def _refused(request: Request, visitor: Visitor, error: str) -> None:
    _log.warning("console_action_refused", path=request.url.path, error=error, **visitor.facts())


def _kind(request: Request) -> Kind:
    return Kind(request.url.path.rpartition("/")[2])


def _order(kind: Kind, chosen: Filter, fields: dict[str, str], visitor: Visitor) -> Order:
    """Return the order of a form. Raises ConfigurationError if a field is wrong."""
    chosen.selection()  # raises if an age is wrong
    rate = fields.get("rate", "").strip()
    confirmed = fields.get("count", "").replace(",", "").strip()
    if kind is Kind.PURGE and not (confirmed.isdecimal() and len(confirmed) <= _DIGITS):
        raise ConfigurationError("type the number of dead letters that you want to delete")
    return Order(
        kind=kind,
        chosen=chosen,
        visitor=visitor,
        dry_run=kind is Kind.REDRIVE and "dry_run" in fields,
        rate=parameters.rate(rate, "the rate") if rate and kind is Kind.REDRIVE else None,
        confirmed=int(confirmed) if kind is Kind.PURGE else None,
    )
