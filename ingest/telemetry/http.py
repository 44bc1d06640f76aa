"""An ASGI application whose requests are counted and timed."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any, Final

from ingest.domain import metrics
from ingest.domain.metrics import Meter

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OTHER: Final = "other"
_METHODS: Final = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})
_EXACT: Final = frozenset(
    {"/v1/tasks", "/v1/tasks/batch", "/healthz", "/readyz", "/openapi.json", "/asyncapi.json", "/docs"}
)
_BELOW: Final = (("/v1/tasks/batch/", "/v1/tasks/batch/{id}"), ("/v1/tasks/", "/v1/tasks/{id}"), ("/docs/", "/docs"))


class MeteredApp:
    """Wraps an ASGI application. Submissions are answered in cohorts: those answered together are counted together."""

    def __init__(self, app: App, meter: Meter) -> None:
        self._app = app
        self._meter = meter
        self._answered: list[tuple[str, str, int, float]] = []
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = perf_counter()
        status = 0

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.in_flight += 1
        try:
            await self._app(scope, receive, noted)
        finally:
            self.in_flight -= 1
            if not self._answered:
                asyncio.get_running_loop().call_soon(self._count)
            # Without an answer the client has gone: 499, as nginx has it.
            self._answered.append((scope["method"], scope["path"], status or 499, perf_counter() - start))

    def _count(self) -> None:
        answered, self._answered = self._answered, []
        durations: dict[str, list[float]] = {}
        counts: dict[tuple[str, str, int], int] = {}
        for method, path, status, seconds in answered:
            route = path if path in _EXACT else route_of(path)
            durations.setdefault(route, []).append(seconds)
            key = (method if method in _METHODS else OTHER, route, status)
            counts[key] = counts.get(key, 0) + 1
        for (method, route, status), count in counts.items():
            self._meter.add(metrics.HTTP_REQUESTS, count, method, route, str(status))
        for route, values in durations.items():
            self._meter.observe(metrics.HTTP_DURATION, values, route)


def route_of(path: str) -> str:
    """The path as the API's documents have it; `other` for what they do not have."""
    if path in _EXACT:
        return path
    return next((route for prefix, route in _BELOW if path.startswith(prefix)), OTHER)
