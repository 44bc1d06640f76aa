"""Proxy variables: the proxy that applies is used, and an invalid one is an error that names the variable."""

import asyncio
from importlib.util import find_spec

import httpx
import pytest
from asg_gateway import ASGGatewayClient, AsyncASGGatewayClient
from asg_gateway._proxies import proxy_for

from tests.unit.sdk.gateway import CALL, submit
from tests.unit.sdk.servers import TaskServer

PROXY = "http://proxy.example:3128"
VARIABLES = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({}, None),
        ({"https": PROXY}, PROXY),
        ({"https": "proxy.example:3128"}, PROXY),
        ({"all": PROXY}, PROXY),
        ({"http": PROXY}, None),
        ({"https": "", "all": PROXY}, PROXY),
        ({"https": "https://user:p%40ss@proxy.example", "all": "broken://"}, "https://user:p%40ss@proxy.example"),
    ],
)
def test_proxy_is_that_of_the_scheme_or_of_all_schemes(variables: dict[str, str], proxy: str | None) -> None:
    found = proxy_for(httpx.URL("https://gateway.example"), variables)
    assert found == (None if proxy is None else httpx.URL(proxy))


@pytest.mark.parametrize(
    ("url", "no_proxy", "excluded"),
    [
        ("https://gateway.example", "*", True),
        ("https://gateway.example", "a.example, gateway.example ,", True),
        ("https://gateway.example", "GATEWAY.example", True),
        ("https://api.gateway.example", "gateway.example", True),
        ("https://api.gateway.example", ".gateway.example", True),
        ("https://api.gateway.example", "*.gateway.example", True),
        ("https://mygateway.example", "gateway.example", False),
        ("https://gateway.example", "gateway.example:443", True),
        ("https://gateway.example", "gateway.example:8443", False),
        ("https://gateway.example", "http://gateway.example", False),
        ("https://gateway.example", "all://gateway.example", True),
        ("https://10.1.2.3", "10.0.0.0/8", True),
        ("https://11.1.2.3", "10.0.0.0/8", False),
        ("https://[fd00::1]", "fd00::/8", True),
        ("https://[fd00::1]:8443", "::1,fd00::1", True),
        ("https://[fe80::1]", "[fe80::1]", True),
        ("https://[fe80::1]", "fd00::/8", False),
        ("https://gateway.example", "fd00::/8,::1,10.0.0.0/8,[::1]:80,/,:,.", False),
    ],
)
def test_no_proxy_excludes_hosts_domains_addresses_and_networks(url: str, no_proxy: str, excluded: bool) -> None:
    """Entries that cannot match are skipped."""
    assert (proxy_for(httpx.URL(url), {"all": PROXY, "no": no_proxy}) is None) == excluded


@pytest.mark.parametrize("value", ["ftp://proxy.example", "http://", "http://a:secret:b"])
def test_invalid_proxy_is_a_value_error_that_names_the_variable_and_hides_its_value(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    for client in (ASGGatewayClient, AsyncASGGatewayClient):
        with pytest.raises(ValueError, match="HTTPS_PROXY is not the URL of a proxy: set it to") as caught:
            client("k", base_url="https://gateway.example")
        assert "secret" not in str(caught.value)
        client("k", base_url="http://gateway.example")


@pytest.mark.skipif(find_spec("socksio") is not None, reason="socksio is installed")
def test_socks_proxy_without_support_is_a_value_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    for client in (ASGGatewayClient, AsyncASGGatewayClient):
        with pytest.raises(ValueError, match=r"ALL_PROXY is a SOCKS proxy: run `pip install httpx\[socks\]`"):
            client("k", base_url="https://gateway.example")


def test_requests_go_through_the_proxy_unless_no_proxy_excludes_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy gets requests for a gateway that does not exist. An IPv6 network in NO_PROXY does not matter."""

    async def call(url: str) -> str:
        async with AsyncASGGatewayClient("k", base_url=url, max_retries=0) as client:
            return (await client.submit_task(**CALL, idempotency_key="k1")).task_id

    with TaskServer().running() as proxy, TaskServer().running() as gateway:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("NO_PROXY", "fd00::/8,127.0.0.1")
        for url in ("http://gateway.invalid", gateway):
            with ASGGatewayClient("k", base_url=url, max_retries=0) as client:
                assert submit(client, idempotency_key="k1").task_id == "k1"
            assert asyncio.run(call(url)) == "k1"
