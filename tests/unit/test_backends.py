"""Which combinations of broker and store are accepted, and which settings are known."""

import pytest

from ingest import settings
from ingest.backends import broker_backend, store_backend
from ingest.domain.errors import ConfigurationError


@pytest.mark.parametrize(
    ("store", "problem"), [("", "INGEST_STORE_URL is not set"), ("sqlite:///store.db", "INGEST_STORE_URL is a file")]
)
def test_rabbitmq_with_a_sqlite_store_is_refused(store: str, problem: str) -> None:
    """The file has no customers: a worker would reject every valid task as `unknown_customer`."""
    current = settings.load(broker_url="amqp://127.0.0.1/", store_url=store)
    with pytest.raises(ConfigurationError, match=rf"{problem}.*aerospike://host:3000/namespace"):
        store_backend(current)


def test_refused_store_names_the_misspelt_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INGEST_STORE_ULR", "aerospike://user:S3cretPw@h/test")
    with pytest.raises(ConfigurationError) as caught:
        store_backend(settings.load(broker_url="amqp://127.0.0.1/"))
    assert "INGEST_STORE_ULR is not a setting: did you mean INGEST_STORE_URL?" in str(caught.value)
    assert "S3cretPw" not in str(caught.value)


def test_option_of_a_file_is_refused() -> None:
    """It would be a part of the file's name."""
    with pytest.raises(ConfigurationError, match=r"INGEST_STORE_URL: .* no options"):
        store_backend(settings.load(store_url="sqlite:///store.db?mode=ro"))
    with pytest.raises(ConfigurationError, match=r"INGEST_BROKER_URL: .* no options"):
        broker_backend(settings.load(broker_url="sqlite:///queue.db?mode=ro"))


def test_embedded_broker_and_rabbitmq_with_aerospike_are_accepted() -> None:
    store_backend(settings.load())
    store_backend(settings.load(broker_url="amqp://127.0.0.1/", store_url="aerospike://127.0.0.1/test"))


def test_unknown_variables_have_the_closest_setting() -> None:
    names = ["INGEST_BROKER_ULR", "INGEST_WORKERS", "INGEST_SOMETHING_ELSE", "INGEST_TEST_URL", "PATH"]
    assert settings.unknown_variables(names) == {"INGEST_BROKER_ULR": "INGEST_BROKER_URL", "INGEST_SOMETHING_ELSE": ""}
