"""Proxy variables that httpx itself rejects: an error names the variable, an IPv6 network in NO_PROXY is honoured."""

import asyncio
import socket
from importlib.util import find_spec

import httpx
import pytest

from ingest.broker.rabbitmq.management import Management
from ingest.domain.errors import BrokerUnavailable, ConfigurationError
from ingest.operations.scrape import Scraper
from ingest.proxies import proxy_for

PROXY = "http://proxy.example:3128"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def url() -> str:
    """The URL of a port on which nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_ipv6_network_in_no_proxy_is_honoured() -> None:
    variables = {"all": PROXY, "no": "fd00::/8, example.com"}
    assert proxy_for(httpx.URL("https://[fd00::1]:15672"), variables) is None
    assert proxy_for(httpx.URL("https://broker.example.com"), variables) is None
    assert proxy_for(httpx.URL("https://broker.example"), variables) == httpx.URL(PROXY)


def test_management_api_is_reached_with_an_ipv6_network_in_no_proxy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", "fd00::/8,127.0.0.1")
    with pytest.raises(BrokerUnavailable, match="Connection refused"):
        Management(url, "/").get("overview")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("ftp://proxy.example", "HTTP_PROXY is not the URL of a proxy: set it to one like"),
        pytest.param(
            "socks5://127.0.0.1:1080",
            "HTTP_PROXY is a SOCKS proxy: run",
            marks=pytest.mark.skipif(find_spec("socksio") is not None, reason="socksio is installed"),
        ),
    ],
)
def test_unusable_proxy_is_one_sentence_that_names_the_variable(
    value: str, sentence: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", value)
    with pytest.raises(ConfigurationError, match=sentence):
        Management(url, "/").get("overview")
    states, problems = asyncio.run(Scraper([url]).scrape())
    assert (states, len(problems)) == ([], 1)
    assert problems[0].startswith(f"{url} serves no metrics: {sentence}")
