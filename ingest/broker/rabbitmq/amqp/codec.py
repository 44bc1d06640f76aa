"""Encodes and decodes the few AMQP 0-9-1 frames that are sent or received once per message.

Layout: AMQP 0-9-1 specification, section 4.2 and the class table, https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf.
pamqp encodes all other frames, and is the oracle in the tests.
"""

import struct
from collections.abc import Iterable
from typing import Any, Final

import pamqp.encode

from ingest.broker.rabbitmq.amqp.tables import HeaderReader
from ingest.domain.messages import Message

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
HEARTBEAT: Final = 8
FRAME_END: Final = 0xCE
HEARTBEAT_FRAME: Final = b"\x08\0\0\0\0\0\0\xce"
OVERHEAD: Final = 8
"""Bytes of a frame that are not payload: type, channel, size, end."""

CONSUMER_CANCEL: Final = 60 << 16 | 30
RETURN: Final = 60 << 16 | 50
DELIVER: Final = 60 << 16 | 60
ACK: Final = 60 << 16 | 80
REJECT: Final = 60 << 16 | 90
NACK: Final = 60 << 16 | 120
CONNECTION_BLOCKED: Final = 10 << 16 | 60
CONNECTION_UNBLOCKED: Final = 10 << 16 | 61

frame_head = struct.Struct(">BHI")
method_id = struct.Struct(">I")
_confirm = struct.Struct(">QB")
_body_size = struct.Struct(">QH")
_timestamp = struct.Struct(">Q")
_ack = struct.Struct(">BHIIQBB")

_PERSISTENT: Final = b"\x02"
# Property flags, in the order in which the properties follow.
_CONTENT_TYPE, _HEADERS, _DELIVERY_MODE, _CORRELATION_ID = 1 << 15, 1 << 13, 1 << 12, 1 << 10
_MESSAGE_ID, _TIMESTAMP, _TYPE, _USER_ID = 1 << 7, 1 << 6, 1 << 5, 1 << 4
_MAX_CACHED: Final = 4096
_MAX_PLANS: Final = 512
"""Combinations of properties that one reader caches."""


def short_string(text: str) -> bytes:
    """Encode an AMQP short string. Raises ValueError above 255 bytes of UTF-8."""
    raw = text.encode()
    if len(raw) > 255:
        raise ValueError(f"{text[:40]!r}… is longer than the 255 bytes of an AMQP short string")
    return bytes((len(raw),)) + raw


class PublishEncoder:
    """Encodes messages as frames of one channel.

    The `correlation_id` property is the sequence number of the publish on the channel. A return contains it, so a
    return is matched exactly, even if two messages in flight have the same `message_id`.

    Args:
        channel: the channel number.
        frame_max: the negotiated size of the largest frame, in bytes.
        user_id: the connection's user, which the broker checks; None leaves the property out.
    """

    def __init__(self, channel: int, frame_max: int, user_id: str | None) -> None:
        self._channel = channel
        self._body_max = frame_max - OVERHEAD
        self._user_id = user_id
        self._methods: dict[tuple[str, str, bool], bytes] = {}
        self._properties: dict[tuple[str, str], tuple[int, bytes, bytes]] = {}

    def encode(self, message: Message, sequence: int) -> bytes:
        """Return method, content header and body frames. Raises ValueError if a name is longer than AMQP allows."""
        target = (message.exchange, message.routing_key, message.mandatory)
        method = self._methods.get(target) or self._remember(self._methods, target, self._method(*target))
        kind = (message.content_type, message.type)
        flags, before, after = self._properties.get(kind) or self._remember(self._properties, kind, self._around(*kind))
        headers = b""
        if message.headers:
            flags |= _HEADERS
            headers = pamqp.encode.field_table(message.headers)
        if message.timestamp is not None:
            flags |= _TIMESTAMP
            after = _timestamp.pack(message.timestamp) + after
        number = b"%d" % sequence
        properties = b"%b%b%b%c%b%b%b" % (
            before,
            headers,
            _PERSISTENT,
            len(number),
            number,
            short_string(message.message_id),
            after,
        )
        body = message.body
        head = frame_head.pack(HEADER, self._channel, 14 + len(properties))
        header = b"%b\0\x3c\0\0%b%b\xce" % (head, _body_size.pack(len(body), flags), properties)
        if len(body) > self._body_max:
            return b"".join([method, header, *self._split(body)])
        if not body:
            return method + header
        return b"%b%b%b%b\xce" % (method, header, frame_head.pack(BODY, self._channel, len(body)), body)

    def _split(self, body: bytes) -> Iterable[bytes | memoryview]:
        view = memoryview(body)  # slices of it are not copies
        for start in range(0, len(body), self._body_max):
            part = view[start : start + self._body_max]
            yield frame_head.pack(BODY, self._channel, len(part))
            yield part
            yield b"\xce"

    def _method(self, exchange: str, routing_key: str, mandatory: bool) -> bytes:
        payload = b"\0\x3c\0\x28\0\0%b%b%c" % (short_string(exchange), short_string(routing_key), mandatory)
        return b"%b%b\xce" % (frame_head.pack(METHOD, self._channel, len(payload)), payload)

    def _around(self, content_type: str, type_: str) -> tuple[int, bytes, bytes]:
        """Return the property flags, and the constant properties before and after those that differ per message."""
        flags = _CONTENT_TYPE | _DELIVERY_MODE | _CORRELATION_ID | _MESSAGE_ID
        after = b""
        if type_:
            flags |= _TYPE
            after += short_string(type_)
        if self._user_id is not None:
            flags |= _USER_ID
            after += short_string(self._user_id)
        return flags, short_string(content_type), after

    @staticmethod
    def _remember(cache: dict[Any, Any], key: Any, value: Any) -> Any:
        if len(cache) >= _MAX_CACHED:
            cache.clear()
        cache[key] = value
        return value


