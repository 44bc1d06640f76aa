"""The connections of a client: how many, and in which process and event loop.

At most `max_connections` calls are in progress; the others wait for their turn, for as long as it takes. Without this,
httpx would count the wait as the gateway's silence.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx

from asg_gateway._proxies import proxy_for
from asg_gateway._spread import AsyncSpreadTransport, SpreadTransport
from asg_gateway._transport import DeadlineTransport

MAX_CONNECTIONS = 50


@dataclass(frozen=True)
class _Blocking:
    """The connections of one process; `pid` is None before the first call."""

    http: httpx.Client
    slots: threading.BoundedSemaphore
    pid: int | None = None


class Connections:
    """The connections of a blocking client. A forked process opens its own.

    On a connection that two processes share, each would read the answers to the other's requests.

    Args:
        options: keyword arguments for httpx.Client; `base_url` is one of them.
        max_connections: how many calls may be in progress.
        transport: a transport of the caller; None for the SDK's own.

    Raises:
        ValueError: `max_connections` or a proxy variable is invalid.
    """

    def __init__(self, options: dict[str, Any], max_connections: int, transport: httpx.BaseTransport | None) -> None:
        _check(max_connections)
        self._options = options
        self._max = max_connections
        self._transport = transport
        self._current = self._open()

    @contextmanager
    def slot(self) -> Iterator[httpx.Client]:
        """Wait for a free connection. Raises RuntimeError if the caller's transport was used before a fork."""
        current = self._of_this_process()
        with current.slots:
            yield current.http

    def close(self) -> None:
        """Close the connections."""
        self._current.http.close()

    def _of_this_process(self) -> _Blocking:
        pid = os.getpid()
        current = self._current
        if current.pid == pid:
            return current
        if current.pid is None:
            current = replace(current, pid=pid)
        elif self._transport is None:
            current = replace(self._open(), pid=pid)  # the parent's connections are not closed, only forgotten
        else:
            raise RuntimeError(
                "this client has a transport of its own and was used before os.fork(): create a client in each process"
            )
        self._current = current
        return current

    def _open(self) -> _Blocking:
        transport = self._transport
        if transport is None:
            proxy, context = proxy_for(httpx.URL(self._options["base_url"])), httpx.create_ssl_context()
            transport = SpreadTransport(lambda: DeadlineTransport(proxy, context))
        http = httpx.Client(**self._options, transport=transport)
        return _Blocking(http, threading.BoundedSemaphore(self._max))


@dataclass(frozen=True)
class _Asynchronous:
    """The connections of one event loop in one process; both are None before the first call."""

    http: httpx.AsyncClient
    slots: asyncio.Semaphore
    pid: int | None = None
    loop: asyncio.AbstractEventLoop | None = None


class AsyncConnections:
    """The connections of an asynchronous client, in one process and in one event loop at a time.

    Arguments and errors as `Connections`.
    """

    def __init__(
        self, options: dict[str, Any], max_connections: int, transport: httpx.AsyncBaseTransport | None
    ) -> None:
        _check(max_connections)
        self._options = options
        self._max = max_connections
        self._transport = transport
        self._current = self._open()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[httpx.AsyncClient]:
        """Wait for a free connection. Raises RuntimeError in a forked process, and in a second event loop."""
        current = self._of_this_loop()
        async with current.slots:
            yield current.http

    async def close(self) -> None:
        """Close the connections, unless their event loop is closed or is that of the parent process."""
        current = self._current
        if current.pid in (None, os.getpid()) and current.loop in (None, asyncio.get_running_loop()):
            await current.http.aclose()

    def _of_this_loop(self) -> _Asynchronous:
        pid, loop = os.getpid(), asyncio.get_running_loop()
        current = self._current
        if current.pid not in (None, pid):
            raise RuntimeError("this client was used before os.fork(): create a client in each process")
        if current.loop is loop:
            return current
        if current.loop is not None:
            if not current.loop.is_closed():
                raise RuntimeError("this client is in use in another event loop: create a client in each event loop")
            current = self._open()
        self._current = current = replace(current, pid=pid, loop=loop)
        return current

    def _open(self) -> _Asynchronous:
        transport = self._transport
        if transport is None:
            url, context = proxy_for(httpx.URL(self._options["base_url"])), httpx.create_ssl_context()
            proxy = None if url is None else httpx.Proxy(url)
            limits = httpx.Limits(max_connections=1)
            transport = AsyncSpreadTransport(
                lambda: httpx.AsyncHTTPTransport(verify=context, proxy=proxy, limits=limits)
            )
        http = httpx.AsyncClient(**self._options, transport=transport)
        return _Asynchronous(http, asyncio.Semaphore(self._max))


def _check(max_connections: int) -> None:
    if type(max_connections) is not int or max_connections < 1:
        raise ValueError("max_connections must be an integer of 1 or more")
