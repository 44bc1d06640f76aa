"""Metrics of HTTP requests."""

import asyncio
from typing import Any

import pytest
from starlette.types import Scope

from ingest.telemetry.http import MeteredApp, route_of
from ingest.telemetry.prometheus import PrometheusMeter
from tests.unit.telemetry.test_metrics import samples


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/tasks", "/v1/tasks"),
        ("/v1/tasks/batch", "/v1/tasks/batch"),
        ("/v1/tasks/tsk_1", "/v1/tasks/{id}"),
        ("/v1/tasks/batch/bat_1", "/v1/tasks/batch/{id}"),
        ("/docs/assets/x.js", "/docs"),
        ("/readyz", "/readyz"),
        ("/wp-admin/" + "x" * 2000, "other"),
        ("/", "/"),
    ],
)
def test_route_label_has_a_limited_number_of_values(path: str, route: str) -> None:
    assert route_of(path) == route


async def test_every_request_is_counted_once_with_its_status() -> None:
    """A request without an answer counts as 499, and an unknown method as `other`."""

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        assert metered.in_flight > 0
        if scope["path"] == "/v1/tasks/x":
            raise ValueError
        if scope["path"] == "/v1/tasks":
            await send({"type": "http.response.start", "status": 202})

    async def send(_: object = None) -> Any: ...

    async def request(method: str, path: str) -> None:
        await metered({"type": "http", "method": method, "path": path}, send, send)

    meter = PrometheusMeter()
    metered = MeteredApp(app, meter)
    requests = [request("POST", "/v1/tasks"), request("POST", "/v1/tasks"), request("BREW", "/pot")]
    await asyncio.gather(*requests, request("GET", "/v1/tasks/x"), return_exceptions=True)
    await asyncio.sleep(0)
    values = samples(meter.registry)
    counted = {
        ",".join(value for _, value in sorted(labels)): value
        for (name, labels), value in values.items()
        if name == "ingest_http_requests_total"
    }
    assert counted == {"POST,/v1/tasks,202": 2, "other,other,499": 1, "GET,/v1/tasks/{id},499": 1}
    assert values["ingest_http_request_duration_seconds_count", frozenset({("route", "/v1/tasks")})] == 2
    assert metered.in_flight == 0
