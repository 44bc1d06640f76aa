"""Real answers are what the OpenAPI document says: status, headers, body."""

import json
from typing import Any

import httpx
import pytest

from ingest.domain.customers import Customer
from ingest.shim import openapi_document
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
    ("/v1/tasks", "nobody", TASK, {}, 401),
    ("/v1/tasks", "poor", TASK, {}, 403),
    ("/v1/tasks", "key", TASK, {"Content-Encoding": "gzip"}, 415),
    ("/v1/tasks", "strict", KEYED, {}, 202),
    ("/v1/tasks", "strict", OTHER, {}, 422),
]


def check(path: str, method: str, answer: httpx.Response) -> None:
    """The answer's status is documented for the operation, and all of it is as it says there."""
    said = resolved(DOCUMENT, DOCUMENT["paths"][path][method]["responses"][str(answer.status_code)])
    headers: dict[str, Any] = {name: resolved(DOCUMENT, each) for name, each in said["headers"].items()}
    for name, header in headers.items():
        if name in answer.headers:
            assert problems(DOCUMENT, header["schema"], answer.headers[name]) == []
        else:
            assert not header.get("required"), name
    ordinary = {"content-type", "content-length", "date", "connection", "etag", "last-modified"}
    assert {name.lower() for name in answer.headers} <= {name.lower() for name in headers} | ordinary
    media_type = answer.headers["Content-Type"].partition(";")[0]
    value = answer.json() if media_type == "application/json" else answer.text
    assert problems(DOCUMENT, said["content"][media_type]["schema"], value) == []


async def test_submissions(harness: ShimHarness) -> None:
    """Accepted, replayed, refused for each reason that a client can bring about."""
    await harness.add_customer(Customer(cust_id="poor", monthly_quota=0), "poor")
    await harness.add_customer(Customer(cust_id="strict", strict=True), "strict")
    for path, api_key, body, headers, status in SUBMISSIONS:
        async with harness.client_of(api_key) as client:
            given = {name: value.encode("latin-1") for name, value in headers.items()}
            content = json.dumps(body).encode()
            raw = [(b"Content-Type", b"application/json"), *((name.encode(), value) for name, value in given.items())]
            answer = await client.post(path, content=content, headers=raw)
        assert answer.status_code == status, answer.text
        check(path, "post", answer)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json", "/asyncapi.json", "/docs"])
async def test_pages(harness: ShimHarness, path: str) -> None:
    """Open to all, as documented; the documents are the documents."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{harness.port}") as anybody:
        answer = await anybody.get(path)
    assert answer.status_code == 200
    check(path, "get", answer)


async def test_lookups(harness: ShimHarness) -> None:
    """Found, not found."""
    task = (await harness.client.post("/v1/tasks", json=TASK)).json()["task_id"]
    batch = (await harness.client.post("/v1/tasks/batch", json={"tasks": [TASK]})).json()["batch_id"]
    for path, id_, status in (
        ("/v1/tasks/{task_id}", task, 200),
        ("/v1/tasks/{task_id}", batch, 404),
        ("/v1/tasks/batch/{batch_id}", batch, 200),
    ):
        answer = await harness.client.get(f"{path.partition('{')[0]}{id_}")
        assert answer.status_code == status
        check(path, "get", answer)


async def test_away(harness: ShimHarness) -> None:
    """503 with `Retry-After`, not ready."""
    await harness.store.close()
    check("/v1/tasks", "post", await harness.client.post("/v1/tasks", json=TASK))
    check("/readyz", "get", await harness.client.get("/readyz"))
