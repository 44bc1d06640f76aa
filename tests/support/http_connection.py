"""A connection of a client to the HTTP protocol, without a socket."""

import asyncio
from typing import Any

from ingest.shim.http.protocol import LimitedHttpProtocol


class Connection(asyncio.Transport):
    """The server's end of a connection. `answer` is what the server has sent."""

    def __init__(self, protocol: LimitedHttpProtocol) -> None:
        super().__init__()
        self.answer = b""
        self.reading = True
        self._closing = False
        self._protocol = protocol
        protocol.connection_made(self)

    def send(self, data: bytes) -> None:
        """Send as the client."""
        if not self._closing:
            assert self.reading, "a real transport would not deliver this"
            self._protocol.data_received(data)

    def write(self, data: Any) -> None:
        self.answer += bytes(data)

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
