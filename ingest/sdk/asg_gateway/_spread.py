"""httpx transports that spread requests over transports of one connection each.

httpx's pool looks at every connection for every request: with 50 connections that takes longer than the request.
"""

from collections.abc import Callable

import httpx


class SpreadTransport(httpx.BaseTransport):
    """Sends each request on an idle transport, the most recently used one first.

    Args:
        make: makes a transport, for one request at a time, that reads answers completely.
    """

    def __init__(self, make: Callable[[], httpx.BaseTransport]) -> None:
        self._make = make
        self._all: list[httpx.BaseTransport] = []
        self._idle: list[httpx.BaseTransport] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and read the answer. Raises httpx.TransportError."""
        try:
            transport = self._idle.pop()
        except IndexError:
            transport = self._make()
            self._all.append(transport)
        try:
            return transport.handle_request(request)
        finally:
            self._idle.append(transport)

    def close(self) -> None:
        """Close the connections."""
        for transport in self._all:
            transport.close()


class AsyncSpreadTransport(httpx.AsyncBaseTransport):
    """Like `SpreadTransport`; it reads each answer completely."""

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport]) -> None:
        self._make = make
        self._all: list[httpx.AsyncBaseTransport] = []
        self._idle: list[httpx.AsyncBaseTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and read the answer. Raises httpx.TransportError."""
        if self._idle:
            transport = self._idle.pop()
        else:
            transport = self._make()
            self._all.append(transport)
        try:
            answer = await transport.handle_async_request(request)
            try:
                await answer.aread()
            finally:
                await answer.aclose()
        finally:
            self._idle.append(transport)
        return answer

    async def aclose(self) -> None:
        """Close the connections."""
        for transport in self._all:
            await transport.aclose()
