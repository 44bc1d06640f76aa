"""The HTTP server of the shim: uvicorn with the limits of `LimitedHttpProtocol`."""

from typing import Final

import uvicorn
from starlette.types import ASGIApp

from ingest.serving import EmbeddedServer
from ingest.shim.http.protocol import LimitedHttpProtocol

_KEEP_ALIVE: Final = 75
"""Seconds that an idle connection stays open: longer than load balancers keep theirs, so that they close first."""


def shim_server(app: ASGIApp, grace: float) -> EmbeddedServer:
    """Return a server for the shim or for an application that wraps it.

    Args:
        app: the ASGI application.
        grace: seconds that requests may continue after `should_exit`.
    """
    return EmbeddedServer(
        uvicorn.Config(
            app,
            http=LimitedHttpProtocol,
            ws="none",
            proxy_headers=False,  # the client's address is not used
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=int(grace),
        )
    )
