"""Connections to RabbitMQ: the address, and the errors of aio-pika as those of the SDK."""

import re
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import aio_pika
import aiormq
from aio_pika.abc import AbstractConnection
from yarl import URL

from asg_gateway._errors import BrokerRefusedError, BrokerUnavailableError
from asg_gateway._version import __version__

EXAMPLE: Final = "amqps://user:password@host:5671,host2:5671/vhost"
CONNECT_TIMEOUT: Final = 10.0
"""Seconds for one attempt to connect."""
HEARTBEAT: Final = 10
"""Seconds. A connection that is dead without a sign is found after twice that time."""

_RESERVED: Final = re.compile(r"[/?#\[\]@\s]")
_REFUSED: Final = (
    aiormq.exceptions.AuthenticationError,
    aiormq.exceptions.ProbableAuthenticationError,
    aiormq.exceptions.ConnectionNotAllowed,
    aiormq.exceptions.ConnectionNotImplemented,
    aiormq.exceptions.ChannelAccessRefused,
    aiormq.exceptions.ChannelNotFoundEntity,
    aiormq.exceptions.ChannelPreconditionFailed,
    aiormq.exceptions.IncompatibleProtocolError,
)


class Address:
    """The nodes of one RabbitMQ, tried in turn. `str` of it has no password.

    Args:
        url: `amqp[s]://user:password@host:port,host2:port2/vhost`. With `amqp` the password is sent unencrypted; use
            it only on loopback or trusted networks.
        ssl_context: for `amqps`; by default the system's certificates are trusted.

    Raises:
        ValueError: the URL is invalid; the message has no part of it that may be secret.
    """

    def __init__(self, url: str, ssl_context: ssl.SSLContext | None = None) -> None:
        self._urls = _urls(url)
        self._ssl_context = ssl_context
        self._turn = 0

    @property
    def user(self) -> str:
        """The AMQP user."""
        return self._urls[0].user or "guest"

    async def connect(self, name: str, kind: type[AbstractConnection] = aio_pika.Connection) -> AbstractConnection:
        """Open a connection to the next node.

        Args:
            name: what the connection is for, which RabbitMQ's management shows.
            kind: the class of the connection.

        Raises:
            BrokerRefusedError: login or virtual host are wrong.
            BrokerUnavailableError: the node does not answer in time.
        """
        url = self._urls[self._turn % len(self._urls)]
        self._turn += 1
        with broker_errors(f"{url.host}:{url.port}"):
            return await aio_pika.connect(
                url,
                timeout=CONNECT_TIMEOUT,
                ssl_context=self._ssl_context,
                connection_class=kind,
                client_properties={"connection_name": name, "product": "asg-gateway", "version": __version__},
            )

    def __str__(self) -> str:
        return ", ".join(f"{url.host}:{url.port}" for url in self._urls)


@contextmanager
def broker_errors(where: str) -> Iterator[None]:
    """Raise the errors of aio-pika as those of the SDK; `where` is the address."""
    try:
        yield
    except (aiormq.exceptions.AMQPError, OSError, TimeoutError, EOFError) as error:
        kind = BrokerRefusedError if _is_refusal(error) else BrokerUnavailableError
        raise kind(f"RabbitMQ at {where}: {problem(error)}") from error


def problem(error: BaseException) -> str:
    """Return what an error of aio-pika says, as a clause."""
    if _is_wrong_vhost(error):
        return "the virtual host does not exist, or the user may not use it"
    if isinstance(error, aiormq.exceptions.ProbableAuthenticationError | aiormq.exceptions.AuthenticationError):
        return "the login was refused: check user and password"
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return str(error) or type(error).__name__


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, _REFUSED) or _is_wrong_vhost(error)


def _is_wrong_vhost(error: BaseException) -> bool:
    # RabbitMQ answers Connection.Open with Close only for the virtual host; aiormq's error says neither.
    return isinstance(error, aiormq.exceptions.InvalidFrameError) and "Connection.OpenOk" in str(error)


def _urls(url: str) -> Sequence[URL]:
    """Return one URL per host. Raises ValueError, TypeError."""
    if not isinstance(url, str):
        raise TypeError(f"the URL must be a string, such as {EXAMPLE}, not {type(url).__name__}")
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    userinfo, at, hosts = authority.rpartition("@")
    if scheme not in ("amqp", "amqps") or not separator:
        raise ValueError(f"the URL must begin with amqp:// or amqps://, for example {EXAMPLE}")
    if "@" in path or _RESERVED.search(userinfo):
        raise ValueError(
            "write / as %2F, ? as %3F, # as %23, [ as %5B, ] as %5D, @ as %40 and a space as %20 in the user and the "
            "password of the URL"
        )
    if parse_qs(path.partition("?")[2], keep_blank_values=True) or "#" in path:
        raise ValueError(f"the URL must have neither a query nor a fragment; it must look like {EXAMPLE}")
    port = 5671 if scheme == "amqps" else 5672
    return [_url(f"{scheme}://{userinfo}{at}{host}", port, f"{slash}{path}") for host in hosts.split(",")]


def _url(authority: str, default_port: int, path: str) -> URL:
    try:
        parts = urlsplit(authority)
        port = parts.port or default_port
    except ValueError:
        port, parts = 0, urlsplit("")
    if not parts.hostname:
        raise ValueError(f"the host or the port is missing or invalid: the URL must look like {EXAMPLE}")
    user, password = parts.username, parts.password
    return URL.build(
        scheme=parts.scheme,
        user=None if user is None else unquote(user),
        password=None if password is None else unquote(password),
        host=parts.hostname,
        port=port,
        path=unquote(path) or "/",
        encoded=False,
        query={"heartbeat": str(HEARTBEAT)},
    )
