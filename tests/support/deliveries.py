"""Deliveries as a broker hands them to a worker."""

import json
from typing import Any

from ingest.domain.admitted import Admitted, to_message
from ingest.domain.messages import JSON, Delivery, Message
from ingest.domain.topology import INGEST_BATCHES, INGEST_DEAD, INGEST_TASKS
from tests.support.tasks import TASK


def delivery(**changes: Any) -> Delivery:
    """A delivery to the queue for tasks, sent by the direct producer `acme`. Arguments replace its fields."""
    fields: dict[str, Any] = {
        "body": b"{}",
        "queue": INGEST_TASKS,
        "routing_key": "task.submitted.acme",
        "message_id": "m1",
        "content_type": JSON,
        "user_id": "acme",
        "type": None,
        "headers": {},
        "redelivered": False,
        "deliveries": 0,
        "token": None,
    }
    return Delivery(**(fields | changes))


def direct_delivery(message_id: str, body: object = TASK, *, cust_id: str = "c", **changes: Any) -> Delivery:
    """A delivery of a direct submission: a batch if the body has `tasks`, otherwise a task. Bytes are sent as is."""
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    is_batch = encoded.startswith(b'{"tasks"')
    fields: dict[str, Any] = {
        "body": encoded,
        "queue": INGEST_BATCHES if is_batch else INGEST_TASKS,
        "routing_key": f"{'batch' if is_batch else 'task'}.submitted.{cust_id}",
        "message_id": message_id,
        "user_id": cust_id,
    }
    return delivery(**(fields | changes))


def admitted_delivery(admitted: Admitted, *, user_id: str = "shim") -> Delivery:
    """A delivery of a submission that the shim admitted."""
    message = to_message(admitted)
    return delivery(
        body=message.body,
        queue=INGEST_BATCHES if message.routing_key.startswith("batch.") else INGEST_TASKS,
        routing_key=message.routing_key,
        message_id=message.message_id,
        user_id=user_id,
        type=message.type,
    )


def in_dead_queue(message: Message, user_id: str | None = "ingest", **changes: Any) -> Delivery:
    """A delivery from ingest.dead of a message that a user has published. Arguments replace its fields."""
    fields: dict[str, Any] = {
        "body": message.body,
        "queue": INGEST_DEAD,
        "routing_key": message.routing_key,
        "message_id": message.message_id,
        "user_id": user_id,
        "headers": message.headers,
    }
    return delivery(**(fields | changes))
