"""Splits what a connection receives into frames, and gives them to those who read them."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol, SupportsIndex, cast

from ingest.broker.rabbitmq.amqp import codec

_HEARTBEAT_INTERVAL: Final = 1.0
"""Seconds after which aiormq is shown a heartbeat, if only content frames arrive."""


class FrameSink(Protocol):
    """Receives the content frames of one channel, synchronously and in order. Its methods must not raise.

    Each returns False if the frame is not for it; then aiormq gets the frame.
    """

    def method(self, method: int, data: bytes, start: int) -> bool:
        """Return a method frame, whose arguments begin at `start`."""
        ...

    def header(self, data: bytes, start: int) -> bool:
        """Return a content header, whose payload begins at `start`."""
        ...

    def body(self, part: bytes) -> bool:
        """Return a body frame's payload."""
        ...


class FrameDemultiplexer(asyncio.StreamReader):
    """Gives the content frames of our channels to their sinks and everything else to aiormq.

    Args:
        sinks: channel number to its sink.
        block: called with the reason if the broker blocks publishers, and with None if it no longer does.
        loop: the event loop.
    """

    def __init__(
        self,
        sinks: Mapping[int, FrameSink],
        block: Callable[[str | None], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(loop=loop)
        self._event_loop = loop
        self._socket: asyncio.Transport
        self._sinks = sinks
        self._block = block
        self._incomplete = b""
        self._not_amqp = False
        self._last_heartbeat = 0.0
        self._alive_timer: asyncio.TimerHandle | None = None

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        super().set_transport(transport)
        self._socket = cast("asyncio.Transport", transport)

    @property
    def reading_paused(self) -> bool:
        """Whether `pause` was called last."""
        return self._alive_timer is not None

    def pause(self) -> None:
        """Read nothing more from the socket until `resume`. A second call has no effect."""
        if self._alive_timer is None:
            self._socket.pause_reading()
            self._seem_alive()

    def resume(self) -> None:
        """Read from the socket again. A second call has no effect."""
        if self._alive_timer is not None:
            self._alive_timer.cancel()
            self._alive_timer = None
            self._socket.resume_reading()

    def _seem_alive(self) -> None:
        """Show heartbeats to aiormq, which considers a connection dead if it reads nothing.

        If the broker is dead, writing to it fails: aiormq's own heartbeats are still sent.
        """
        self._alive_timer = self._event_loop.call_later(_HEARTBEAT_INTERVAL, self._seem_alive)
        if not self._socket.is_closing():
            super().feed_data(codec.HEARTBEAT_FRAME)

    def feed_eof(self) -> None:
        self.resume()
        super().feed_eof()

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        if self._not_amqp:
            super().feed_data(data)
            return
        data = self._incomplete + bytes(data) if self._incomplete else bytes(data)
        position, end, for_aiormq = 0, len(data), []
        while end - position >= codec.OVERHEAD:
            kind, channel, size = codec.frame_head.unpack_from(data, position)
            stop = position + size + codec.OVERHEAD
            if kind > codec.HEARTBEAT or (stop <= end and data[stop - 1] != codec.FRAME_END):
                self._not_amqp = True  # aiormq raises a fitting error
                for_aiormq.append(data[position:])
                position = end
                break
            if stop > end:
                break
            if not self._give_to_sink(kind, channel, data, position + 7, stop - 1):
                for_aiormq.append(data[position:stop])
            position = stop
        self._incomplete = data[position:]
        self._give_to_aiormq(for_aiormq)
        if self.reading_paused:
            self._socket.pause_reading()  # StreamReader resumes after a pause of its own

    def _give_to_aiormq(self, frames: list[bytes]) -> None:
        # aiormq considers a connection dead if it reads nothing for a while. Content frames prove that it is alive,
        # too.
        now = time.monotonic()
        if frames or now - self._last_heartbeat >= _HEARTBEAT_INTERVAL:
            self._last_heartbeat = now
            super().feed_data(b"".join(frames) or codec.HEARTBEAT_FRAME)

    def _give_to_sink(self, kind: int, channel: int, data: bytes, start: int, stop: int) -> bool:
        sink = self._sinks.get(channel)
        if sink is None:
            if channel == 0 and kind == codec.METHOD:
                self._record_blocked(data, start)
            return False
        if kind == codec.BODY:
            return sink.body(data[start:stop])
        if kind == codec.HEADER:
            return sink.header(data, start)
        return kind == codec.METHOD and sink.method(codec.method_id.unpack_from(data, start)[0], data, start + 4)

    def _record_blocked(self, data: bytes, start: int) -> None:
        method = codec.method_id.unpack_from(data, start)[0]
        if method == codec.CONNECTION_BLOCKED:
            self._block(data[start + 5 : start + 5 + data[start + 4]].decode("utf-8", "replace"))
        elif method == codec.CONNECTION_UNBLOCKED:
            self._block(None)


class ContentAssembler:
    """Assembles the frames of one content: a method, a header, then bodies until the size is reached.

    Calls `done(method_arguments, properties, body)` when it is complete. Of the message's headers, the properties have
    only those that `headers` names.
    """

    def __init__(self, done: Callable[[Any, dict[str, Any], bytes], None], headers: Iterable[str] = ()) -> None:
        self._done = done
        self._reader = codec.PropertyReader(headers)
        self._arguments: Any = None
        self._properties: dict[str, Any] = {}
        self.missing = 0
        """Bytes of the body that have not arrived."""
        self._parts: list[bytes] = []

    def begin(self, arguments: Any) -> None:
        """A method with content (deliver or return) has arrived."""
        self._arguments = arguments

    def header(self, data: bytes, start: int) -> bool:
        if self._arguments is None:
            return False
        self.missing, self._properties = self._reader.read(data, start)
        if not self.missing:
            self._finish(b"")
        return True

    def body(self, part: bytes) -> bool:
        if self._arguments is None:
            return False
        self.missing -= len(part)
        if self.missing > 0:
            self._parts.append(part)
        elif self._parts:
            self._parts.append(part)
            self._finish(b"".join(self._parts))
            self._parts = []
        else:
            self._finish(part)
        return True

    def _finish(self, body: bytes) -> None:
        arguments, self._arguments = self._arguments, None
        self._done(arguments, self._properties, body)
