"""The SQL of the embedded queues. A delivered message is marked, so that a crash counts as a failed delivery."""

import sqlite3
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import msgspec

from ingest.domain import topology
from ingest.domain.messages import Delivery, Message

MIGRATIONS: Final = (
    (
        """CREATE TABLE message (id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, routing_key TEXT NOT NULL,
             body BLOB NOT NULL, message_id TEXT NOT NULL, content_type TEXT NOT NULL, type TEXT NOT NULL,
             user TEXT NOT NULL, headers TEXT NOT NULL, count INTEGER NOT NULL DEFAULT 0,
             delivered INTEGER NOT NULL DEFAULT 0)""",
        "CREATE INDEX message_next ON message (queue, delivered, id)",
    ),
    ("ALTER TABLE message ADD COLUMN timestamp INTEGER",),
)
_QUEUES: Final = {queue.name: queue for queue in topology.QUEUES}

Row = tuple[str, str, bytes, str, str, str, str, str, int | None]
Taken = tuple[int, str, bytes, str, str, str, str, str, int | None, int]


@lru_cache(maxsize=4096)
def routes(exchange: str, routing_key: str) -> tuple[str, ...]:
    """Return the queues that a message is routed to."""
    return tuple(topology.routes(exchange, routing_key))


def row(queue: str, message: Message, user: str) -> Row:
    """Return the row of a message in one queue."""
    headers = msgspec.json.encode(message.headers).decode()
    return (
        queue,
        message.routing_key,
        message.body,
        message.message_id,
        message.content_type,
        message.type,
        user,
        headers,
        message.timestamp,
    )


def insert(db: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Append rows to their queues."""
    sql = """INSERT INTO message (queue, routing_key, body, message_id, content_type, type, user, headers, timestamp)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
    db.executemany(sql, rows)


def take(db: sqlite3.Connection, queue: str, limit: int) -> list[Taken]:
    """Mark the oldest undelivered messages, at most `limit`, as delivered, and return them."""
    sql = """SELECT id, routing_key, body, message_id, content_type, type, user, headers, timestamp, count
             FROM message WHERE queue = ? AND delivered = 0 ORDER BY id LIMIT ?"""
    taken: list[Taken] = db.execute(sql, (queue, limit)).fetchall()
    db.executemany("UPDATE message SET delivered = 1 WHERE id = ?", [(row[0],) for row in taken])
    return taken


def delivery(
    queue: str,
    id_: int,
    routing_key: str,
    body: bytes,
    message_id: str,
    content_type: str,
    type_: str,
    user: str,
    headers: str,
    timestamp: int | None,
    count: int,
) -> Delivery:
    """Return the delivery of a message that was taken or read."""
    decoded = msgspec.json.decode(headers)
    return Delivery(
        body=body,
        queue=queue,
        routing_key=routing_key,
        message_id=message_id or None,
        content_type=content_type or None,
        user_id=user,
        type=type_ or None,
        headers=decoded | {"x-delivery-count": count} if count else decoded,
        redelivered=count > 0,
        deliveries=count,
        token=id_,
        timestamp=timestamp,
        deaths_checked=True,
        properties_size=len(headers),
    )


def read_after(db: sqlite3.Connection, queue: str, last: int, limit: int, most: int) -> list[Taken]:
    """Return messages after the one with id `last`, without marking them.

    At most `limit`, and none after the one that brings their bodies to `most` bytes.
    """
    sql = """SELECT id, routing_key, body, message_id, content_type, type, user, headers, timestamp, count
             FROM message WHERE queue = ? AND id > ? ORDER BY id LIMIT ?"""
    rows: list[Taken] = []
    size = 0
    for row in db.execute(sql, (queue, last, limit)):
        rows.append(row)
        size += len(row[2])
        if size >= most:
            break
    return rows


def depths(db: sqlite3.Connection) -> dict[str, tuple[int, int]]:
    """Return, by queue, the number of messages that are ready, and that are delivered but not acknowledged."""
    empty = {queue.name: (0, 0) for queue in topology.QUEUES}
    sql = "SELECT queue, count(*) - sum(delivered), sum(delivered) FROM message GROUP BY queue"
    return empty | {queue: (ready, unacked) for queue, ready, unacked in db.execute(sql).fetchall()}


def size(db: sqlite3.Connection, queue: str) -> int:
    """Return the bytes of bodies and headers in a queue."""
    sql = "SELECT coalesce(sum(length(body) + length(headers)), 0) FROM message WHERE queue = ?"
    (total,) = db.execute(sql, (queue,)).fetchone()
    return int(total)


def oldest(db: sqlite3.Connection) -> dict[str, int]:
    """Return, by queue, the timestamp in Unix seconds of the first message that is ready, if it has one."""
    sql = """SELECT queue, timestamp FROM message WHERE timestamp IS NOT NULL
             AND id IN (SELECT min(id) FROM message WHERE delivered = 0 GROUP BY queue)"""
    return dict(db.execute(sql).fetchall())


def delete(db: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Delete the messages with these row ids; ids that do not exist are ignored."""
    db.executemany("DELETE FROM message WHERE id = ?", [(id_,) for id_ in ids])


def requeue(db: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Count a failed delivery; make the message available again, or dead-letter it if the limit is exceeded."""
    for id_ in ids:
        sql = "UPDATE message SET delivered = 0, count = count + 1 WHERE id = ? RETURNING queue, count"
        for queue, count in db.execute(sql, (id_,)).fetchall():
            if count > _QUEUES[queue].delivery_limit:
                dead_letter(db, [id_], "delivery_limit")


def dead_letter(db: sqlite3.Connection, ids: Sequence[int], reason: str) -> None:
    """Dead-letter messages as RabbitMQ does. In a queue without a dead-letter exchange they are deleted."""
    sql = """SELECT queue, routing_key, body, message_id, content_type, type, user, headers, timestamp
             FROM message WHERE id = ?"""
    for id_ in ids:
        for queue, routing_key, body, message_id, content_type, type_, user, headers, timestamp in db.execute(
            sql, (id_,)
        ).fetchall():
            exchange = _QUEUES[queue].dead_letter_exchange
            death = {
                "x-death": [{"queue": queue, "reason": reason, "time": int(time.time())}],
                "x-first-death-queue": queue,
                "x-first-death-reason": reason,
            }
            marked = msgspec.json.encode(death | msgspec.json.decode(headers)).decode()
            targets = routes(exchange, routing_key) if exchange else ()
            rest = (routing_key, body, message_id, content_type, type_, user, marked, timestamp)
            insert(db, [(to, *rest) for to in targets])
    delete(db, ids)


def recover(db: sqlite3.Connection) -> None:
    """At the start: make messages available again that were delivered and never acknowledged."""
    ids = [id_ for (id_,) in db.execute("SELECT id FROM message WHERE delivered = 1 ORDER BY id").fetchall()]
    requeue(db, ids)
