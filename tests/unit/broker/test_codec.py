"""The codec for frames, compared with pamqp."""

from typing import Any

import pamqp.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from ingest.broker.rabbitmq.amqp import codec
from ingest.domain.errors import InvalidSubmission
from ingest.domain.messages import Message
from ingest.domain.validation import validate_key

short = st.text(max_size=60).filter(lambda text: "\0" not in text)
headers: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.text(min_size=1, max_size=20), st.text(max_size=40) | st.integers(0, 2**31 - 1), max_size=4
)
never_utf8 = st.sampled_from([*range(0x80, 0xC0), *range(0xF8, 0x100)])
"""Bytes that are invalid in UTF-8 after an ASCII character."""
printable_ascii = st.integers(0x20, 0x7E).filter(lambda byte: byte != ord("\\"))
not_utf8 = st.lists(never_utf8 | printable_ascii, max_size=60).map(bytes).filter(lambda raw: not raw.isascii())


def unmarshal(data: bytes) -> list[object]:
    """Decode frames of channel 7 with pamqp."""
    frames: list[object] = []
    while data:
        used, channel, frame = pamqp.frame.unmarshal(data)
        assert channel == 7
        frames.append(frame)
        data = data[used:]
    return frames


def header_with(flags: int, properties: bytes, body_size: int = 0) -> bytes:
    """The payload of a content header."""
    return b"\0\x3c\0\0" + body_size.to_bytes(8, "big") + flags.to_bytes(2, "big") + properties


def read_message_id(raw: bytes) -> str:
    """Read a header whose only property is this `message_id`."""
    _, properties = codec.PropertyReader(()).read(header_with(1 << 7, bytes([len(raw)]) + raw), 0)
    message_id: str = properties["message_id"]
    return message_id


@given(
    short,
    short,
    short,
    headers,
    st.none() | st.integers(0, 2**31),
    st.binary(max_size=3000),
    st.booleans(),
    st.integers(1, 2**40),
)
@settings(max_examples=200)
def test_pamqp_decodes_an_encoded_publish(
    key: str,
    message_id: str,
    type_name: str,
    table: dict[str, Any],
    timestamp: int | None,
    body: bytes,
    mandatory: bool,
    sequence: int,
) -> None:
    """It is persistent, has all properties, and no frame is larger than frame_max."""
    encoder = codec.PublishEncoder(7, 1000, "the-user")
    message = Message(
        exchange="ex",
        routing_key=key,
        body=body,
        message_id=message_id,
        type=type_name,
        headers=table,
        mandatory=mandatory,
        timestamp=timestamp,
    )
    method, header, *bodies = unmarshal(encoder.encode(message, sequence))
    assert isinstance(method, commands.Basic.Publish)
    assert isinstance(header, ContentHeader)
    assert (method.exchange, method.routing_key, method.mandatory) == ("ex", key, mandatory)
    properties = header.properties
    assert (properties.message_id, properties.message_type or "", properties.headers or {}) == (
        message_id,
        type_name,
        table,
    )
    assert (properties.content_type, properties.delivery_mode, properties.user_id) == (
        "application/json",
        2,
        "the-user",
    )
    assert properties.correlation_id == str(sequence)
    assert (properties.timestamp and int(properties.timestamp.timestamp())) == timestamp
    assert header.body_size == len(body)
    parts = [frame.value for frame in bodies if isinstance(frame, ContentBody)]
    assert len(parts) == len(bodies)
    assert b"".join(parts) == body
    assert all(len(part) + codec.OVERHEAD <= 1000 for part in parts)


@given(short, short, headers, st.integers(0, 255), st.integers(0, 2**40))
@settings(max_examples=200)
def test_property_reader_decodes_what_pamqp_encodes(
    message_id: str, reply_to: str, table: dict[str, Any], priority: int, size: int
) -> None:
    """It skips numbers that the service does not use. `test_tables` is about headers."""
    properties = commands.Basic.Properties(
        message_id=message_id or None,
        reply_to=reply_to or None,
        headers=table or None,
        priority=priority,
        app_id="x",
    )
    packed = pamqp.frame.marshal(ContentHeader(0, size, properties), 7)
    body_size, decoded = codec.PropertyReader(table).read(packed, 7)
    assert body_size == size
    assert (decoded.get("message_id") or "", decoded.get("headers") or {}) == (message_id, table)
    assert (decoded["app_id"], decoded["priority"]) == ("x", priority)


@given(st.integers(1, 2**63 - 1), st.booleans(), st.from_regex(r"[a-z.:-]{0,127}", fullmatch=True), short)
def test_deliver_ack_and_nack_are_decoded_as_pamqp_encodes_them(tag: int, flag: bool, exchange: str, key: str) -> None:
    deliver = commands.Basic.Deliver("tag", tag, flag, exchange, key)
    assert codec.read_deliver(pamqp.frame.marshal(deliver, 7), 11) == (tag, flag, key)
    assert codec.read_confirm(pamqp.frame.marshal(commands.Basic.Ack(tag, flag), 7), 11) == (tag, flag)
    assert codec.read_confirm(pamqp.frame.marshal(commands.Basic.Nack(tag, flag, True), 7), 11) == (tag, flag)


@given(st.integers(1, 2**63 - 1), st.booleans())
def test_ack_and_requeue_are_the_bytes_that_pamqp_encodes(tag: int, flag: bool) -> None:
    assert codec.ack(7, tag, multiple=flag) == pamqp.frame.marshal(commands.Basic.Ack(tag, flag), 7)
    assert codec.requeue(7, tag) == pamqp.frame.marshal(commands.Basic.Reject(tag, True), 7)


def test_short_string_of_more_than_255_bytes_is_an_error() -> None:
    with pytest.raises(ValueError, match="255 bytes"):
        codec.short_string("ü" * 128)


@given(st.binary(max_size=200))
def test_message_id_of_any_bytes_becomes_valid_text(raw: bytes) -> None:
    """A producer can send any bytes."""
    read_message_id(raw).encode()


@given(st.lists(not_utf8, min_size=2, max_size=2, unique=True))
def test_message_ids_that_are_not_utf8_stay_different_and_become_printable(raw_ids: list[bytes]) -> None:
    """The exception is a backslash: a message_id can contain the escape of another one."""
    first, second = map(read_message_id, raw_ids)
    assert first != second
    assert first.isprintable()
    assert second.isprintable()


def test_message_id_that_is_not_utf8_is_invalid_and_differs_from_its_escape() -> None:
    """Otherwise two submissions of one producer could be taken for one."""
    read = read_message_id(b"order-\xff")
    assert read != read_message_id(b"order-\\xff") == "order-\\xff"
    with pytest.raises(InvalidSubmission, match="message_id must be 1 to 255 printable characters"):
        validate_key(read, "message_id")
