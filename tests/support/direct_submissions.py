"""What the tests of a whole worker share: submissions straight to its queue."""

import json
from typing import Any, Final

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.domain import topology
from ingest.domain.messages import Message, PublishOutcome

TASK: Final[dict[str, Any]] = {
    "type": "sentiment",
    "data_url": "https://a.example/x",
    "label_spec": {"question": "q?", "options": ["a", "b"]},
}


async def submit(broker: EmbeddedBroker, numbers: range) -> None:
    """One task a number, in one publish, under the message_id `m<number>`."""
    publisher = await broker.publisher()
    body = json.dumps(TASK).encode()
    key = "task.submitted.c"
    sent = [Message(exchange=topology.SUBMISSIONS, routing_key=key, body=body, message_id=f"m{i}") for i in numbers]
    assert set(await publisher.publish(sent)) == {PublishOutcome.CONFIRMED}
