"""The path of the console for probes, which have no token."""

import httpx
import pytest

from ingest.console.access import Access
from tests.unit.console.browser import Browser


@pytest.mark.parametrize("access", [Access("0.0.0.0", "correct horse battery"), Access("0.0.0.0", "", "X-User")])
async def test_probe_is_answered_without_a_token_and_learns_nothing(access: Access) -> None:
    browser = Browser(access=access)
    await browser.history.sample()
    for method in ("GET", "HEAD"):
        answer = await browser.request(method, "/healthz", host="10.42.0.7:8090")
        assert answer.status_code == 200
    assert (await browser.get("/healthz")).text == "ok\n"
    assert (await browser.get("/")).status_code in (401, 403)


@pytest.mark.parametrize(
    "path", ["/healthz/", "//healthz", "/healthz/../find", "/find/healthz", "/find?x=/healthz", "/%68ealthz/x"]
)
async def test_only_that_path_needs_no_token(path: str) -> None:
    browser = Browser(access=Access("0.0.0.0", "correct horse battery"))
    transport = httpx.ASGITransport(browser.console)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        request = client.build_request("GET", "/")
        request.url = request.url.copy_with(raw_path=path.encode())
        assert (await client.send(request)).status_code == 401


async def test_probe_gets_the_headers_of_every_page_and_may_only_read() -> None:
    browser = Browser(access=Access("0.0.0.0", "correct horse battery"))
    answer, page = await browser.get("/healthz"), await browser.get("/")
    names = set(page.headers) - {"www-authenticate", "content-length", "content-type"}
    assert {name: answer.headers[name] for name in names} == {name: page.headers[name] for name in names}
    assert (await browser.request("POST", "/healthz")).status_code == 401
