"""The AsyncAPI document: valid, and made from the topology."""

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


def test_valid_by_the_official_schema() -> None:
    """The AsyncAPI Initiative's JSON Schema of 3.0.0, bindings included, has nothing to say."""
    assert [error.message for error in Draft7Validator(OFFICIAL).iter_errors(DOCUMENT)] == []


def test_the_official_schema_would_notice() -> None:
    """A wrong binding and a wrong action are found, so the test above can fail."""
    broken = json.loads(json.dumps(DOCUMENT))
    broken["channels"]["tasksAccepted"]["bindings"]["amqp"]["exchange"]["type"] = "quorum"
    broken["operations"]["send.tasksAccepted"]["action"] = "publish"
    assert len(list(Draft7Validator(OFFICIAL).iter_errors(broken))) >= 2


@pytest.mark.parametrize("name", MESSAGES)
def test_examples_are_valid(name: str) -> None:
    """Payloads and headers, by the message's own schemas."""
    message = MESSAGES[name]
    for shown in message.get("examples", []):
        assert problems(DOCUMENT, message["payload"], shown["payload"]) == []
        if "headers" in message:
            assert problems(DOCUMENT, message["headers"], shown.get("headers", {})) == []
    assert message.get("examples") or name in ("poisoned", "largeDeadLetter")


def test_every_exchange_and_every_queue_for_others_is_there() -> None:
    """All of the topology but the workers' own two queues, with its exact names."""
    bindings = [channel["bindings"]["amqp"] for channel in DOCUMENT["channels"].values()]
    exchanges = {each["exchange"]["name"] for each in bindings if each["is"] == "routingKey"}
    queues = {each["queue"]["name"] for each in bindings if each["is"] == "queue"}
    assert exchanges == set(topology.EXCHANGES)
    assert queues == {queue.name for queue in topology.QUEUES} - {topology.INGEST_TASKS, topology.INGEST_BATCHES}


@pytest.mark.parametrize(
    ("queue", "arriving"),
    [
        (topology.CONSENSUS_TASKS, {"taskAccepted"}),
        (topology.WEBHOOK_DISPATCH, {"taskAccepted", "batchAccepted"}),
        (topology.INGEST_DEAD, {"deadLetter", "largeDeadLetter", "poisoned"}),
    ],
)
def test_what_arrives_in_a_queue(queue: str, arriving: set[str]) -> None:
    """Worked out from the bindings."""
    assert set(DOCUMENT["channels"][queue]["messages"]) == arriving


def test_all_references_resolve() -> None:
    """Each $ref points at something in the document."""

    def walk(node: object) -> None:
        if isinstance(node, dict) and "$ref" in node:
            resolved(DOCUMENT, node)
        elif isinstance(node, dict | list):
            for each in node.values() if isinstance(node, dict) else node:
                walk(each)

    walk(DOCUMENT)


@pytest.mark.parametrize("name", SCHEMAS)
def test_standalone_schemas(name: str) -> None:
    """Each is a JSON Schema (2020-12) that is complete in itself."""
    schema = event_schema(name)
    Draft202012Validator.check_schema(schema)
    assert "#/components" not in json.dumps(schema)
