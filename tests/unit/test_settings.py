"""Settings that are malformed: one sentence that names the setting and shows no part of a secret."""

import pytest

from ingest import settings
from ingest.domain.errors import ConfigurationError
from ingest.store.aerospike.client import parse_url

URLS = {
    "INGEST_BROKER_URL": "amqp://user:{password}@127.0.0.1:5672/vhost",
    "INGEST_STORE_URL": "aerospike://user:{password}@127.0.0.1:3000/test",
    "INGEST_MANAGEMENT_URL": "http://user:{password}@127.0.0.1:15672",
}


@pytest.mark.parametrize("variable", URLS)
@pytest.mark.parametrize("character", ["/", "?", "#", "[", "]", "@", " "])
@pytest.mark.parametrize("before", ["S3cr", "1234"])
def test_password_with_a_reserved_character_is_an_error_that_hides_all_of_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, character: str, before: str
) -> None:
    """Before a slash, digits look like the port of a host that is named as the user."""
    monkeypatch.setenv(variable, URLS[variable].format(password=f"{before}{character}etPw"))
    with pytest.raises(ConfigurationError) as caught:
        settings.load()
    message = str(caught.value)
    assert message.startswith(f"{variable}: ")
    assert "%2F" in message
    assert before not in message
    assert "etPw" not in message


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("INGEST_BROKER_URL", "amqp://user:S3cretPw@127.0.0.1:port/", "invalid port number"),
        ("INGEST_BROKER_URL", "amqp:///vhost", "the host is missing"),
        ("INGEST_STORE_URL", "aerospike:///test", "the host is missing"),
        ("INGEST_MANAGEMENT_URL", "http://user:S3cretPw@127.0.0.1:port", "invalid port number"),
        ("INGEST_MANAGEMENT_URL", "http://user:S3cretPw@[::1:15672", "must look like"),
        ("INGEST_MANAGEMENT_URL", "http://a:1,b:2", "one host"),
        ("INGEST_TRUSTED_USERS", "a,b", 'a JSON list, such as ["shim", "worker"]'),
        ("INGEST_TRUSTED_USERS", '{"a": 1}', 'a JSON list, such as ["shim", "worker"]'),
        ("INGEST_TRUSTED_USERS", "[1]", 'a JSON list, such as ["shim", "worker"]'),
        ("INGEST_PORT", "http", "INGEST_PORT: "),
        ("INGEST_LEASE", "15", "INGEST_LEASE must be at least"),
    ],
)
def test_malformed_setting_is_one_sentence_that_names_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, problem: str
) -> None:
    monkeypatch.setenv("INGEST_REQUEST_DEADLINE", "12")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        settings.load()
    message = str(caught.value)
    assert message.startswith(variable)
    assert problem in message
    assert "\n" not in message
    assert "S3cretPw" not in message


def test_encoded_password_and_several_hosts_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = "amqps://user:S3cr%2FetPw%40@[::1]:5671,host2/%2Fteam?auth=external"
    monkeypatch.setenv("INGEST_BROKER_URL", broker)
    monkeypatch.setenv("INGEST_TRUSTED_USERS", '["a", "b"]')
    loaded = settings.load()
    assert loaded.broker == broker
    assert loaded.trusted_users == {"a", "b"}


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("tls=on", "tls must be true or false"),
        ("tls=maybe", "tls must be true or false"),
        ("tls=", "tls must be true or false"),
        ("cafile=ca.pem", "cafile needs tls=true"),
        ("tls=false&tls_name=x", "tls_name needs tls=true"),
        ("tls=true&tls=false", "twice"),
        ("tls=true&keyfile=k.pem", "keyfile needs certfile"),
        ("tls=true&cafile=/does/not/exist.pem", "cafile=/does/not/exist.pem"),
        ("TLS=true", "unknown options"),
    ],
)
def test_aerospike_option_that_is_not_understood_is_an_error(query: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_url(f"aerospike://user:S3cretPw@127.0.0.1:3000/test?{query}")
    message = str(caught.value)
    assert message.startswith("INGEST_STORE_URL")
    assert problem in message
    assert "S3cretPw" not in message


@pytest.mark.parametrize(("value", "secure"), [("true", True), ("1", True), ("yes", True), ("False", False)])
def test_aerospike_tls_option_is_true_or_false(value: str, secure: bool) -> None:
    assert parse_url(f"aerospike://127.0.0.1:3000/test?tls={value}").tls is secure


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://user:pass@host:5672/v", "amqp://user:***@host:5672/v"),
        ("amqp://user:pa/ss@w:rd@host/v", "amqp://user:***@host/v"),
        ("amqp://u:pass@one,u:pass@two/v", "amqp://u:***@two/v"),
        ("amqp://user@host", "amqp://user@host"),
        ("amqps://one:5671,two:5671/v?auth=external", "amqps://one:5671,two:5671/v?auth=external"),
        ("aerospike://[::1]:3000/test", "aerospike://[::1]:3000/test"),
        ("sqlite:///data/queue.db", "sqlite:///data/queue.db"),
        ("amqp://user:pass", "***"),
        ("user:pass@host", "***"),
        ("pass", "***"),
        ("", ""),
    ],
)
def test_password_in_a_url_is_never_shown(url: str, shown: str) -> None:
    (broker,) = [setting for setting in settings.described() if setting.variable == "INGEST_BROKER_URL"]
    assert settings.shown(broker, {"ingest_broker_url": url}) == shown
    assert settings.shown(broker, {}) is None
