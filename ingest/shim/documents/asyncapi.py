"""The exchange as an AsyncAPI 3.0 document, made from `domain.topology`.

Which message is in which queue is worked out from the bindings, so that it cannot be told otherwise here.
"""

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any, Final

import msgspec

from ingest import __version__
from ingest.domain import event_data, topology
from ingest.domain.errors import Reason
from ingest.domain.topology import DEAD, EVENTS, QUEUES, SUBMISSIONS, Queue
from ingest.domain.validation import TASK_TYPES, BatchBody, TaskBody
from ingest.shim.documents.examples import CUSTOMER
from ingest.shim.documents.messages import messages
from ingest.shim.documents.schemas import components, standalone

_BINDING: Final = "0.3.0"
_ABOUT: Final = """The RabbitMQ side of the ingestion of labelling tasks, as the service sees it: it *receives*
submissions and *sends* events. A producer does the opposite on the submission channels, a consumer on the others.

Events are CloudEvents 1.0 in structured JSON. They come at least once, always under the same `id`: drop repeats by it,
and ignore fields that you do not know. HTTP clients find their contract in the OpenAPI document."""
_PARAMETERS: Final[dict[str, Any]] = {
    "cust_id": {
        "description": "The customer, and its AMQP user: the broker refuses any other.",
        "examples": [CUSTOMER],
    },
    "type": {"description": "The task's type.", "enum": list(TASK_TYPES)},
    "webhook": {"description": "Whether there is a callback_url.", "enum": ["webhook", "none"]},
    "reason": {"description": "Why it was refused.", "enum": [str(reason) for reason in Reason]},
}
SCHEMAS: Final = {
    "task.accepted": event_data.TaskAccepted,
    "batch.accepted": event_data.BatchAccepted,
    "submission.duplicate": event_data.SubmissionDuplicate,
    "submission.rejected": event_data.SubmissionRejected,
    "dead-letter": event_data.DeadLetter,
}
"""Events by the first words of their routing keys, and what stands in `ingest.dead`."""


class _Route(msgspec.Struct, frozen=True):
    """Messages under one form of routing key. `mandatory` as the service publishes them; `large`: where it differs."""

    name: str
    exchange: str
    address: str
    message: str
    summary: str
    mandatory: bool = False
    large: str | None = None

    @property
    def messages(self) -> list[str]:
        return [self.message] if self.large is None else [self.message, self.large]

    def parameters(self) -> dict[str, Any]:
        return {name: about for name, about in _PARAMETERS.items() if f"{{{name}}}" in self.address}

    def routing_keys(self) -> Iterator[str]:
        """Every routing key, or one where there is no end of them."""
        about = self.parameters()
        for values in product(*(each.get("enum") or each["examples"] for each in about.values())):
            yield self.address.format(**dict(zip(about, values, strict=True)))


_ROUTES: Final = (
    _Route("taskSubmissions", SUBMISSIONS, "task.submitted.{cust_id}", "taskSubmission", "Submit a task."),
    _Route(
        "batchSubmissions", SUBMISSIONS, "batch.submitted.{cust_id}", "batchSubmission", "Submit up to 1,000 tasks."
    ),
    _Route("tasksAccepted", EVENTS, "task.accepted.{type}.{webhook}", "taskAccepted", "One a task.", mandatory=True),
    _Route(
        "batchesAccepted",
        EVENTS,
        "batch.accepted.{webhook}",
        "batchAccepted",
        "One a batch, after the events of its tasks. Mandatory only where there is a callback_url.",
    ),
    _Route(
        "duplicates", EVENTS, "submission.duplicate", "submissionDuplicate", "One a direct submission that is a repeat."
    ),
    _Route(
        "rejections", EVENTS, "submission.rejected", "submissionRejected", "One a direct submission that is refused."
    ),
    _Route(
        "refused",
        DEAD,
        "rejected.{reason}",
        "deadLetter",
        "One a submission that is refused.",
        mandatory=True,
        large="largeDeadLetter",
    ),
)
_USES: Final = {
    topology.CONSENSUS_TASKS: "Every accepted task, for consensus.",
    topology.WEBHOOK_DISPATCH: "Accepted tasks and batches with a callback_url, for webhook dispatch.",
    topology.INGEST_DEAD: "Submissions that were refused, or poisoned. `ingest dlq` shows and redrives them.",
}
"""The queues for others to consume; the rest are the workers' own."""


