"""The public names of the SDK, and the arguments that it refuses before it sends anything."""

import ast
import inspect
import pickle
from pathlib import Path
from types import MappingProxyType, ModuleType

import asg_gateway
import asg_gateway.amqp.testing
import httpx
import pytest
from asg_gateway import ASGGatewayClient, AsyncASGGatewayClient

from tests.unit.sdk.gateway import TASK, Gateway, submit

ERRORS = [
    asg_gateway.QuotaExhaustedError(403, "quota exhausted", (("a", "a is wrong"),), "r1", {"x-request-id": "r1"}),
    asg_gateway.PartialBatchError((asg_gateway.BatchResult("bat_1", 2, "accepted"),), "k"),
    asg_gateway.TimedOutError("no answer"),
]


@pytest.mark.parametrize("package", [asg_gateway, asg_gateway.amqp, asg_gateway.amqp.testing])
def test_all_lists_every_public_name(package: ModuleType) -> None:
    public = [name for name in package.__all__ if name != "__version__"]
    names = {name for name, value in vars(package).items() if not isinstance(value, ModuleType)}
    assert set(public) == {name for name in names if not name.startswith("_")}


def test_sdk_does_not_import_the_service() -> None:
    for path in Path(asg_gateway.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "ingest"]


@pytest.mark.parametrize("name", ["submit_task", "submit_batch", "get_task", "get_batch", "close"])
def test_both_clients_have_the_same_signatures_and_docstrings(name: str) -> None:
    blocking, asynchronous = getattr(ASGGatewayClient, name), getattr(AsyncASGGatewayClient, name)
    assert inspect.signature(blocking) == inspect.signature(asynchronous)
    assert inspect.iscoroutinefunction(asynchronous)
    assert inspect.getdoc(blocking) == inspect.getdoc(asynchronous)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_pickled_error_keeps_all_its_attributes(error: asg_gateway.ASGGatewayError) -> None:
    """A child process can pass an error to its parent."""
    error.idempotency_key = "k"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize("key", ["", "a b", "key\n", "schlüssel"])
def test_invalid_api_key_is_a_value_error_that_does_not_show_the_key(key: str) -> None:
    with pytest.raises(ValueError, match="api_key must be") as caught:
        ASGGatewayClient(key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["a.example", "ftp://a.example", "https://", "https://a:port", "https://u:p@a.example", "https://a.example/?q=1"],
)
async def test_invalid_base_url_is_a_value_error(url: str) -> None:
    """Credentials in the URL would replace the API key, and a query would include the path."""
    for client in (ASGGatewayClient, AsyncASGGatewayClient):
        with pytest.raises(ValueError, match="base_url must be"):
            client("k", base_url=url)


@pytest.mark.parametrize("limit", [{"timeout": 0}, {"deadline": -1.0}, {"deadline": float("nan")}, {"max_retries": -1}])
def test_invalid_limit_is_a_value_error(limit: dict[str, float]) -> None:
    """With -1, the retries would never end."""
    with pytest.raises(ValueError, match="must be"):
        Gateway().client(**limit)


def test_values_that_json_cannot_represent_are_refused() -> None:
    gateway = Gateway()
    client = gateway.client()
    with pytest.raises(ValueError, match="JSON compliant"):
        submit(client, label_spec={"question": "q", "options": [], "weight": float("nan")})
    with pytest.raises(TypeError, match="a value of type set, which JSON cannot represent"):
        client.submit_batch([{"label_spec": {"options": {"a", "b"}}}])
    assert gateway.requests == []


def test_label_spec_can_be_any_mapping() -> None:
    gateway = Gateway(httpx.Response(202, json=TASK))
    submit(gateway.client(), label_spec=MappingProxyType({"question": "q"}))
    assert gateway.bodies[0]["label_spec"] == {"question": "q"}


def test_empty_idempotency_key_is_refused() -> None:
    """A split batch would otherwise send `/0`, which the gateway accepts."""
    gateway = Gateway()
    client = gateway.client()
    with pytest.raises(ValueError, match="idempotency_key must be"):
        submit(client, idempotency_key="")
    with pytest.raises(ValueError, match="idempotency_key must be"):
        client.submit_batch([{}] * 1001, idempotency_key="")
    assert gateway.requests == []