def ack(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Basic.Ack."""
    return _ack.pack(METHOD, channel, 13, ACK, tag, multiple, FRAME_END)


def requeue(channel: int, tag: int) -> bytes:
    """Basic.Reject with requeue. It counts as a failed delivery on every version of RabbitMQ, Basic.Nack does not."""
    return _ack.pack(METHOD, channel, 13, REJECT, tag, True, FRAME_END)


def read_confirm(data: bytes, start: int) -> tuple[int, bool]:
    """Return (delivery tag, multiple) of a Basic.Ack or Basic.Nack, whose arguments begin at `start`."""
    tag, bits = _confirm.unpack_from(data, start)
    return tag, bool(bits & 1)


def read_deliver(data: bytes, start: int) -> tuple[int, bool, str]:
    """Return (delivery tag, redelivered, routing key) of a Basic.Deliver, whose arguments begin at `start`."""
    position = start + 1 + data[start]  # the consumer tag
    tag, redelivered = _confirm.unpack_from(data, position)
    position += 9
    position += 1 + data[position]  # the exchange
    return tag, bool(redelivered), _text(data, position)


class PropertyReader:
    """Decodes content headers: the basic properties by name, and the size of the body in bytes.

    Args:
        headers: the names of the headers to decode; all others are left out.
    """

    _NAMES: Final = (
        "content_type",
        "content_encoding",
        "headers",
        "delivery_mode",
        "priority",
        "correlation_id",
        "reply_to",
        "expiration",
        "message_id",
        "timestamp",
        "type",
        "user_id",
        "app_id",
        "cluster_id",
    )
    _WIDTHS: Final = {"delivery_mode": 1, "priority": 1, "timestamp": 8}

    def __init__(self, headers: Iterable[str]) -> None:
        self._plans: dict[int, list[tuple[str, int]]] = {}
        self._header_reader = HeaderReader(headers)

    def read(self, data: bytes, start: int) -> tuple[int, dict[str, Any]]:
        """Return (body size, properties) of the header whose payload begins at `start`."""
        size, flags = _body_size.unpack_from(data, start + 4)
        position = start + 14
        properties: dict[str, Any] = {}
        for name, width in self._plans.get(flags) or self._plan(flags):
            if width == 0:
                end = position + 1 + data[position]
                raw = data[position + 1 : end]
                properties[name] = _decoded(raw)
                position = end
            elif width < 0:
                end = position + 4 + method_id.unpack_from(data, position)[0]
                properties[name] = self._header_reader.read(data[position:end])
                position = end
            else:
                if name == "timestamp":
                    properties[name] = _timestamp.unpack_from(data, position)[0]
                elif name == "priority":
                    properties[name] = data[position]
                position += width
        return size, properties

    def _plan(self, flags: int) -> list[tuple[str, int]]:
        """Return (name, bytes) of the properties that follow; bytes is 0 for a short string and -1 for a table."""
        names = [name for bit, name in enumerate(self._NAMES) if flags & (1 << (15 - bit))]
        plan = [(name, -1 if name == "headers" else self._WIDTHS.get(name, 0)) for name in names]
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        self._plans[flags] = plan
        return plan


def _text(data: bytes, position: int) -> str:
    return _decoded(data[position + 1 : position + 1 + data[position]])


def _decoded(raw: bytes) -> str:
    """Decode a short string. Producers may send any bytes.

    Bytes that are not UTF-8 become printable escapes, and U+FFFD is appended: no idempotency key may contain it, so
    such a message_id is rejected, and it never equals one that contains the same escapes as text.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("utf-8", "backslashreplace") + "\N{REPLACEMENT CHARACTER}"
