"""Reading header tables: the wanted headers are what pamqp decodes, and all others cost next to nothing."""

import struct
import time
import tracemalloc
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pamqp.decode
import pamqp.encode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.broker.rabbitmq.amqp import codec
from ingest.broker.rabbitmq.amqp.tables import HeaderReader

EARLIEST = datetime(1970, 1, 2)  # noqa: DTZ001 - hypothesis takes no time zone here

names = st.sampled_from(["a", "b", "traceparent", "ü"])
values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**31), 2**31 - 1)
    | st.text(max_size=20)
    | st.datetimes(min_value=EARLIEST, timezones=st.just(UTC)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
TRACEPARENT = b"\x0btraceparentS\0\0\0\x02up"


def table(*fields: bytes) -> bytes:
    """Encode a table of encoded fields."""
    joined = b"".join(fields)
    return struct.pack(">I", len(joined)) + joined


def sized(type_: bytes, value: bytes) -> bytes:
    """Encode the field `x` with a value of a type that has a length."""
    return b"\x01x" + type_ + struct.pack(">I", len(value)) + value


@given(st.dictionaries(names, values, max_size=4), st.sets(names))
def test_wanted_headers_are_decoded_as_pamqp_does_and_others_left_out(
    headers: dict[str, Any], wanted: set[str]
) -> None:
    raw = pamqp.encode.field_table(headers)
    decoded = pamqp.decode.field_table(raw)[1]
    assert HeaderReader(wanted).read(raw) == {name: decoded[name] for name in decoded if name in wanted}


@given(st.binary(max_size=60), st.binary(max_size=30))
def test_table_of_any_bytes_is_read(before: bytes, after: bytes) -> None:
    """A producer can send any bytes. An exception would end the connection, and after each redelivery again."""
    HeaderReader(["traceparent", "a"]).read(table(before, TRACEPARENT, after))
    HeaderReader(["traceparent"]).read(table(TRACEPARENT)[: len(before)])


@pytest.mark.parametrize(
    "field",
    [
        b"".join(b"\x01aF" + struct.pack(">I", 7 * number) for number in range(5000, -1, -1)),
        b"\x01aT" + b"\xff" * 8,
        b"\x01aS\0\0\0\x01\xff",
    ],
    ids=["nested too deeply", "date", "not UTF-8"],
)
def test_header_with_an_impossible_value_does_not_hide_the_next_one(field: bytes) -> None:
    headers = HeaderReader(["a", "traceparent"]).read(table(field, TRACEPARENT))
    assert headers["traceparent"] == "up"
    assert not isinstance(headers.get("a"), dict)


@pytest.mark.parametrize("raw", [table(b"\x01a?"), table(b"\x05a"), table(b"\x01aS\0\0\1\0x"), table(b"\x01a"), b""])
def test_table_that_is_cut_or_has_an_unknown_type_ends_there(raw: bytes) -> None:
    assert HeaderReader(["a"]).read(raw) == {}


def test_smallest_decimal_is_decoded() -> None:
    assert HeaderReader(["a"]).read(table(b"\x01aD" + b"\xff" * 5)) == {"a": Decimal("-1E-255")}


@pytest.mark.parametrize(
    "field", [sized(b"A", b"V" * 120_000), sized(b"F", b"\x01aV" * 40_000)], ids=["array", "table"]
)
@pytest.mark.parametrize("wanted", ["traceparent", "x"])
def test_large_value_is_skipped(field: bytes, wanted: str) -> None:
    """pamqp decodes one of these in up to 0.9 s, in which the worker does nothing else, and 2 MB."""
    reader = HeaderReader([wanted, "traceparent"])
    raw = table(field, TRACEPARENT)
    start = time.process_time()
    for _ in range(100):
        assert reader.read(raw) == {"traceparent": "up"}
    assert time.process_time() - start < 1.0


def test_reader_of_properties_keeps_nothing_of_large_tables() -> None:
    """It reads 3,000 tables and 1,000 combinations of properties."""
    reader = codec.PropertyReader(["i"])
    tracemalloc.start()
    for number in range(3000):
        raw = table(
            b"\x01iI" + number.to_bytes(4, "big"), *[b"\x02%c%cV" % (33 + n % 90, 33 + n // 90) for n in range(110)]
        )
        flags = 1 << 13 | (number % 1000) << 2 & 0x0FFC
        header = b"\0\x3c\0\0" + struct.pack(">QH", 5, flags) + raw + b"\x01" * 30
        size, properties = reader.read(header, 0)
        assert (size, properties["headers"]) == (5, {"i": number})
        del properties
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept_bytes < 2_000_000
