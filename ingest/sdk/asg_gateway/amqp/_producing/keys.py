"""Idempotency keys as AMQP carries them: the key is the property `message_id`."""

import re
from typing import Final

MAX_BYTES: Final = 255
"""AMQP's limit for `message_id`."""
# The service's rule: no control characters, no line ends, no invisible characters, none that change the direction.
_UNPRINTABLE: Final = re.compile(
    r"[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\uffff\ud800-\udfff]"
)


def size_of(key: str) -> int:
    """Return the bytes of a key in UTF-8, which AMQP limits."""
    return len(key.encode())


def checked_key(key: str) -> str:
    """Return the key. Raises TypeError or ValueError if it cannot be an idempotency key over AMQP."""
    if not isinstance(key, str):
        raise TypeError(f"key must be a string, not {type(key).__name__}")
    if not key.isascii() or not key.isprintable():
        if unprintable := _UNPRINTABLE.search(key):
            raise ValueError(f"key must have printable characters only, not U+{ord(unprintable[0]):04X}")
        if (size := size_of(key)) > MAX_BYTES:
            raise ValueError(f"key has {size} bytes in UTF-8, at most {MAX_BYTES} are allowed")
    if not 0 < len(key) <= MAX_BYTES:
        raise ValueError(f"key has {len(key)} characters, 1 to {MAX_BYTES} are allowed")
    return key
