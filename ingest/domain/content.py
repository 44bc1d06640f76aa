"""The content types and encodings of submissions, for HTTP and AMQP."""

from email.message import Message
from functools import lru_cache
from typing import Final

from ingest.domain.messages import JSON

_UTF8: Final = ("utf-8", "utf8")
_ENCODINGS: Final = ("", "identity", *_UTF8)
"""Some AMQP libraries put the character set here."""


@lru_cache(maxsize=64)
def content_problem(
    content_type: str, content_encoding: str, type_name: str = "Content-Type", encoding_name: str = "Content-Encoding"
) -> str | None:
    """Return why a body cannot be JSON in UTF-8, as a sentence; None if it can.

    Other parameters than `charset` have no meaning (RFC 8259, section 11), and are ignored.

    Args:
        content_type: the value of the header or property.
        content_encoding: the same; empty if there is none.
        type_name: the name of the header or property, for the sentence.
        encoding_name: the same for the encoding.
    """
    header = Message()
    header["Content-Type"] = content_type
    charset = header.get_param("charset", "utf-8")
    if header.get_content_type() != JSON or not isinstance(charset, str) or charset.lower() not in _UTF8:
        return f"{type_name} must be {JSON} in UTF-8, it is {content_type[:100] or 'missing'}"
    if content_encoding.strip().lower() not in _ENCODINGS:
        return f"{encoding_name} must be left out, it is {content_encoding[:100]}: send the body uncompressed"
    return None
