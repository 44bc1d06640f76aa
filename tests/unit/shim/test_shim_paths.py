"""Paths of the shim other than those for tasks: nearly right ones, and the documents."""

import json

import pytest

from tests.support.shim_harness import ShimHarness


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/tasks/", "/v1/tasks"),
        ("/v1/tasks/batch/", "/v1/tasks/batch"),
        ("//v1//tasks/batch", "/v1/tasks/batch"),
        ("/V1/Tasks", "/v1/tasks"),
        ("/v1/tasks/tsk_1/", "/v1/tasks/tsk_1"),
        ("/v1/tasks/batch/bat_1/", "/v1/tasks/batch/bat_1"),
        ("/healthz/", "/healthz"),
        ("/docs/", "/docs"),
        ("/docs/assets", None),
        ("/docs/assets/", None),
        ("/docs/assets/index.html", None),
        ("/v1/task", None),
        ("/" + "x" * 5000, None),
    ],
)
async def test_path_that_is_nearly_right_is_answered_404_with_the_right_one(
    harness: ShimHarness, method: str, path: str, hint: str | None
) -> None:
    """There are no redirects: a client would follow them with its API key, to the host that the request names."""
    raw = f"{method} {path} HTTP/1.1\r\nHost: evil.example/x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    head, _, body = (await harness.raw(raw.encode())).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 ")
    assert b"evil.example" not in head
    suffix = f"did you mean {hint}?" if hint else "/docs describes every path"
    assert json.loads(body) == {"error": f"there is nothing at {path[:200]}, {suffix}"}


async def test_shim_serves_openapi_document_and_docs_page_with_own_assets(harness: ShimHarness) -> None:
    document = (await harness.client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.")
    page = await harness.client.get("/docs")
    assert "https://" not in page.text
    assert (await harness.client.get("/")).text == page.text
    for asset in ("swagger-ui.css", "swagger-ui-bundle.js"):
        assert f"/docs/assets/{asset}" in page.text
        answer = await harness.client.get(f"/docs/assets/{asset}")
        assert answer.status_code == 200
        cached = await harness.client.get(f"/docs/assets/{asset}", headers={"If-None-Match": answer.headers["ETag"]})
        assert cached.status_code == 304
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_docs_page_can_neither_load_from_elsewhere_nor_be_framed(harness: ShimHarness) -> None:
    for path in ("/", "/docs"):
        headers = (await harness.client.get(path)).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; connect-src 'self'; ")
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Frame-Options"] == "DENY"
