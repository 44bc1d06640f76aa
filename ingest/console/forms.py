"""Forms that change something, protected against requests that pages of other sites cause (CSRF).

A form has a token, which belongs to a session and a user. The session is a random cookie of the browser. A page of
another site can read neither.
"""

import hmac
import re
import secrets
from typing import Final
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

COOKIE: Final = "ingest_console"
FIELD: Final = "form"
_MAX_FORM: Final = 16 * 1024
"""Bytes of the largest form."""
_MAX_FIELDS: Final = 20
_SESSION: Final = re.compile("[A-Za-z0-9_-]{43}")


class Forms:
    """Makes and checks the tokens of this process's forms. After a restart, a form must be loaded again."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def token(self, session: str, user: str) -> str:
        """Return the token of a session and a user."""
        return hmac.new(self._key, f"{session}\0{user}".encode(), "sha256").hexdigest()

    async def fields(self, request: Request, user: str) -> dict[str, str]:
        """Return the fields of a form that was sent. Raises HTTPException: 400, 403, 413, 415."""
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
            raise HTTPException(415, "Send the form of the page.")
        body = b""
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MAX_FORM:
                    raise HTTPException(413, f"A form has at most {_MAX_FORM:,} bytes.")
        except ClientDisconnect:
            raise HTTPException(400, "The form was not sent completely.") from None
        try:
            fields = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict"))
        except ValueError:
            raise HTTPException(400, "Send the form of the page.") from None
        session = session_of(request)
        sent = fields.pop(FIELD, "").encode()
        if session is None or not hmac.compare_digest(sent, self.token(session, user).encode()):
            raise HTTPException(403, "The form is too old, or not from this console: load the page again.")
        return fields


def session_of(request: Request) -> str | None:
    """Return the session in a request's cookie; None if it has none."""
    session = request.cookies.get(COOKIE, "")
    return session if _SESSION.fullmatch(session) else None


def new_session() -> str:
    """Return a session that cannot be guessed."""
    return secrets.token_urlsafe(32)


def keep_session(response: Response, session: str) -> None:
    """Let the browser keep a session until it is closed. No script can read it, and no other site can use it."""
    response.set_cookie(COOKIE, session, httponly=True, samesite="strict", path="/")
