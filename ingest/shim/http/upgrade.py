"""Ignores `Upgrade`, as a server does that speaks no other protocol (RFC 9110, section 7.8).

Java's HttpClient and `curl --http2` send it by default. httptools ends a request with `Upgrade` after its head, and
takes its body for data of the other protocol.
"""

from typing import Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_FRAMING: Final = (b"content-length", b"transfer-encoding")


def feed(protocol: HttpToolsProtocol, data: bytes) -> None:
    """Feed received data to the protocol's parser. After a head with `Upgrade`, another parser takes its place.

    Raises:
        httptools.HttpParserError: it is not HTTP, or a callback of the protocol has raised.
    """
    rest: bytes | memoryview = data
    while True:
        try:
            protocol.parser.feed_data(rest)
        except httptools.HttpParserUpgrade as upgrade:
            rest = memoryview(rest)[upgrade.args[0] :]
            protocol.parser = httptools.HttpRequestParser(_AfterHead(protocol))
            protocol.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as in uvicorn
            framing = [b"%b: %b\r\n" % header for header in protocol.scope["headers"] if header[0] in _FRAMING]
            protocol.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
        else:
            return


class _AfterHead:
    """The callbacks of a protocol, without those for the first head, which the protocol knows already."""

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        self._protocol = protocol
        self._passes_head = False
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        if self._passes_head:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._passes_head:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._passes_head:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._passes_head:
            self._protocol.on_headers_complete()
        self._passes_head = True
