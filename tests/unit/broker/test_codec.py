"""Hand-packed frames against pamqp, the oracle."""

import tracemalloc
from typing import Any

import pamqp.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from ingest.broker.rabbitmq.amqp import codec
from ingest.domain.messages import Message

short = st.text(max_size=60).filter(lambda text: "\0" not in text)
headers: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.text(min_size=1, max_size=20), st.text(max_size=40) | st.integers(0, 2**31 - 1), max_size=4
)


def unmarshal(data: bytes) -> list[object]:
    out: list[object] = []
    while data:
        used, channel, frame = pamqp.frame.unmarshal(data)
        assert channel == 7
        out.append(frame)
        data = data[used:]
    return out


@given(short, short, short, headers, st.binary(max_size=3000), st.booleans(), st.integers(1, 2**40))
@settings(max_examples=200)
def test_a_publish_is_what_pamqp_reads(
    key: str, id_: str, type_: str, table: dict[str, Any], body: bytes, mandatory: bool, sequence: int
) -> None:
    """Method, header and bodies, split over frame_max; all properties, persistent."""
    encoder = codec.PublishEncoder(7, 1000, "the-user")
    message = Message(
        exchange="ex", routing_key=key, body=body, message_id=id_, type=type_, headers=table, mandatory=mandatory
    )
    method, header, *bodies = unmarshal(encoder.encode(message, sequence))
    assert isinstance(method, commands.Basic.Publish)
    assert isinstance(header, ContentHeader)
    assert (method.exchange, method.routing_key, method.mandatory) == ("ex", key, mandatory)
    given = header.properties
    assert (given.message_id, given.message_type or "", given.headers or {}) == (id_, type_, table)
    assert (given.content_type, given.delivery_mode, given.user_id) == ("application/json", 2, "the-user")
    assert given.correlation_id == str(sequence)
    assert header.body_size == len(body)
    parts = [each.value for each in bodies if isinstance(each, ContentBody)]
    assert len(parts) == len(bodies)
    assert b"".join(parts) == body
    assert all(len(part) + codec.OVERHEAD <= 1000 for part in parts)


@given(short, short, headers, st.integers(0, 255), st.integers(0, 2**40))
@settings(max_examples=200)
def test_headers_of_others_are_read(id_: str, reply: str, table: dict[str, Any], priority: int, size: int) -> None:
    """Properties that pamqp packs, those we do not use in between included."""
    properties = commands.Basic.Properties(
        message_id=id_ or None, reply_to=reply or None, headers=table or None, priority=priority, app_id="x"
    )
    packed = pamqp.frame.marshal(ContentHeader(0, size, properties), 7)
    got_size, got = codec.PropertyReader().read(packed, 7)
    assert got_size == size
    assert (got.get("message_id") or "", got.get("headers") or {}) == (id_, table)
    assert got["app_id"] == "x"


@given(st.integers(1, 2**63 - 1), st.booleans(), st.from_regex(r"[a-z.:-]{0,127}", fullmatch=True), short)
def test_methods_are_read(tag: int, flag: bool, exchange: str, key: str) -> None:
    """Deliver, ack and nack, as pamqp packs them."""
    deliver = commands.Basic.Deliver("tag", tag, flag, exchange, key)
    assert codec.read_deliver(pamqp.frame.marshal(deliver, 7), 11) == (tag, flag, key)
    assert codec.read_confirm(pamqp.frame.marshal(commands.Basic.Ack(tag, flag), 7), 11) == (tag, flag)
    assert codec.read_confirm(pamqp.frame.marshal(commands.Basic.Nack(tag, flag, True), 7), 11) == (tag, flag)


@given(st.integers(1, 2**63 - 1), st.booleans())
def test_acknowledgements_are_what_pamqp_packs(tag: int, flag: bool) -> None:
    """Ack and requeue, byte for byte."""
    assert codec.ack(7, tag, multiple=flag) == pamqp.frame.marshal(commands.Basic.Ack(tag, flag), 7)
    assert codec.requeue(7, tag) == pamqp.frame.marshal(commands.Basic.Reject(tag, True), 7)


def test_names_that_amqp_cannot_carry_are_refused() -> None:
    """More than 255 bytes in a short string."""
    with pytest.raises(ValueError, match="255 bytes"):
        codec.short_string("ü" * 128)


@pytest.mark.parametrize(
    "table",
    [
        b"".join(b"\x01aF" + (7 * n).to_bytes(4, "big") for n in range(5000, -1, -1)),
        b"\x01aT" + b"\xff" * 8,
        b"\x01aD" + b"\xff" * 5,
        b"\x01a?",
        b"\x05a",
    ],
    ids=["nested", "date", "decimal", "type", "cut"],
)
def test_a_table_that_cannot_be_decoded_is_empty(table: bytes) -> None:
    """Consuming goes on: an exception here would end the connection, for this delivery and all others, on and on."""
    raw = len(table).to_bytes(4, "big") + table
    header = b"\0\x3c\0\0" + (5).to_bytes(8, "big") + (1 << 13 | 1 << 7).to_bytes(2, "big") + raw + b"\x01m"
    size, got = codec.PropertyReader().read(header, 0)
    assert (size, got["message_id"]) == (5, "m")
    assert isinstance(got["headers"], dict)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_utf8_stay_distinct(raw: bytes) -> None:
    """A producer's message_id may be anything; it is printable here and does not raise."""
    header = b"\0\x3c\0\0" + (0).to_bytes(8, "big") + (1 << 7).to_bytes(2, "big") + bytes([len(raw)]) + raw
    _, got = codec.PropertyReader().read(header, 0)
    got["message_id"].encode()


def test_a_reader_keeps_little_of_what_producers_vary() -> None:
    """3,000 header tables that decode to 20 times their size, under 1,000 combinations of properties: within 8 MB."""
    fields = b"".join(b"\x02%c%cV" % (33 + number % 90, 33 + number // 90) for number in range(110))
    reader = codec.PropertyReader()
    tracemalloc.start()
    for number in range(3000):
        table = b"\x01iI" + number.to_bytes(4, "big") + fields
        flags = 1 << 13 | (number % 1000) << 2 & 0x0FFC
        properties = len(table).to_bytes(4, "big") + table + b"\x01" * 30
        _, got = reader.read(b"\0\x3c\0\0" + (0).to_bytes(8, "big") + flags.to_bytes(2, "big") + properties, 0)
        assert got["headers"]["i"] == number
        del got
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 8_000_000
