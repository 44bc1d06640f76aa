"""Who may use the console.

On a loopback address every user of the machine can, even without access to the settings. Elsewhere a token is needed,
or a proxy that has authenticated the user and says so in a header.
"""

import base64
import hmac
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from ingest.domain.errors import ConfigurationError
from ingest.urls import is_loopback

_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""The name of a header (RFC 9110)."""
_NOT_FROM_PROXY: Final = frozenset({"host", "authorization", "sec-fetch-site"})
_OWN_PAGES: Final = frozenset({"", "none", "same-origin"})
"""Values of Sec-Fetch-Site (Fetch Metadata) for a request that no other site has caused; old browsers send none."""
MIN_TOKEN: Final = 16
"""The fewest characters of a token."""


class Refused(msgspec.Struct, frozen=True):
    """Why a request is refused: an HTTP status, and a sentence that says what to do."""

    status: int
    message: str


class Visitor(msgspec.Struct, frozen=True):
    """Who sends a request, for the log.

    `identified_by` says how much the name is worth: `proxy` has authenticated the user, `token` is an unverified name,
    typed with the token, and `loopback` is any user of the machine.
    """

    name: str
    identified_by: str

    def facts(self) -> dict[str, str]:
        """Return it as fields of a log line."""
        return {"user": self.name, "identified_by": self.identified_by}


class Access:
    """Decides on requests.

    Args:
        host: the address that the console listens on.
        token: the password of the console; empty for none.
        user_header: the header in which a proxy names the user; empty for none.

    Raises:
        ConfigurationError: the console would be open to the network or to pages of other sites, or a value is invalid.
    """

    def __init__(self, host: str, token: str = "", user_header: str = "") -> None:
        if token and (len(token) < MIN_TOKEN or not token.isascii()):
            raise ConfigurationError(f"INGEST_CONSOLE_TOKEN must have at least {MIN_TOKEN} characters, all ASCII")
        if user_header and (not _HEADER.fullmatch(user_header) or user_header.lower() in _NOT_FROM_PROXY):
            raise ConfigurationError(
                f"INGEST_CONSOLE_USER_HEADER must be a header that only the proxy sets, such as X-Auth-Request-Email; "
                f"it is {user_header!r}"
            )
        if user_header and not token and is_loopback(host):
            raise ConfigurationError(
                f"on {host}, a page of another site could send {user_header} itself: set INGEST_CONSOLE_TOKEN as well, "
                "and let the proxy send it as password"
            )
        if not (token or user_header or is_loopback(host)):
            raise ConfigurationError(
                f"the console would be open to everyone who reaches {host}: set INGEST_CONSOLE_TOKEN, or "
                "INGEST_CONSOLE_USER_HEADER behind a proxy that authenticates users, or listen on 127.0.0.1"
            )
        self._token = token.encode()
        self._user_header = user_header.lower()

    def visitor(self, headers: Mapping[str, str]) -> Visitor:
        """Return who sends a request that is not refused."""
        if self._user_header:
            return Visitor(headers[self._user_header], "proxy")
        if self._token:
            return Visitor(_credentials(headers.get("authorization", ""))[0] or "unnamed", "token")
        return Visitor("local", "loopback")

    def refusal(self, headers: Mapping[str, str], method: str = "GET") -> Refused | None:
        """Return why a request is refused; None if it may be answered.

        A page of another site may lead here, as the login page of a proxy does, but must not cause hidden requests.
        Without a token and a proxy, the request must name an address of this machine: otherwise such a page could let
        its own host name point here, and read the answers (DNS rebinding).
        """
        is_navigation = method in ("GET", "HEAD") and (
            (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
        )
        if headers.get("sec-fetch-site", "") not in _OWN_PAGES and not is_navigation:
            return Refused(403, "A page of another site must not load this.")
        if self._token and not self._has_token(headers.get("authorization", "")):
            return Refused(401, "The password is INGEST_CONSOLE_TOKEN, with any user name.")
        if self._user_header and not headers.get(self._user_header):
            return Refused(403, f"The proxy has not named the user in the header {self._user_header}.")
        if not (self._token or self._user_header) and not is_loopback(_host_name(headers.get("host", ""))):
            return Refused(403, "Open the console at http://localhost or 127.0.0.1, or set INGEST_CONSOLE_TOKEN.")
        return None

    def _has_token(self, authorization: str) -> bool:
        return hmac.compare_digest(_credentials(authorization)[1], self._token)


def _credentials(authorization: str) -> tuple[str, bytes]:
    """Return the user name and the password or token in a header; empty if it has none."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return "", credentials.strip().encode("utf-8", "replace")
    if scheme.lower() != "basic":
        return "", b""
    try:
        name, _, password = base64.b64decode(credentials, validate=True).partition(b":")
    except ValueError:
        return "", b""
    return name.decode("utf-8", "replace"), password


def _host_name(host: str) -> str:
    """Return the name or address in a Host header, without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
