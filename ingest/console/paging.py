"""Numbers in addresses, such as that of a page of a list."""

from typing import Final

from starlette.requests import Request

_DIGITS: Final = 8


def page_of(request: Request) -> int:
    """Return the number of the page that a request asks for, from 1 on."""
    return max(1, number_of(request.query_params.get("page", "")) or 1)


def number_of(text: str) -> int | None:
    """Return a number of at most eight digits; None if it is not one."""
    return int(text) if text.isdecimal() and len(text) <= _DIGITS else None
