"""Bodies that a hostile or broken client may send, generated from a seed."""

import json
import random
from collections.abc import Callable
from typing import Any, Final

TASK: Final[dict[str, Any]] = {
    "type": "text_classification",
    "data_url": "https://cdn.example.com/doc.txt?token=SECRET",
    "label_spec": {"question": "Category?", "options": ["invoice", "receipt"]},
}
_TEXTS: Final = (
    "",
    " ",
    "\0",
    "a\0b",
    "é",
    "\u202e",
    "\ufeff",
    "😀",
    "x" * 256,
    "x" * 5000,
    "'; --",
    "${jndi:x}",
    "../..",
)
_RAW: Final = (
    b"",
    b" ",
    b"{",
    b"null",
    b"[]",
    b'"x"',
    b"0",
    b"\xff\xfe{\0}\0",
    b"\xef\xbb\xbf{}",
    b"NaN",
    b"Infinity",
    b"-",
    b"1e999",
    b"9" * 5000,
    b'"\\ud800"',
    b'"\xed\xa0\x80"',
    b"[" * 100_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b"{}{}",
    b"{'a':1}",
    b'{"a":1,}',
    b"/**/{}",
)
_VALUES: Final = (
    b"NaN",
    b"-Infinity",
    b"1e400",
    b"1e-400",
    b"9" * 400,
    b"-0",
    b"3.0",
    b"2147483648",
    b"true",
    b"null",
    b'"\\ud800"',
    b'"\\udc00\\ud800"',
    b'"\\u0000"',
    b'"\xff"',
    b"[" * 200 + b"]" * 200,
    b'{"a":' * 40 + b"1" + b"}" * 40,
    b"{}",
    b"[]",
    b'""',
)


def single(rng: random.Random, key: str) -> bytes:
    """Return the body of a task, invalid in most cases. A valid one has the idempotency key `key`."""
    return rng.choices(_MAKERS, _WEIGHTS)[0](rng, key)


def batch(rng: random.Random, key: str) -> bytes:
    """Return the body of a batch, invalid in most cases. A valid one has the idempotency key `key`."""
    variant = rng.randrange(6)
    if variant == 0:
        return single(rng, key)
    count = rng.choice((0, 1, 2, 3, 5))
    items = [_task(f"{key}.{index % 2}") if rng.random() < 0.3 else json.dumps(TASK).encode() for index in range(count)]
    if variant == 1 and items:
        items[rng.randrange(count)] = single(rng, f"{key}.x")
    return b'{"tasks":[%b],"idempotency_key":%b}' % (b",".join(items), json.dumps(key).encode())


def _task(key: str, **changes: object) -> bytes:
    return json.dumps(TASK | {"idempotency_key": key} | changes).encode()


def valid(rng: random.Random, key: str) -> bytes:
    """Return a valid body with unusual values."""
    extra = {"hint": rng.choice(_TEXTS), "more": [None, {"a": [1, 2.5]}]}
    return _task(key, label_spec=TASK["label_spec"] | extra, consensus_threshold=rng.randrange(2, 11))


def _raw(rng: random.Random, _: str) -> bytes:
    return rng.choice(_RAW)


def _noise(rng: random.Random, _: str) -> bytes:
    return rng.randbytes(rng.randrange(200))


def _damaged(rng: random.Random, key: str) -> bytes:
    """Return a valid body in which some bytes are replaced, removed or inserted."""
    body = bytearray(_task(key))
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(body))
        body[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(body)


def _replaced_value(rng: random.Random, key: str) -> bytes:
    """Return a valid body in which JSON or the contract does not allow one value."""
    task = TASK | {"idempotency_key": key, "consensus_threshold": 3, "callback_url": "https://other.example/hook"}
    name = rng.choice(tuple(task))
    if name != "callback_url":
        del task["callback_url"]
    task[name] = "@@"
    value = rng.choice((*_VALUES, *[json.dumps(text).encode() for text in _TEXTS]))
    return json.dumps(task).encode().replace(b'"@@"', value)


def _duplicate_name(rng: random.Random, key: str) -> bytes:
    name = rng.choice(("idempotency_key", "type", "cust_id", "data_url"))
    return _task(key)[:-1] + b',"%b":"a","%b" : "b"}' % (name.encode(), name.encode())


def _service_field(rng: random.Random, key: str) -> bytes:
    """Return a task with a field that only the service may set."""
    name = rng.choice(("cust_id", "task_id", "status", "created_at", "admitted", "user_id", "__proto__"))
    return _task(key, **{name: rng.choice(("other", "tsk_0", 1, None))})


def _long_url(rng: random.Random, key: str) -> bytes:
    return _task(key, data_url="https://a.example/" + "x" * rng.choice((2030, 2031, 60_000)))


def huge(rng: random.Random, key: str) -> bytes:
    """Return a body of about 8 MiB: a long string, a long array, zero bytes, or deeply nested arrays."""
    size = 8 * 1024 * 1024 - rng.choice((-1000, 0, 1000))
    filler = rng.choice((b'"%b"' % (b"x" * size), b"[" + b"0," * (size // 2) + b"0]", b"\0" * size, b"[" * size))
    return _task(key)[:-1] + b',"label":%b}' % filler


Maker = Callable[[random.Random, str], bytes]
_WEIGHTED: Final[tuple[tuple[Maker, int], ...]] = (
    (valid, 20),
    (_raw, 10),
    (_noise, 10),
    (_damaged, 20),
    (_replaced_value, 25),
    (_duplicate_name, 5),
    (_service_field, 8),
    (_long_url, 2),
)
_MAKERS: Final = [maker for maker, _ in _WEIGHTED]
_WEIGHTS: Final = [weight for _, weight in _WEIGHTED]
