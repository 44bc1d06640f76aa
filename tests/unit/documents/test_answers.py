"""Real answers of the shim, compared with the OpenAPI document: status, headers and body."""

import json
from typing import Any

import httpx
import pytest

from ingest.domain.customers import Customer
from ingest.domain.rates import RateLimit
from ingest.shim import openapi_document
from ingest.shim.rate_limits import RateLimiter
from tests.support.fakes import Clock
from tests.support.shim_harness import HOOK, ShimHarness
from tests.support.tasks import TASK
from tests.unit.documents.schemas import problems, resolved
from tests.unit.shim.conftest import harness, parts

__all__ = ["harness", "parts"]  # fixtures

DOCUMENT = openapi_document()
KEYED = TASK | {"idempotency_key": "k"}
OTHER = KEYED | {"type": "moderation"}
BATCH = {"tasks": [TASK, KEYED], "callback_url": HOOK, "idempotency_key": "b"}
PREFER = {"Prefer": "return=representation"}
SUBMISSIONS: list[tuple[str, str, object, dict[str, str], int]] = [
    ("/v1/tasks", "key", KEYED, {}, 202),
    ("/v1/tasks", "key", KEYED, {}, 200),
    ("/v1/tasks", "key", OTHER, {}, 200),
    ("/v1/tasks", "key", TASK, {}, 202),
    ("/v1/tasks/batch", "key", BATCH, {}, 202),
    ("/v1/tasks/batch", "key", BATCH, PREFER, 200),
    ("/v1/tasks", "key", {}, {}, 400),
    ("/v1/tasks", "key", TASK, {"Idempotency-Key": "schl\u00fcssel"}, 400),
    ("/v1/tasks/batch", "key", {"tasks": [{}] * 200}, {}, 400),
    ("/v1/tasks", "unknown", TASK, {}, 401),
    ("/v1/tasks", "poor", TASK, {}, 403),
    ("/v1/tasks", "disabled", TASK, {}, 403),
    ("/v1/tasks", "key", TASK, {"Content-Encoding": "gzip"}, 415),
    ("/v1/tasks", "strict", KEYED, {}, 202),
    ("/v1/tasks", "strict", OTHER, {}, 422),
    ("/v1/tasks", "limited", TASK, {}, 202),
    ("/v1/tasks/batch", "limited", BATCH, PREFER, 400),
    ("/v1/tasks", "limited", TASK, {"Content-Encoding": "gzip"}, 415),
    ("/v1/tasks", "limited", TASK, {}, 403),
    ("/v1/tasks", "limited", TASK, {}, 429),
    ("/v1/tasks/batch", "limited", BATCH, {}, 429),
]
"""Path, API key, body, headers, and the status of the answer. The order matters: some submissions are replays."""


def check(path: str, method: str, answer: httpx.Response) -> None:
    """Assert that the operation documents the status of the answer, and its headers and body for that status."""
    documented = resolved(DOCUMENT, DOCUMENT["paths"][path][method]["responses"][str(answer.status_code)])
    headers: dict[str, Any] = {name: resolved(DOCUMENT, header) for name, header in documented["headers"].items()}
    for name, header in headers.items():
        if name in answer.headers:
            assert problems(DOCUMENT, header["schema"], answer.headers[name]) == []
        else:
            assert not header.get("required"), name
    ordinary = {"content-type", "content-length", "date", "connection", "etag", "last-modified"}
    if path == "/docs":
        ordinary |= {"content-security-policy", "x-frame-options", "x-content-type-options", "referrer-policy"}
    assert {name.lower() for name in answer.headers} <= {name.lower() for name in headers} | ordinary
    media_type = answer.headers["Content-Type"].partition(";")[0]
    value = answer.json() if media_type == "application/json" else answer.text
    assert problems(DOCUMENT, documented["content"][media_type]["schema"], value) == []


async def test_answers_to_submissions_match_the_document(harness: ShimHarness) -> None:
    """The submissions are accepted, replayed, or refused for each reason that a client can cause."""
    harness.app._limiter = RateLimiter(harness.store, wall_clock=Clock())  # so that no window ends in between
    await harness.add_customer(Customer(cust_id="poor", monthly_quota=0), "poor")
    await harness.add_customer(Customer(cust_id="strict", strict=True), "strict")
    await harness.add_customer(Customer(cust_id="disabled", disabled=True), "disabled")
    await harness.add_customer(Customer(cust_id="limited", monthly_quota=1, rate=RateLimit(4, 60)), "limited")
    for path, api_key, body, headers, status in SUBMISSIONS:
        async with harness.client_of(api_key) as client:
            raw_headers = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            answer = await client.post(
                path,
                content=json.dumps(body).encode(),
                headers=[(b"Content-Type", b"application/json"), *raw_headers],
            )
        assert answer.status_code == status, answer.text
        check(path, "post", answer)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json", "/asyncapi.json", "/docs"])
async def test_answers_of_public_pages_match_the_document(harness: ShimHarness, path: str) -> None:
    """They need no API key."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{harness.port}") as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    check(path, "get", answer)


async def test_answers_to_lookups_match_the_document(harness: ShimHarness) -> None:
    task = (await harness.client.post("/v1/tasks", json=TASK)).json()["task_id"]
    batch = (await harness.client.post("/v1/tasks/batch", json={"tasks": [TASK]})).json()["batch_id"]
    for path, submission_id, status in (
        ("/v1/tasks/{task_id}", task, 200),
        ("/v1/tasks/{task_id}", batch, 404),
        ("/v1/tasks/batch/{batch_id}", batch, 200),
    ):
        answer = await harness.client.get(f"{path.partition('{')[0]}{submission_id}")
        assert answer.status_code == status
        check(path, "get", answer)


async def test_answers_during_an_outage_match_the_document(harness: ShimHarness) -> None:
    await harness.store.close()
    submission = await harness.client.post("/v1/tasks", json=TASK)
    assert (submission.status_code, "Retry-After" in submission.headers) == (503, True)
    check("/v1/tasks", "post", submission)
    readiness = await harness.client.get("/readyz")
    assert readiness.status_code == 503
    check("/readyz", "get", readiness)


async def test_first_example_of_each_body_is_accepted_as_new_by_every_submission(harness: ShimHarness) -> None:
    """The documentation page fills it in."""
    for path in ("/v1/tasks", "/v1/tasks/batch"):
        examples = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
        first = next(iter(examples.values()))["value"]
        assert [(await harness.client.post(path, json=first)).status_code for _ in range(2)] == [202, 202]


@pytest.mark.parametrize(
    ("request_line", "header", "status"),
    [
        ("GET /healthz HTTP/1.1", "X-A: no Host", 400),
        ("GET /healthz HTTP/1.1", "Host: " + "x" * 40_000, 431),
        ("POST /v1/tasks HTTP/1.1", "\r\n".join(["Host: x"] + ["X-A: a"] * 101), 431),
        ("POST /v1/tasks/batch HTTP/2.0", "Host: x", 505),
    ],
)
async def test_answers_to_requests_that_http_forbids_match_the_document(
    harness: ShimHarness, request_line: str, header: str, status: int
) -> None:
    head, _, body = (await harness.raw(f"{request_line}\r\n{header}\r\n\r\n".encode())).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    answer = httpx.Response(
        int(lines[0].split()[1]), headers=[line.partition(": ")[::2] for line in lines[1:]], content=body
    )
    assert answer.status_code == status
    method, path, _ = request_line.split()
    check(path, method.lower(), answer)
