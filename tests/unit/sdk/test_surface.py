"""What the package shows, and what it refuses before anything is sent."""

import ast
import inspect
import pickle
from pathlib import Path
from types import MappingProxyType

import asg_gateway
import httpx
import pytest
from asg_gateway import ASGGatewayClient, AsyncASGGatewayClient

from tests.unit.sdk.gateway import TASK, Gateway, submit

ERRORS = [
    asg_gateway.QuotaExhaustedError(403, "quota exhausted", (("a", "a is wrong"),), "r1", {"x-request-id": "r1"}),
    asg_gateway.PartialBatchError((asg_gateway.BatchResult("bat_1", 2, "accepted"),), "k"),
    asg_gateway.TimedOutError("no answer"),
]


def test_all_is_complete() -> None:
    """`__all__` holds every public name of the package; ruff keeps its order."""
    public = [name for name in asg_gateway.__all__ if name != "__version__"]
    assert set(public) == {name for name in vars(asg_gateway) if not name.startswith("_")}


def test_imports_nothing_of_the_service() -> None:
    """No module of the SDK imports `ingest`."""
    for path in Path(asg_gateway.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "ingest"]


@pytest.mark.parametrize("name", ["submit_task", "submit_batch", "get_task", "get_batch", "close"])
def test_both_clients_are_called_alike(name: str) -> None:
    """The asynchronous client has the same methods with the same arguments, awaited."""
    blocking, awaited = getattr(ASGGatewayClient, name), getattr(AsyncASGGatewayClient, name)
    assert inspect.signature(blocking) == inspect.signature(awaited)
    assert inspect.iscoroutinefunction(awaited)
    assert inspect.getdoc(blocking) == inspect.getdoc(awaited)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_cross_processes(error: asg_gateway.ASGGatewayError) -> None:
    """A worker process can hand an error to its parent with all that it tells."""
    error.idempotency_key = "k"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize("key", ["", "a b", "key\n", "schlüssel"])
def test_a_key_that_cannot_be_right_is_told_at_once(key: str) -> None:
    """A ValueError that does not show the key, not a request."""
    with pytest.raises(ValueError, match="api_key must be") as caught:
        ASGGatewayClient(key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["a.example", "ftp://a.example", "https://", "https://a:port", "https://u:p@a.example", "https://a.example/?q=1"],
)
async def test_a_base_url_that_cannot_be_right_is_told_at_once(url: str) -> None:
    """Credentials would displace the API key, a query would swallow the path."""
    for client in (ASGGatewayClient, AsyncASGGatewayClient):
        with pytest.raises(ValueError, match="base_url must be"):
            client("k", base_url=url)


@pytest.mark.parametrize("limit", [{"timeout": 0}, {"deadline": -1.0}, {"deadline": float("nan")}, {"max_retries": -1}])
def test_limits_that_cannot_be_right_are_told_at_once(limit: dict[str, float]) -> None:
    """-1 retries would be endless ones."""
    with pytest.raises(ValueError, match="must be"):
        Gateway().client(**limit)


def test_what_json_cannot_hold_is_refused() -> None:
    """NaN and sets would not arrive, so they are not sent."""
    client = Gateway().client()
    with pytest.raises(ValueError, match="JSON compliant"):
        submit(client, label_spec={"question": "q", "options": [], "weight": float("nan")})
    with pytest.raises(TypeError, match="set is not a JSON type"):
        client.submit_batch([{"label_spec": {"options": {"a", "b"}}}])


def test_any_mapping_will_do() -> None:
    """As the signature promises, not only a dict."""
    gateway = Gateway(httpx.Response(202, json=TASK))
    submit(gateway.client(), label_spec=MappingProxyType({"question": "q"}))
    assert gateway.bodies[0]["label_spec"] == {"question": "q"}


def test_an_empty_key_is_refused() -> None:
    """Split, it would turn into `/0` and be taken."""
    client = Gateway().client()
    with pytest.raises(ValueError, match="idempotency_key must be"):
        submit(client, idempotency_key="")
    with pytest.raises(ValueError, match="idempotency_key must be"):
        client.submit_batch([{}] * 1001, idempotency_key="")
