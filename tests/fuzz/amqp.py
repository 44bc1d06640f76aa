"""Hostile AMQP messages of a user with a producer's permissions; client libraries would refuse to send most of them."""

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
    """Publishes with confirms as the user `acme`.

    `confirmed` and `nacked` count the broker's answers. `ids` are the task ids that the worker must accept.
    """

    def __init__(self, url: str, seed: int, large: float) -> None:
        self._connection = Connection(URL(url), "fuzz", 30, None)
        self._seed = seed
        self._large = large
        self._free_slots = asyncio.Semaphore(_WINDOW)
        self._unconfirmed: set[int] = set()
        self._sent = 0
        self.confirmed = 0
        self.nacked = 0
        self.ids: set[str] = set()

    async def send(self, numbers: range) -> None:
        """Publish one message for each number, and wait until all are confirmed or nacked."""
        if self._sent == 0:
            await self._connection.connect()
            self._channel = await self._connection.channel(confirms=True)
            self._connection.sinks[self._channel.number] = self
        for number in numbers:
            await asyncio.wait_for(self._free_slots.acquire(), 120)
            self._sent += 1
            self._unconfirmed.add(self._sent)
            key = f"{self._seed}.{number}"
            self._connection.write(b"".join(self._message(random.Random(key), key)))
            await self._connection.drain()
        async with asyncio.timeout(120):
            while self._unconfirmed:
                assert not self._connection.closed, "the broker closed the connection"
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        await self._connection.close()

    def method(self, method: int, data: bytes, start: int) -> bool:
        """Handle acks and nacks of publishes; leave all other methods to aiormq."""
        if method not in (codec.ACK, codec.NACK):
            return False
        tag, multiple = codec.read_confirm(data, start)
        settled = {sequence for sequence in self._unconfirmed if sequence <= tag} if multiple else {tag}
        assert settled <= self._unconfirmed, f"the broker answered {tag} twice"
        self._unconfirmed -= settled
        for _ in settled:
            self._free_slots.release()
        if method == codec.ACK:
            self.confirmed += len(settled)
        else:
            self.nacked += len(settled)
        return True

    def header(self, data: bytes, start: int) -> bool:
        return False

    def body(self, part: bytes) -> bool:
        return False

    def _message(self, rng: random.Random, key: str) -> Iterator[bytes]:
        chance = rng.random
        kind = "batch" if chance() < 0.25 else "task"
        if chance() < self._large:
            body, is_valid = bodies.huge(rng, key), False
        elif kind == "task" and chance() < 0.2:
            body, is_valid = bodies.valid(rng, key), True
        else:
            body, is_valid = (bodies.batch if kind == "batch" else bodies.single)(rng, key), False
        if is_valid:
            self.ids.add(keyed_id(SubmissionKind.TASK, CUSTOMER, key))
        properties = _VALID | {7: _short(key.encode())} if is_valid else _properties(rng, key.encode())
        yield from self._frames(f"{kind}.submitted.{CUSTOMER}".encode(), properties, body)

    def _frames(self, routing_key: bytes, properties: dict[int, bytes], body: bytes) -> Iterator[bytes]:
        number = self._channel.number
        publish = b"\0\x3c\0\x28\0\0" + _short(b"asg.submissions") + _short(routing_key) + b"\0"
        flags = sum(1 << bit for bit in properties)
        packed = b"".join(properties[bit] for bit in sorted(properties, reverse=True))
        header = b"\0\x3c\0\0" + struct.pack(">QH", len(body), flags) + packed
        size = self._connection.frame_max - codec.OVERHEAD
        parts = [(codec.METHOD, publish), (codec.HEADER, header)]
        parts += [(codec.BODY, body[at : at + size]) for at in range(0, len(body), size)]
        for kind, payload in parts:
            yield codec.frame_head.pack(kind, number, len(payload)) + payload + b"\xce"


def _short(raw: bytes) -> bytes:
    return bytes([len(raw)]) + raw


_VALID = {15: _short(_TYPES[0]), 12: b"\2"}
"""Properties of a valid message by the bit of their flag: content_type and delivery_mode."""


def _properties(rng: random.Random, key: bytes) -> dict[int, bytes]:
    """Return basic properties by the bit of their flag. Another user's user_id is left out: the broker refuses it."""
    choice = rng.choice
    makers: dict[int, tuple[float, Callable[[], bytes]]] = {
        15: (0.97, lambda: _short(choice((*[_TYPES[0]] * 40, *_TYPES)))),  # content_type
        14: (0.1, lambda: _short(choice(_SHORTS))),  # content_encoding
        13: (0.15, lambda: choice(_TABLES)),  # headers
        12: (0.9, lambda: bytes([choice((1, 2))])),  # delivery_mode; another value closes the channel
        10: (0.05, lambda: _short(choice(_SHORTS))),  # correlation_id
        7: (0.98, lambda: _short(choice((*[key] * 90, *_SHORTS)))),  # message_id
        6: (0.05, lambda: struct.pack(">Q", choice((0, 2**63, 2**64 - 1)))),  # timestamp
        5: (0.05, lambda: _short(choice((b"ingest.admitted.v1", b"ingest.bundle.v1", b"\xff", b"x" * 255)))),  # type
        4: (0.3, lambda: _short(CUSTOMER.encode())),  # user_id
    }
    return {bit: make() for bit, (probability, make) in makers.items() if rng.random() < probability}
