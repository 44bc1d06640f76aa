"""Renders the pages from their templates. Everything is escaped."""

from http import HTTPStatus
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

from ingest import __version__
from ingest.domain.display import age, shown, shown_lines
from ingest.domain.events import rfc3339
from ingest.domain.identity import is_submission_id


class Renderer:
    """Makes answers from templates.

    `has_actions`: whether pages offer actions. `has_events`: whether there is a page of events.
    """

    def __init__(self, *, has_actions: bool, has_events: bool) -> None:
        self._pages = Environment(
            loader=PackageLoader("ingest.console"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self._pages.filters |= {"age": age, "shown": shown, "shown_lines": shown_lines, "number": number, "time": time}
        self._pages.globals |= {"version": __version__, "is_linked": is_submission_id}
        self._pages.globals |= {"has_actions": has_actions, "has_events": has_events}

    def page(self, template: str, status: int = 200, **fields: Any) -> HTMLResponse:
        """Return a page."""
        return HTMLResponse(self._pages.get_template(template).render(**fields), status)

    def error(self, status: int, message: str) -> HTMLResponse:
        """Return a page that says what is wrong."""
        return self.page("error.html", status, section="", title=HTTPStatus(status).phrase, message=message)


def number(value: float | None) -> str:
    """Return a number for people; `-` if it is unknown."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def time(seconds: float) -> str:
    """Return Unix seconds as RFC 3339."""
    return rfc3339(int(seconds * 1000))
