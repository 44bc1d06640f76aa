"""Decodes a file. Bytes that are not valid become a mark, so that only their line is invalid."""

import codecs
import io
from typing import Final

UNDECODABLE: Final = "\udcff"
"""Stands for an invalid byte. No encoding decodes to it."""
MAX_SHOWN: Final = 1_000
"""Characters of an invalid line that a report shows."""


def decoded(file: io.BufferedReader, encoding: str | None, newline: str) -> io.TextIOWrapper:
    """Return the text of a file, without a byte order mark. The caller detaches it from the file.

    Args:
        file: the file.
        encoding: its encoding; None for UTF-8, or UTF-16 if it starts with the byte order mark of that.
        newline: as for `open`.
    """
    if encoding is None:
        is_utf16 = file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "utf-16" if is_utf16 else "utf-8"
    encoding = codecs.lookup(encoding).name
    return io.TextIOWrapper(file, "utf-8-sig" if encoding == "utf-8" else encoding, _MARK, newline)


def encoding_problem(line: str, encoding: str) -> str | None:
    """Return why a line is not text, as the end of a sentence; None if it is text."""
    if UNDECODABLE not in line and "\0" not in line:
        return None
    name = encoding.removesuffix("-sig").upper()
    return f"is not valid {name}: set --encoding to the encoding of the file, such as cp1252 or utf-16"


def shown(line: str) -> str:
    """Return the start of a line for a report."""
    return line[:MAX_SHOWN].replace(UNDECODABLE, "\ufffd").strip()


_MARK: Final = "asg_gateway.mark"


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return UNDECODABLE * (error.end - error.start), error.end


codecs.register_error(_MARK, _mark)
