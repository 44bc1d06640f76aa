"""Who may read the console: the machine itself, a token, or a user whom a proxy names."""

import base64

import pytest

from ingest.console.access import Access
from ingest.domain.errors import ConfigurationError
from ingest.urls import is_loopback

TOKEN = "correct horse battery"


def status(access: Access, **headers: str) -> int | None:
    refused = access.refusal({name.replace("_", "-"): value for name, value in headers.items()})
    return None if refused is None else refused.status


def basic(password: str, user: str = "ann") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "console.example"])
def test_console_is_never_open_to_the_network(host: str) -> None:
    with pytest.raises(ConfigurationError, match="set INGEST_CONSOLE_TOKEN"):
        Access(host)
    assert Access(host, TOKEN)
    assert Access(host, user_header="X-User")


def test_short_token_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 16 characters") as refused:
        Access("127.0.0.1", "short-password")
    assert "short-password" not in str(refused.value)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8090", "127.0.0.1:8090", "127.0.0.2:8090", "[::1]:8090", "[::1]"]
)
def test_this_machine_needs_no_password(host: str) -> None:
    assert status(Access("127.0.0.1"), host=host) is None


@pytest.mark.parametrize(
    "host", ["evil.example:8090", "localhost.evil.example", "", "127.0.0.1.evil.example:80", "[::1]x"]
)
def test_host_name_of_another_page_is_refused_without_a_token(host: str) -> None:
    assert status(Access("127.0.0.1"), host=host) == 403


@pytest.mark.parametrize(
    "authorization",
    [basic(TOKEN), basic(TOKEN, ""), f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(TOKEN).replace("B", "b", 1)],
)
def test_token_is_accepted_as_password_and_as_bearer(authorization: str) -> None:
    assert status(Access("0.0.0.0", TOKEN), authorization=authorization, host="anything") is None


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic !",
        basic(""),
        basic("wrong"),
        basic(f"{TOKEN}x"),
        f"Bearer {TOKEN}x",
        f"Digest {TOKEN}",
        "Bearer ü",
        "Basic ü",
    ],
)
def test_everything_else_is_refused(authorization: str) -> None:
    assert status(Access("127.0.0.1", TOKEN), authorization=authorization, host="localhost") == 401


def test_proxy_must_name_the_user() -> None:
    access = Access("0.0.0.0", user_header="X-Auth-Request-Email")
    assert status(access, host="console.example") == 403
    assert status(access, host="console.example", x_auth_request_email="") == 403
    assert status(access, host="console.example", x_auth_request_email="ann@example.com") is None


def test_token_and_proxy_are_both_needed_if_both_are_set() -> None:
    access = Access("0.0.0.0", TOKEN, "X-User")
    assert status(access, x_user="ann") == 401
    assert status(access, authorization=basic(TOKEN)) == 403
    assert status(access, authorization=basic(TOKEN), x_user="ann") is None


def test_only_addresses_of_this_machine_are_loopback() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("10.0.0.1", "::", "localhost.example", "")] == [False] * 4


def test_page_of_another_site_leads_here_and_loads_nothing_from_here() -> None:
    access = Access("127.0.0.1")
    for site in ("same-origin", "none"):
        assert status(access, host="localhost", sec_fetch_site=site) is None
    for site in ("cross-site", "same-site"):
        own = {"host": "localhost", "sec_fetch_site": site}
        assert status(access, **own, sec_fetch_mode="no-cors", sec_fetch_dest="image") == 403
        assert status(access, **own, sec_fetch_mode="navigate", sec_fetch_dest="iframe") == 403
        assert status(access, **own) == 403
        assert status(access, **own, sec_fetch_mode="navigate", sec_fetch_dest="document") is None


@pytest.mark.parametrize("header", ["Host", "authorization", "Sec-Fetch-Site", "X User", "X-Üser", "X:"])
def test_header_that_a_proxy_does_not_set_is_refused(header: str) -> None:
    with pytest.raises(ConfigurationError, match="must be a header that only the proxy sets"):
        Access("0.0.0.0", user_header=header)


def test_proxy_on_this_machine_needs_a_token() -> None:
    """A page of another site that names this machine by its own host name can send any header."""
    with pytest.raises(ConfigurationError, match="set INGEST_CONSOLE_TOKEN as well"):
        Access("127.0.0.1", user_header="X-User")
    access = Access("127.0.0.1", TOKEN, "X-User")
    assert status(access, host="evil.example", x_user="ann") == 401


def test_token_that_a_header_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="all ASCII"):
        Access("127.0.0.1", "correct hörse battery")
