"""An ASGI application whose requests are counted and timed."""

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
    """Wraps an ASGI application."""

    def __init__(self, app: App, meter: Meter) -> None:
        self._app = app
        self._meter = meter
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
            route = route_of(scope["path"])
            method = scope["method"] if scope["method"] in _METHODS else OTHER
            # Without an answer the client has gone: 499, as nginx has it.
            self._meter.add(metrics.HTTP_REQUESTS, 1, method, route, str(status or 499))
            self._meter.observe(metrics.HTTP_DURATION, (perf_counter() - start,), route)


def route_of(path: str) -> str:
    """The path as the API's documents have it; `other` for what they do not have."""
    if path in _EXACT:
        return path
    return next((route for prefix, route in _BELOW if path.startswith(prefix)), OTHER)
