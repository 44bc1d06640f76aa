"""Bodies that a hostile or broken client sends, made from a seed."""

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


def single(random_: random.Random, key: str) -> bytes:
    """The body of a task, wrong in most cases; what is not wrong has the key `key`."""
    return random_.choices(_MAKERS, _WEIGHTS)[0](random_, key)


def batch(random_: random.Random, key: str) -> bytes:
    """The body of a batch likewise."""
    how = random_.randrange(6)
    if how == 0:
        return single(random_, key)
    count = random_.choice((0, 1, 2, 3, 5))
    items = [
        _task(f"{key}.{index % 2}") if random_.random() < 0.3 else json.dumps(TASK).encode() for index in range(count)
    ]
    if how == 1 and items:
        items[random_.randrange(count)] = single(random_, f"{key}.x")
    return b'{"tasks":[%b],"idempotency_key":%b}' % (b",".join(items), json.dumps(key).encode())


def _task(key: str, **changes: object) -> bytes:
    return json.dumps(TASK | {"idempotency_key": key} | changes).encode()


def valid(random_: random.Random, key: str) -> bytes:
    """A body that is right, in one of many ways."""
    extra = {"hint": random_.choice(_TEXTS), "more": [None, {"a": [1, 2.5]}]}
    return _task(key, label_spec=TASK["label_spec"] | extra, consensus_threshold=random_.randrange(2, 11))


def _raw(random_: random.Random, _: str) -> bytes:
    return random_.choice(_RAW)


def _noise(random_: random.Random, _: str) -> bytes:
    return random_.randbytes(random_.randrange(200))


def _flipped(random_: random.Random, key: str) -> bytes:
    """Some bytes of a valid body changed, taken away or doubled."""
    body = bytearray(_task(key))
    for _ in range(random_.randrange(1, 4)):
        at = random_.randrange(len(body))
        body[at : at + random_.randrange(3)] = random_.randbytes(random_.randrange(3))
    return bytes(body)


def _one_value(random_: random.Random, key: str) -> bytes:
    """One value of a valid body replaced by what JSON or the contract does not want there."""
    whole = TASK | {"idempotency_key": key, "consensus_threshold": 3, "callback_url": "https://other.example/hook"}
    name = random_.choice(tuple(whole))
    if name != "callback_url":
        del whole["callback_url"]
    whole[name] = "@@"
    value = random_.choice((*_VALUES, *[json.dumps(text).encode() for text in _TEXTS]))
    return json.dumps(whole).encode().replace(b'"@@"', value)


def _twice(random_: random.Random, key: str) -> bytes:
    name = random_.choice(("idempotency_key", "type", "cust_id", "data_url"))
    return _task(key)[:-1] + b',"%b":"a","%b" : "b"}' % (name.encode(), name.encode())


def _foreign(random_: random.Random, key: str) -> bytes:
    """Fields that only the service may decide."""
    name = random_.choice(("cust_id", "task_id", "status", "created_at", "admitted", "user_id", "__proto__"))
    return _task(key, **{name: random_.choice(("other", "tsk_0", 1, None))})


def _long(random_: random.Random, key: str) -> bytes:
    return _task(key, data_url="https://a.example/" + "x" * random_.choice((2030, 2031, 60_000)))


def huge(random_: random.Random, key: str) -> bytes:
    """8 MiB, give or take: of one string, of many names, of deep or wide arrays."""
    size = 8 * 1024 * 1024 - random_.choice((-1000, 0, 1000))
    filler = random_.choice((b'"%b"' % (b"x" * size), b"[" + b"0," * (size // 2) + b"0]", b"\0" * size, b"[" * size))
    return _task(key)[:-1] + b',"label":%b}' % filler


Maker = Callable[[random.Random, str], bytes]
_WEIGHTED: Final[tuple[tuple[Maker, int], ...]] = (
    (valid, 20),
    (_raw, 10),
    (_noise, 10),
    (_flipped, 20),
    (_one_value, 25),
    (_twice, 5),
    (_foreign, 8),
    (_long, 2),
)
_MAKERS: Final = [maker for maker, _ in _WEIGHTED]
_WEIGHTS: Final = [weight for _, weight in _WEIGHTED]
