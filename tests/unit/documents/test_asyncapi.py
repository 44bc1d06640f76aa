"""The AsyncAPI document: it is valid, and its channels are those of the topology."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from ingest.domain import topology
from ingest.shim import SCHEMAS, asyncapi_document, event_schema
from tests.unit.documents.schemas import problems, resolved

DOCUMENT = asyncapi_document()
MESSAGES: dict[str, Any] = DOCUMENT["components"]["messages"]
OFFICIAL = json.loads((Path(__file__).parent / "official" / "asyncapi-3.0.0.json").read_text())


def test_document_is_valid_by_the_official_schema() -> None:
    """The schema of AsyncAPI 3.0.0 includes the bindings."""
    assert [error.message for error in Draft7Validator(OFFICIAL).iter_errors(DOCUMENT)] == []


def test_official_schema_rejects_a_wrong_binding_and_a_wrong_action() -> None:
    """So the test above can fail."""
    broken = json.loads(json.dumps(DOCUMENT))
    broken["channels"]["tasksAccepted"]["bindings"]["amqp"]["exchange"]["type"] = "quorum"
    broken["operations"]["send.tasksAccepted"]["action"] = "publish"
    assert len(list(Draft7Validator(OFFICIAL).iter_errors(broken))) >= 2


@pytest.mark.parametrize("name", MESSAGES)
def test_examples_of_a_message_are_valid_by_its_schemas(name: str) -> None:
    """Only `poisoned` and `largeDeadLetter` have no examples."""
    message = MESSAGES[name]
    for example in message.get("examples", []):
        assert problems(DOCUMENT, message["payload"], example["payload"]) == []
        if "headers" in message:
            assert problems(DOCUMENT, message["headers"], example.get("headers", {})) == []
    assert message.get("examples") or name in ("poisoned", "largeDeadLetter")


def test_document_has_every_exchange_and_every_queue_except_those_of_the_workers() -> None:
    bindings = [channel["bindings"]["amqp"] for channel in DOCUMENT["channels"].values()]
    exchanges = {binding["exchange"]["name"] for binding in bindings if binding["is"] == "routingKey"}
    queues = {binding["queue"]["name"] for binding in bindings if binding["is"] == "queue"}
    assert exchanges == set(topology.EXCHANGES) - {topology.UNMATCHED}
    feedback = topology.feedback_queue("{cust_id}").name
    assert queues == {*[queue.name for queue in topology.QUEUES], feedback} - {*topology.INGEST_QUEUES}


@pytest.mark.parametrize(
    ("queue", "messages"),
    [
        (topology.CONSENSUS_TASKS, {"taskAccepted"}),
        (topology.WEBHOOK_DISPATCH, {"taskAccepted", "batchAccepted"}),
        ("feedback", {"submissionDuplicate", "submissionRejected"}),
        (topology.INGEST_DEAD, {"deadLetter", "largeDeadLetter", "trimmedDeadLetter", "poisoned"}),
    ],
)
def test_queue_channel_lists_its_messages(queue: str, messages: set[str]) -> None:
    assert set(DOCUMENT["channels"][queue]["messages"]) == messages


def test_every_reference_resolves() -> None:

    def walk(node: object) -> None:
        if isinstance(node, dict) and "$ref" in node:
            resolved(DOCUMENT, node)
        elif isinstance(node, dict | list):
            for child in node.values() if isinstance(node, dict) else node:
                walk(child)

    walk(DOCUMENT)


@pytest.mark.parametrize("name", SCHEMAS)
def test_standalone_schema_is_valid_and_does_not_refer_to_the_document(name: str) -> None:
    schema = event_schema(name)
    Draft202012Validator.check_schema(schema)
    assert "#/components" not in json.dumps(schema)
