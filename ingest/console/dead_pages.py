"""The pages of dead letters: their groups, lists, and single ones."""

import time
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from ingest.console.dead_letters import DeadLetters
from ingest.console.filters import filter_of
from ingest.console.letter_facts import details_facts
from ingest.console.paging import page_of
from ingest.console.rendering import Renderer
from ingest.console.snapshot import Snapshot, ordered
from ingest.domain.errors import ConfigurationError
from ingest.domain.events import rfc3339
from ingest.operations.find import FoundDeadLetter

_PAGE: Final = 50
"""Dead letters of a page."""
_MOST_GROUPS: Final = 200
"""Groups of dead letters that are shown."""


class DeadPages:
    """Answers `/dead`, `/dead/list` and `/dead/letter` from the latest snapshot.

    Args:
        renderer: makes the pages.
        letters: the dead letters.
    """

    def __init__(self, renderer: Renderer, letters: DeadLetters) -> None:
        self._renderer = renderer
        self._letters = letters

    async def groups(self, _: Request) -> Response:
        """Return the groups by reason and customer, with what to do."""
        snapshot = await self._letters.look()
        groups = [] if snapshot is None else ordered(snapshot.groups.values())
        return self.page("dead.html", snapshot, groups=groups[:_MOST_GROUPS], hidden=len(groups[_MOST_GROUPS:]))

    async def list(self, request: Request) -> Response:
        """Return those that a filter selects, latest first."""
        snapshot = await self._letters.look()
        page = page_of(request)
        chosen = filter_of(request.query_params)
        letters: list[FoundDeadLetter] = []
        count, error = 0, ""
        try:
            selection = chosen.selection()
            if snapshot is not None:
                letters, count = snapshot.letters(selection, limit=_PAGE, offset=(page - 1) * _PAGE)
        except ConfigurationError as problem:
            error = str(problem)
        fields: dict[str, Any] = {"chosen": chosen, "error": error, "count": count, "page": page}
        fields |= {"letters": letters, "last": max(1, -(-count // _PAGE))}
        return self.page("dead_list.html", snapshot, 400 if error else 200, **fields)

    async def letter(self, request: Request) -> Response:
        """Return one dead letter."""
        snapshot = await self._letters.look()
        row = None if snapshot is None else snapshot.row(request.query_params.get("id", ""))
        if snapshot is None or row is None:
            return self.page("dead_gone.html", snapshot, 404)
        facts, body = ({}, "") if row.details is None else details_facts(row.details)
        return self.page("dead_letter.html", snapshot, row=row, facts=facts, body=body)

    def page(self, template: str, snapshot: Snapshot | None, status: int = 200, **fields: Any) -> HTMLResponse:
        """Return a page with the time of its snapshot."""
        letters = self._letters
        reading = {"done": letters.progress.handled, "of": letters.total} if letters.is_reading else None
        at = None if snapshot is None else rfc3339(int(snapshot.at * 1000))
        count = None if snapshot is None else snapshot.count
        state = {
            "at": at,
            "total": count,
            "reading": reading,
            "waiting": letters.is_waiting,
            "outdated": letters.is_outdated,
            "failure": letters.failure,
            "now": time.time(),
        }
        return self._renderer.page(
            template, status, section="Dead letters", title="Dead letters", state=state, **fields
        )
