"""Lists that have several pages."""

from starlette.requests import Request


def page_of(request: Request) -> int:
    """Return the number of the page that a request asks for, from 1 on."""
    number = request.query_params.get("page", "1")
    return max(1, int(number)) if number.isdecimal() and len(number) < 9 else 1
