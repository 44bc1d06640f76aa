"""Hostile messages over AMQP, from a producer with the permissions of one, below what any client library would send."""

import asyncio
import random
import struct
from collections.abc import Callable, Iterator

from yarl import URL

from ingest.broker.rabbitmq.amqp import codec
from ingest.broker.rabbitmq.amqp.connection import Connection
from ingest.domain.identity import SubmissionKind, keyed_id
from tests.fuzz import bodies
from tests.fuzz.world import CUSTOMER

_SHORTS = (b"", b"\0", b"a\0b", b"\xff" * 255, b"\0" * 255, "ü".encode() * 127, b"x" * 255, b" ", b"ingest", b"*.#")
_TYPES = (b"application/json", b"application/json; charset=utf-8", b"text/plain", b"\xff\xfe", b"x" * 255, b"")
_WINDOW = 500


def _field(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + value


def _table(fields: bytes) -> bytes:
    return struct.pack(">I", len(fields)) + fields


def _nested(depth: int) -> bytes:
    table = _table(b"")
    for _ in range(depth):
        table = _table(_field(b"a", b"F" + table))
    return table


_TABLES = (
    _table(_field(b"x-delivery-count", b"l" + struct.pack(">q", 10**6))),
    _table(_field(b"x-delivery-count", b"S\0\0\0\x01x") + _field(b"x-acquired-count", b"t\x01")),
    _table(_field(b"traceparent", b"S\0\0\0\x02\xff\xfe") + _field(b"tracestate", b"V")),
    _table(_field(b"traceparent", b"I" + struct.pack(">i", -1))),
    _table(_field(b"x-death", b"S\0\0\0\x01x")),
    _table(_field(b"x-ingest-reason", b"S\0\0\0\x05quota")),
    _table(_field(b"x" * 255, b"x\0\0\0\x03\0\xff\0")),
    _table(_field(b"t", b"T" + b"\xff" * 8) + _field(b"d", b"D\xff\xff\xff\xff\xff") + _field(b"f", b"f\x3f\xc0\0\0")),
    _table(_field(b"", b"V") * 30),
    _table(_field(b"h", b"S" + _table(b"h" * 100_000))),
    _nested(30),
    _nested(1500),
)


class Producer:
    """Publishes as `acme` with confirms. `confirmed` messages are the broker's; `ids` must be accepted."""

    def __init__(self, url: str, seed: int, large: float) -> None:
        self._wire = Connection(URL(url), "fuzz", 30, None)
        self._seed = seed
        self._large = large
        self._free = asyncio.Semaphore(_WINDOW)
        self._open: dict[int, None] = {}
        self._sent = 0
        self.confirmed = 0
        self.nacked = 0
        self.ids: set[str] = set()
        self.lost: asyncio.Event = asyncio.Event()

    async def send(self, numbers: range) -> None:
        if self._sent == 0:
            await self._wire.connect()
            self._channel = await self._wire.channel(confirms=True)
            self._wire.sinks[self._channel.number] = self
        for number in numbers:
            await asyncio.wait_for(self._free.acquire(), 120)
            self._sent += 1
            self._open[self._sent] = None
            self._wire.write(b"".join(self._message(random.Random(f"{self._seed}.{number}"), f"{self._seed}.{number}")))
            await self._wire.drain()
        async with asyncio.timeout(120):
            while self._open:
                assert not self._wire.closed, "the broker has closed the connection"
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        await self._wire.close()

    def method(self, method: int, data: bytes, start: int) -> bool:
        """Confirms; anything else is aiormq's."""
        if method not in (codec.ACK, codec.NACK):
            return False
        tag, multiple = codec.read_confirm(data, start)
        done = [each for each in self._open if each <= tag] if multiple else [tag]
        for each in done:
            del self._open[each]
            self._free.release()
        if method == codec.ACK:
            self.confirmed += len(done)
        else:
            self.nacked += len(done)
        return True

    def header(self, data: bytes, start: int) -> bool:
        return False

    def body(self, part: bytes) -> bool:
        return False

    def _message(self, random_: random.Random, key: str) -> Iterator[bytes]:
        odd = random_.random
        kind = "batch" if odd() < 0.25 else "task"
        if odd() < self._large:
            body, plain = bodies.huge(random_, key), False
        elif kind == "task" and odd() < 0.2:
            body, plain = bodies.valid(random_, key), True
        else:
            body, plain = (bodies.batch if kind == "batch" else bodies.single)(random_, key), False
        if plain:
            self.ids.add(keyed_id(SubmissionKind.TASK, CUSTOMER, key))
        properties = _properties(random_, key.encode()) if not plain else _PLAIN | {7: _short(key.encode())}
        yield from self._frames(f"{kind}.submitted.{CUSTOMER}".encode(), properties, body)

    def _frames(self, routing_key: bytes, properties: dict[int, bytes], body: bytes) -> Iterator[bytes]:
        number = self._channel.number
        publish = b"\0\x3c\0\x28\0\0" + _short(b"asg.submissions") + _short(routing_key) + b"\0"
        flags = sum(1 << bit for bit in properties)
        packed = b"".join(properties[bit] for bit in sorted(properties, reverse=True))
        header = b"\0\x3c\0\0" + struct.pack(">QH", len(body), flags) + packed
        size = self._wire.frame_max - codec.OVERHEAD
        parts = [(codec.METHOD, publish), (codec.HEADER, header)]
        parts += [(codec.BODY, body[at : at + size]) for at in range(0, len(body), size)]
        for kind, payload in parts:
            yield codec.frame_head.pack(kind, number, len(payload)) + payload + b"\xce"


def _short(raw: bytes) -> bytes:
    return bytes([len(raw)]) + raw


_PLAIN = {15: _short(_TYPES[0]), 12: b"\2"}


def _properties(random_: random.Random, key: bytes) -> dict[int, bytes]:
    """Basic properties by their bit in the flags. A user_id of another would be refused by the broker itself."""
    choice = random_.choice
    makers: dict[int, tuple[float, Callable[[], bytes]]] = {
        15: (0.97, lambda: _short(choice((*[_TYPES[0]] * 40, *_TYPES)))),  # content_type
        14: (0.1, lambda: _short(choice(_SHORTS))),  # content_encoding
        13: (0.15, lambda: choice(_TABLES)),  # headers
        12: (
            0.9,
            lambda: bytes([choice((1, 2))]),
        ),  # delivery_mode; another ends one's channel
        10: (0.05, lambda: _short(choice(_SHORTS))),  # correlation_id
        7: (0.98, lambda: _short(choice((*[key] * 90, *_SHORTS)))),  # message_id
        6: (0.05, lambda: struct.pack(">Q", choice((0, 2**63, 2**64 - 1)))),  # timestamp
        5: (0.05, lambda: _short(choice((b"ingest.admitted.v1", b"\xff", b"x" * 255)))),  # type
        4: (0.3, lambda: _short(CUSTOMER.encode())),  # user_id
    }
    return {bit: make() for bit, (share, make) in makers.items() if random_.random() < share}
