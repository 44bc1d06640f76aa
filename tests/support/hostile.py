"""Bodies of at most 8 MiB that are expensive to decode or validate for their size."""

from collections.abc import Callable
from typing import Final

from ingest.domain.submissions import MAX_BODY

_TASK: Final = (
    '{"type":"sentiment","data_url":"https://a.example/x","label_spec":{"question":"q?","options":%s,"x":%s}}'
)


def task(extra: str, options: str = '["a","b"]') -> bytes:
    """Return a task with additional JSON in its label_spec."""
    return (_TASK % (options, extra)).encode()


def repeated(element: str, size: int = MAX_BODY) -> str:
    """Return an array of one element, with about `size` bytes."""
    return "[" + ",".join([element] * ((size - 300) // (len(element) + 1))) + "]"


def names(size: int = MAX_BODY) -> str:
    """Return an object with many names, with about `size` bytes."""
    return "{" + ",".join(f'"{number:07x}":1' for number in range((size - 300) // 12)) + "}"


def batch(item: bytes, count: int = 1000) -> bytes:
    """Return a batch of `count` equal items."""
    return b'{"tasks":[' + b",".join([item] * count) + b"]}"


TASKS: Final[dict[str, Callable[[], bytes]]] = {
    "numbers that are slow to parse": lambda: task(repeated("5e-324")),
    "numbers that grow": lambda: task(repeated("1e15")),
    "small numbers": lambda: task(repeated("1")),
    "empty arrays": lambda: task(repeated("[]")),
    "empty objects": lambda: task(repeated("{}")),
    "small objects": lambda: task(repeated('{"a":1}')),
    "arrays nested too deeply": lambda: task(repeated("[" * 900 + "]" * 900)),
    "objects nested deeply": lambda: task(repeated('{"a":' * 29 + "1" + "}" * 29)),
    "strings like the end of a name": lambda: task(repeated('":"')),
    "escapes like the end of a name": lambda: task('["' + '\\":' * ((MAX_BODY - 300) // 3) + '"]'),
    "escapes": lambda: task('"' + "\\n" * ((MAX_BODY - 300) // 2) + '"'),
    "many names": lambda: task(names()),
    "unknown fields": lambda: names().encode(),
    "wrong options": lambda: task("1", options=repeated("1")),
    "a repeated name at the end": lambda: task(repeated('{"a":1}').removesuffix("]") + ',{"a":1,"a":1}]'),
    "not JSON at the end": lambda: task(repeated("[]").removesuffix("]") + ",NaN]"),
    "control characters": lambda: b"\x01" * MAX_BODY,
}
"""Every one is refused."""

BATCHES: Final[dict[str, Callable[[], bytes]]] = {
    "too many items": lambda: b'{"tasks":' + repeated("{}").encode() + b"}",
    "too many values": lambda: batch(task(repeated("1", 8_000))),
    "items with unknown fields": lambda: batch(names(6_000).encode()),
    "items with wrong options": lambda: batch(task("1", options=repeated("1", 2_240))),
}
"""Every one is refused."""

LARGE_BATCHES: Final[dict[str, Callable[[], bytes]]] = {
    "1,000 tasks of 8 KiB text": lambda: batch(task('"' + "z" * 8_000 + '"')),
    "1,000 tasks with 300 arrays each": lambda: batch(task(repeated("[0]", 1_500))),
    "1,000 tasks with 970 slow numbers each": lambda: batch(task(repeated("5e-324", 7_090))),
    "1,000 tasks with 970 strings each": lambda: batch(task(repeated('":"', 4_180))),
}
"""Every one is valid."""
