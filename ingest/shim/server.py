"""uvicorn, which listens where and stops when it is told."""

import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import uvicorn

from ingest.shim.door import Door
from ingest.shim.wire import Receive, Scope, Send

App = Callable[[Scope, Receive, Send], Awaitable[None]]

_KEEP_ALIVE: Final = 75
"""Seconds that an idle connection is kept: longer than load balancers do, so that they close first."""


class Server(uvicorn.Server):
    """Serves the shim on a listening socket. `should_exit = True` stops it.

    Args:
        app: the shim, or what wraps it.
        grace: seconds that requests may go on after that.
    """

    def __init__(self, app: App, grace: float) -> None:
        config = uvicorn.Config(
            app,
            http=Door,
            ws="none",
            proxy_headers=False,  # nobody asks for the client's address
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=int(grace),
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the bootstrap's business."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket that several processes may share. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
