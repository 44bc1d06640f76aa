"""A blocking httpx transport whose requests end at a deadline, even if the server sends a byte from time to time.

httpx has a timeout for each read and write, and none for a whole request. The transport is built on httpcore, which
httpx itself uses: there, sockets can be replaced.
"""

import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx

_KEEPALIVE = 5.0
"""Seconds after which an idle connection is not used again."""
_PIECE = 16 * 1024
"""Bytes per write, so that a server that reads slowly cannot hold up a write beyond the deadline."""


class DeadlineTransport(httpx.BaseTransport):
    """Sends requests on one connection, one at a time, and reads each answer completely.

    The extension `deadline` of a request is when it must end, in seconds of `time.monotonic`. Only the resolution of
    host names is not bounded.

    Args:
        proxy: the proxy to use; None for none.
        ssl_context: for TLS.
    """

    def __init__(self, proxy: httpx.URL | None, ssl_context: ssl.SSLContext) -> None:
        self._deadline = _Deadline()
        options: dict[str, Any] = {
            "ssl_context": ssl_context,
            "max_connections": 1,
            "keepalive_expiry": _KEEPALIVE,
            "network_backend": _Backend(self._deadline),
        }
        self._pool = httpcore.ConnectionPool(**options) if proxy is None else _proxy_pool(proxy, options)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and read the answer. Raises httpx.TransportError."""
        self._deadline.end = request.extensions["deadline"]
        try:
            answer = self._pool.handle_request(
                httpcore.Request(
                    request.method,
                    _core_url(request.url),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
            try:
                content = answer.read()
            finally:
                answer.close()
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
            # Both libraries use the same names.
            kind: type[httpx.TransportError] = getattr(httpx, type(error).__name__)
            raise kind(str(error), request=request) from error
        return httpx.Response(
            answer.status, headers=answer.headers, stream=httpx.ByteStream(content), extensions=answer.extensions
        )

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()


class _Deadline:
    """When the request in progress must end."""

    end = 0.0

    def shorten(self, timeout: float | None, expired: type[httpcore.TimeoutException]) -> float:
        """Return the timeout, or the remaining time if that is shorter. Raises `expired` if there is none."""
        remaining = self.end - time.monotonic()
        if remaining <= 0:
            raise expired("the deadline has passed")
        return remaining if timeout is None else min(timeout, remaining)


class _Backend(httpcore.NetworkBackend):
    """Opens connections before the deadline."""

    def __init__(self, deadline: _Deadline) -> None:
        self._sockets = httpcore.SyncBackend()
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Try the host's addresses in order. Raises httpcore.ConnectError, httpcore.ConnectTimeout."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host}: {error}") from error
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found):
            remaining = self._deadline.shorten(timeout, httpcore.ConnectTimeout)
            try:
                stream = self._sockets.connect_tcp(address, port, remaining, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _Stream(stream, self._deadline)
        raise failure


class _Stream(httpcore.NetworkStream):
    """A connection whose operations end at the deadline."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.shorten(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            remaining = self._deadline.shorten(timeout, httpcore.WriteTimeout)
            self._stream.write(buffer[start : start + _PIECE], remaining)

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        remaining = self._deadline.shorten(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, remaining), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        self._stream.close()


def _core_url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def _proxy_pool(proxy: httpx.URL, options: dict[str, Any]) -> httpcore.ConnectionPool:
    credentials = (proxy.username.encode(), proxy.password.encode()) if proxy.userinfo else None
    kind = httpcore.SOCKSProxy if proxy.scheme.startswith("socks") else httpcore.HTTPProxy
    return kind(proxy_url=_core_url(proxy), proxy_auth=credentials, **options)