@cache
def asyncapi_document() -> dict[str, Any]:
    """The document, as JSON data."""
    shown = [queue for queue in QUEUES if queue.name in _USES]
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Ingestion of labelling tasks", "version": __version__, "description": _ABOUT},
        "defaultContentType": "application/json",
        "servers": {name: _server(name) for name in ("amqp", "amqps")},
        "channels": {
            **{route.name: _route_channel(route) for route in _ROUTES},
            **{queue.name: _queue_channel(queue) for queue in shown},
        },
        "operations": {
            **{_operation_id(route): _route_operation(route) for route in _ROUTES},
            **{f"fill.{queue.name}": _queue_operation(queue) for queue in shown},
        },
        "components": {
            "messages": messages(),
            "schemas": components(TaskBody, BatchBody, *SCHEMAS.values()),
            "securitySchemes": {
                "user": {"type": "userPassword", "description": "A producer's AMQP user is named as its cust_id."}
            },
        },
    }


def event_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of one of `SCHEMAS`, complete in itself."""
    return standalone(SCHEMAS[name])


def _server(protocol: str) -> dict[str, Any]:
    port = "5672" if protocol == "amqp" else "5671"
    return {
        "host": f"{{host}}:{port}",
        "protocol": protocol,
        "protocolVersion": "0.9.1",
        "description": "RabbitMQ, in the clear: for loopback and trusted networks." if port == "5672" else "RabbitMQ.",
        "variables": {"host": {"default": "localhost", "description": "As the operator of the service names it."}},
        "security": [{"$ref": "#/components/securitySchemes/user"}],
    }


def _route_channel(route: _Route) -> dict[str, Any]:
    parameters = route.parameters()
    return {
        "address": route.address,
        "summary": route.summary,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in route.messages},
        **({"parameters": parameters} if parameters else {}),
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {
                    "name": route.exchange,
                    "type": "topic",
                    "durable": True,
                    "autoDelete": False,
                    "vhost": "/",
                },
                "bindingVersion": _BINDING,
            }
        },
    }


def _queue_channel(queue: Queue) -> dict[str, Any]:
    return {
        "address": queue.name,
        "summary": _USES[queue.name],
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in arrivals(queue)},
        "bindings": {
            "amqp": {
                "is": "queue",
                "queue": {"name": queue.name, "durable": True, "exclusive": False, "autoDelete": False, "vhost": "/"},
                "bindingVersion": _BINDING,
                "x-queue-type": "quorum",
                "x-bound-to": {"exchange": queue.exchange, "routingKey": queue.binding},
            }
        },
    }


def arrivals(queue: Queue) -> list[str]:
    """The messages that reach a queue: those its binding matches, and what dies in queues that dead-letter to it."""
    names = [
        name
        for route in _ROUTES
        for name in route.messages
        if route.exchange == queue.exchange
        and any(topology.matches(queue.binding, key) for key in route.routing_keys())
    ]
    poisoned = any(other.dead_letter_exchange == queue.exchange for other in QUEUES)
    return [*names, "poisoned"] if poisoned else names


def _operation_id(route: _Route) -> str:
    return f"{'receive' if route.exchange == SUBMISSIONS else 'send'}.{route.name}"


def _route_operation(route: _Route) -> dict[str, Any]:
    receives = route.exchange == SUBMISSIONS
    how = {"ack": True} if receives else {"deliveryMode": 2, "mandatory": route.mandatory}
    return {
        "action": "receive" if receives else "send",
        "channel": {"$ref": f"#/channels/{route.name}"},
        "summary": route.summary,
        "messages": [{"$ref": f"#/channels/{route.name}/messages/{name}"} for name in route.messages],
        "bindings": {"amqp": {**how, "bindingVersion": _BINDING}},
    }


def _queue_operation(queue: Queue) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{queue.name}"},
        "summary": f"{_USES[queue.name]} A consumer receives them here, and acknowledges what it has finished.",
        "messages": [{"$ref": f"#/channels/{queue.name}/messages/{name}"} for name in arrivals(queue)],
        "bindings": {"amqp": {"deliveryMode": 2, "bindingVersion": _BINDING}},
    }
