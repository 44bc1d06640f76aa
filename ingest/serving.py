"""uvicorn as a part of a process: on a socket that is already open, and without its signal handlers."""

import contextlib
import socket
from collections.abc import Iterator

import uvicorn

BACKLOG = 2048
"""Connections that the kernel holds until they are accepted."""


class EmbeddedServer(uvicorn.Server):
    """Serves an ASGI application. Set `should_exit = True` to stop it; signals are handled by the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's signal handlers as they are."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket that several processes can share.

    Args:
        host: an IPv4 or IPv6 address, or a host name.
        port: 0 takes a free port.

    Raises:
        OSError: the address is unavailable.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
