"""Who may read the console.

On a loopback address everybody on the machine may, like every command. Elsewhere a token is needed, or a proxy that has
authenticated the user and says so in a header.
"""

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Mapping
from typing import Final

import msgspec

from ingest.domain.errors import ConfigurationError

_LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
MIN_TOKEN: Final = 16
"""The fewest characters of a token."""


class Refused(msgspec.Struct, frozen=True):
    """Why a request is refused: an HTTP status, and a sentence that says what to do."""

    status: int
    message: str


class Access:
    """Decides on requests.

    Args:
        host: the address that the console listens on.
        token: the password of the console; empty for none.
        user_header: the header in which a proxy names the user; empty for none.

    Raises:
        ConfigurationError: the console would be open to the network, or the token is too short.
    """

    def __init__(self, host: str, token: str = "", user_header: str = "") -> None:
        if token and len(token) < MIN_TOKEN:
            raise ConfigurationError(f"INGEST_CONSOLE_TOKEN must have at least {MIN_TOKEN} characters")
        if not (token or user_header or is_loopback(host)):
            raise ConfigurationError(
                f"the console would be open to everybody who reaches {host}: set INGEST_CONSOLE_TOKEN, or "
                "INGEST_CONSOLE_USER_HEADER behind a proxy that authenticates users, or listen on 127.0.0.1"
            )
        self._token = token.encode()
        self._user_header = user_header.lower()

    def refusal(self, headers: Mapping[str, str]) -> Refused | None:
        """Return why a request is refused; None if it may be answered.

        Without a token and a proxy, the request must name this machine: otherwise a page from elsewhere could let its
        own host name point here, and read the answers (DNS rebinding).
        """
        if self._token and not self._has_token(headers.get("authorization", "")):
            return Refused(401, "the password is INGEST_CONSOLE_TOKEN; the user name is your own")
        if self._user_header and not headers.get(self._user_header):
            return Refused(403, f"the proxy has not named the user in the header {self._user_header}")
        if not (self._token or self._user_header) and _host_name(headers.get("host", "")) not in _LOCAL_NAMES:
            return Refused(403, "open the console at http://localhost or http://127.0.0.1, or set INGEST_CONSOLE_TOKEN")
        return None

    def _has_token(self, authorization: str) -> bool:
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() == "bearer":
            return hmac.compare_digest(credentials.strip().encode(), self._token)
        if scheme.lower() != "basic":
            return False
        try:
            password = base64.b64decode(credentials, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
        return hmac.compare_digest(password, self._token)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
