"""Reads header tables. Producers send them, with up to 128 KiB of any fields.

To decode such a table takes up to a second and 4 MB, so the fields that the service does not use are skipped by their
length. Layout: AMQP 0-9-1 specification, section 4.2.5.5, with the types of RabbitMQ (https://www.rabbitmq.com/amqp-0-9-1-errata).
"""

import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import pamqp.decode

_MAX_VALUE: Final = 4096
"""Bytes of the largest array or table that is decoded: that takes up to 30 ms. Longer strings are read in any case."""
_NESTED: Final = frozenset(b"AF")
_SIZED: Final = frozenset(b"SxAF")
"""Types whose value starts with its length: string, bytes, array, table."""
_WIDTHS: Final = {
    type_: width
    for width, types in {0: b"V", 1: b"tbB", 2: b"suU", 4: b"Iif", 5: b"D", 8: b"lLdT"}.items()
    for type_ in types
}
"""Bytes of the value of each other type."""
_length = struct.Struct(">I")


class HeaderReader:
    """Decodes the headers with the given names; all others are left out."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.encode(): name for name in names}

    def read(self, raw: bytes) -> dict[str, Any]:
        """Return the headers in a table.

        Args:
            raw: the encoded table, with its length. Fields after one that cannot be read are left out, and so are
                headers with an impossible value: no header is important enough to stop consuming.
        """
        headers: dict[str, Any] = {}
        position, end = _length.size, len(raw)
        while position < end:
            name_end = position + 1 + raw[position]
            if name_end >= end:
                break
            name = self._names.get(raw[position + 1 : name_end])
            type_ = raw[name_end]
            if type_ in _SIZED and name_end + 5 <= end:
                position = name_end + 5 + _length.unpack_from(raw, name_end + 1)[0]
            elif type_ in _WIDTHS:
                position = name_end + 1 + _WIDTHS[type_]
            else:
                break
            if name is None or position > end or (type_ in _NESTED and position - name_end > _MAX_VALUE):
                continue
            with suppress(Exception):  # producers send tables nested too deeply, impossible dates, and more
                headers[name] = pamqp.decode.embedded_value(raw[name_end:position])[1]
        return headers
