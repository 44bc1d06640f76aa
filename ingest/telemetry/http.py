"""A decorator that measures the requests of an ASGI application."""

import asyncio
from time import perf_counter
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingest.domain import metrics
from ingest.domain.metrics import Meter

OTHER: Final = "other"
_METHODS: Final = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})
_EXACT: Final = frozenset(
    {"/", "/v1/tasks", "/v1/tasks/batch", "/healthz", "/readyz", "/openapi.json", "/asyncapi.json", "/docs"}
)
_BELOW: Final = (("/v1/tasks/batch/", "/v1/tasks/batch/{id}"), ("/v1/tasks/", "/v1/tasks/{id}"), ("/docs/", "/docs"))


class MeteredApp:
    """Measures an ASGI application. Requests that are answered together are recorded together."""

    def __init__(self, app: ASGIApp, meter: Meter) -> None:
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

        async def record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.in_flight += 1
        try:
            await self._app(scope, receive, record_status)
        finally:
            self.in_flight -= 1
            if not self._answered:
                asyncio.get_running_loop().call_soon(self._record)
            # Without an answer the client has disconnected: 499, as in nginx.
            self._answered.append((scope["method"], scope["path"], status or 499, perf_counter() - start))

    def _record(self) -> None:
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
    """Return the route of a path as in the OpenAPI document; `other` if there is none."""
    if path in _EXACT:
        return path
    return next((route for prefix, route in _BELOW if path.startswith(prefix)), OTHER)
