"""Measures the broker's limit: a blocking socket, frames encoded in advance, and a parser that reads only tags.

`publish` sends events and counts confirms. `relay` consumes single submissions, publishes an event for each and acks it
after the event is confirmed. Both run until they are terminated, on as many connections as the second argument says.
The events are byte for byte the same as the worker's.
"""

import os
import socket
import sys
import threading
from typing import Any, Final

from pamqp import commands, frame
from pamqp.header import ProtocolHeader
from yarl import URL

from ingest.broker.rabbitmq.amqp import codec
from ingest.domain.events import task_accepted
from ingest.domain.submissions import batch_submission
from tests.bench.harness import TASK

WINDOW: Final = 4000
BLOCK: Final = 1000
_READ_SIZE: Final = 1 << 20
_TIME: Final = 1_775_736_000_000


class Raw:
    """A connection with one channel in confirm mode."""

    def __init__(self, url: str) -> None:
        address = URL(url)
        self._socket = socket.create_connection((address.host, address.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tail = b""
        self._socket.sendall(ProtocolHeader().marshal())
        self._expect("Connection.Start")
        login = f"\0{address.user}\0{address.password}"
        self._send(0, commands.Connection.StartOk({}, "PLAIN", login, "en_US"))
        self._expect("Connection.Tune")
        self._send(0, commands.Connection.TuneOk(2047, 131_072, 0))
        self._call(0, commands.Connection.Open(address.path.strip("/") or "/"), "Connection.OpenOk")
        self._call(1, commands.Channel.Open(), "Channel.OpenOk")
        self._call(1, commands.Confirm.Select(), "Confirm.SelectOk")
        encoder = codec.PublishEncoder(1, 131_072, address.user)
        batch = batch_submission({"tasks": [TASK] * BLOCK}, "c", frozenset())
        events = [task_accepted(task, "c", _TIME, (batch.id, i), key=None) for i, task in enumerate(batch.tasks)]
        self.events = [encoder.encode(event, i) for i, event in enumerate(events, 1)]

    def consume(self, prefetch: int) -> None:
        self._call(1, commands.Basic.Qos(prefetch_count=prefetch), "Basic.QosOk")
        self._send(1, commands.Basic.Consume(queue="ingest.tasks"))

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self) -> list[tuple[int, int, bool]]:
        """Wait for data, and return (method, tag, multiple) of each delivery and confirm in it."""
        data = self._tail + self._socket.recv(_READ_SIZE)
        received: list[tuple[int, int, bool]] = []
        position, end = 0, len(data)
        while end - position >= codec.OVERHEAD:
            kind, _, size = codec.frame_head.unpack_from(data, position)
            if position + size + codec.OVERHEAD > end:
                break
            if kind == codec.METHOD:
                received += self._method(data, position + 7)
            position += size + codec.OVERHEAD
        self._tail = data[position:]
        return received

    @staticmethod
    def _method(data: bytes, start: int) -> list[tuple[int, int, bool]]:
        (method,) = codec.method_id.unpack_from(data, start)
        if method == codec.DELIVER:
            return [(method, codec.read_deliver(data, start + 4)[0], False)]
        if method in (codec.ACK, codec.NACK):
            assert method == codec.ACK
            return [(method, *codec.read_confirm(data, start + 4))]
        return []

    def _call(self, channel: int, command: Any, answer: str) -> None:
        self._send(channel, command)
        self._expect(answer)

    def _send(self, channel: int, command: Any) -> None:
        self._socket.sendall(frame.marshal(command, channel))

    def _expect(self, name: str) -> None:
        buffer = b""
        while True:
            buffer += self._socket.recv(65_536)
            consumed, _, command = frame.unmarshal(buffer)
            if consumed:
                assert command.name == name, f"{command.name} instead of {name}"
                assert consumed == len(buffer)
                return


class Confirms:
    """Counts publishes. Every publish up to number `confirmed` is confirmed."""

    def __init__(self) -> None:
        self.sent = 0
        self.confirmed = 0
        self._out_of_order: set[int] = set()

    def confirm(self, tag: int, multiple: bool) -> None:
        if multiple:
            self.confirmed = max(self.confirmed, tag)
        else:
            self._out_of_order.add(tag)
        while self.confirmed + 1 in self._out_of_order:
            self._out_of_order.remove(self.confirmed + 1)
            self.confirmed += 1


def publish(raw: Raw) -> None:
    """Publish events, of which at most WINDOW are unconfirmed."""
    block = b"".join(raw.events)
    confirms = Confirms()
    while True:
        while confirms.sent - confirms.confirmed <= WINDOW - BLOCK:
            raw.write(block)
            confirms.sent += BLOCK
        for _, tag, multiple in raw.read():
            confirms.confirm(tag, multiple)


def relay(raw: Raw) -> None:
    """Publish the n-th event for the n-th delivery, and ack the delivery after the event is confirmed."""
    confirms = Confirms()
    acked = 0
    raw.consume(WINDOW)
    while True:
        received = raw.read()
        deliveries = sum(method == codec.DELIVER for method, _, _ in received)
        for method, tag, multiple in received:
            if method == codec.ACK:
                confirms.confirm(tag, multiple)
        frames = [raw.events[(confirms.sent + i) % BLOCK] for i in range(deliveries)]
        confirms.sent += deliveries
        if confirms.confirmed > acked:
            acked = confirms.confirmed
            frames.append(codec.ack(1, acked, multiple=True))
        raw.write(b"".join(frames))


if __name__ == "__main__":
    job = {"publish": publish, "relay": relay}[sys.argv[1]]
    for _ in range(int(sys.argv[2])):
        threading.Thread(target=job, args=(Raw(os.environ["BENCH_AMQP"]),)).start()
