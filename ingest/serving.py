"""uvicorn as a part of a process: on a socket that is already open, and without its signal handlers."""

import contextlib
import resource
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn

BACKLOG = 2048
"""Connections that the kernel holds until they are accepted."""


_FILES: Final = 16_384
"""Files that one process may open; each connection of a client is one. The usual limit is 1,024."""


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


def raise_file_limit() -> None:
    """Let this process and its children open more files, if the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
