"""The port for metrics and health, over real connections."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx
from prometheus_client import CollectorRegistry

from ingest.serving import listen
from ingest.telemetry.exposition import Exposition, MetricsProtocol, metrics_server
from ingest.telemetry.health import Report


def no_reports() -> Sequence[Report]:
    return []


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    """Serve metrics; the port is yielded."""
    listener = listen("127.0.0.1", 0)
    server = metrics_server(Exposition(CollectorRegistry(), no_reports, 0).app())
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await running


async def test_health_is_answered_beside_any_number_of_silent_connections() -> None:
    async with serving() as port, contextlib.AsyncExitStack() as stack:
        for _ in range(MetricsProtocol.max_connections + 50):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=5) as client:
            for path in ("/healthz", "/readyz", "/metrics"):
                assert (await client.get(path)).status_code == 200


async def test_request_with_an_endless_head_is_refused() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 40_000)
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
        writer.close()
