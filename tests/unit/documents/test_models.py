"""The published documents, compared with the code: schemas, limits, errors, reasons, names and version."""

import json
from typing import Any

import pytest

from ingest import __version__
from ingest.domain import event_data, redrives, topology
from ingest.domain.content import content_problem
from ingest.domain.dead_letters import ENVELOPE_HEADER, MAX_ENVELOPED, REASON_HEADER, TIME_HEADER
from ingest.domain.errors import Reason
from ingest.domain.identity import SubmissionKind
from ingest.domain.parsing import MAX_STRUCTURE
from ingest.domain.rates import RateLimit
from ingest.domain.submissions import MAX_BODY, MAX_TASK
from ingest.domain.validation import MAX_BATCH, TASK_TYPES, BatchBody, TaskBody
from ingest.shim import SCHEMAS, asyncapi_document, event_schema, openapi_document, problems
from ingest.shim.http.framing import UNSUPPORTED_VERSION
from ingest.shim.http.protocol import (
    BODY_MAX_LAG,
    BODY_MIN_RATE,
    BODY_TIMEOUT,
    BODY_TOO_SLOW,
    HEAD_TIMEOUT,
    HEAD_TOO_LARGE,
    HEAD_TOO_SLOW,
)
from ingest.shim.problems import Problem
from tests.unit.documents.models import components, standalone

OPENAPI = openapi_document()
ASYNCAPI = asyncapi_document()
EVENTS = {
    "task.accepted": event_data.TaskAccepted,
    "batch.accepted": event_data.BatchAccepted,
    "submission.duplicate": event_data.SubmissionDuplicate,
    "submission.rejected": event_data.SubmissionRejected,
    "dead-letter": event_data.DeadLetter,
    "trimmed-dead-letter": event_data.TrimmedDeadLetter,
}
ERRORS: dict[int, list[Problem]] = {
    401: [problems.missing_key(), problems.unknown_key()],
    403: [problems.quota_exhausted(), problems.customer_disabled()],
    408: [Problem(408, HEAD_TOO_SLOW), Problem(408, BODY_TOO_SLOW)],
    409: [problems.contended()],
    413: [problems.too_large()],
    415: [
        problems.unsupported_content(str(content_problem("text/plain", ""))),
        problems.unsupported_content(str(content_problem("application/json", "gzip"))),
    ],
    422: [problems.key_conflict()],
    429: [problems.rate_limited(RateLimit(50, 1), 1, ()), problems.rate_limited(RateLimit(600, 60), 42, ())],
    431: [Problem(431, HEAD_TOO_LARGE)],
    500: [problems.internal()],
    503: [
        problems.broker_unavailable(),
        problems.store_unavailable(),
        problems.overloaded(),
        problems.at_capacity(),
        problems.deadline_exceeded(),
        problems.parser_failed(),
    ],
    505: [Problem(505, UNSUPPORTED_VERSION)],
}


def test_documents_have_the_version_of_the_service() -> None:
    assert OPENAPI["info"]["version"] == ASYNCAPI["info"]["version"] == __version__


@pytest.mark.parametrize(
    ("document", "models"),
    [
        (OPENAPI, (TaskBody, BatchBody, event_data.TaskAccepted, event_data.BatchAccepted)),
        (ASYNCAPI, (TaskBody, BatchBody, *EVENTS.values())),
    ],
    ids=["openapi", "asyncapi"],
)
def test_schemas_in_the_documents_equal_the_models(document: dict[str, Any], models: tuple[Any, ...]) -> None:
    published = document["components"]["schemas"]
    for name, schema in components(*models).items():
        assert published[name] == schema, name


def test_every_schema_name_has_a_model() -> None:
    assert set(SCHEMAS) == set(EVENTS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_standalone_schema_equals_its_model(name: str) -> None:
    assert event_schema(name) == standalone(EVENTS[name])


@pytest.mark.parametrize("status", ERRORS)
def test_error_examples_equal_the_errors_of_the_service(status: int) -> None:
    media_type = OPENAPI["components"]["responses"][str(status)]["content"]["application/json"]
    published = [example["value"] for example in media_type["examples"].values()]
    expected = [json.loads(problem.body()) for problem in ERRORS[status]]
    assert sorted(published, key=str) == sorted(expected, key=str)


def test_documents_name_the_limits_of_the_code() -> None:
    text = OPENAPI["info"]["description"]
    assert f"{MAX_BODY} bytes" in text
    assert f"{MAX_BATCH:,} at once" in text
    messages = ASYNCAPI["components"]["messages"]
    values = f"{MAX_STRUCTURE[SubmissionKind.BATCH]:,} commas, colons and opening brackets"
    assert values in OPENAPI["components"]["responses"]["413"]["description"]
    assert values in messages["batchSubmission"]["description"]
    for limit in (MAX_BODY, MAX_TASK):
        assert f"{limit} bytes" in OPENAPI["components"]["responses"]["413"]["description"]
        assert f"{limit} bytes" in messages["taskSubmission"]["description"]
    assert f"{MAX_ENVELOPED} bytes" in messages["largeDeadLetter"]["summary"]
    too_slow = OPENAPI["components"]["responses"]["408"]["description"]
    for seconds in (HEAD_TIMEOUT, BODY_TIMEOUT, BODY_MAX_LAG):
        assert f"{seconds:g} s" in too_slow
    assert f"{BODY_MIN_RATE} bytes per second" in too_slow


def test_channel_parameters_list_every_task_type_and_reason() -> None:
    channels = ASYNCAPI["channels"]
    assert channels["tasksAccepted"]["parameters"]["type"]["enum"] == list(TASK_TYPES)
    assert channels["refused"]["parameters"]["reason"]["enum"] == [str(reason) for reason in Reason]


def test_dead_letter_headers_have_the_names_of_the_code() -> None:
    messages = ASYNCAPI["components"]["messages"]
    small, large = messages["deadLetter"]["headers"], messages["largeDeadLetter"]["headers"]
    common = {REASON_HEADER, TIME_HEADER, *redrives.HEADERS}
    assert set(small["properties"]) == common
    assert set(large["properties"]) == common | {ENVELOPE_HEADER}
    for headers in (small, large):
        assert headers["properties"][REASON_HEADER]["enum"] == [str(reason) for reason in Reason]
    assert set(messages["trimmedDeadLetter"]["headers"]["properties"]) == common


@pytest.mark.parametrize("queue", [queue for queue in topology.QUEUES if queue.name not in topology.INGEST_QUEUES])
def test_queue_channel_lists_the_messages_that_its_binding_selects(queue: topology.Queue) -> None:
    selected = set()
    for channel in ASYNCAPI["channels"].values():
        binding = channel["bindings"]["amqp"]
        if binding["is"] != "routingKey" or binding["exchange"]["name"] != queue.exchange:
            continue
        keys = [channel["address"]]
        for name, parameter in channel.get("parameters", {}).items():
            values = parameter.get("enum", ["acme"])
            keys = [key.replace("{" + name + "}", value) for key in keys for value in values]
        if any(topology.matches(queue.binding, key) for key in keys):
            selected |= set(channel["messages"])
    published = set(ASYNCAPI["channels"][queue.name]["messages"])
    assert published - {"poisoned"} == selected - {"poisoned"}
