"""The servers that tests start in Docker have the same configuration as private processes."""

import subprocess
from collections.abc import Iterator

import httpx
import pytest

from ingest import settings
from ingest.backends import store_backend
from tests.servers import AerospikeServer, RabbitServer
from tests.servers.docker import deployed_image, docker_has


def require(service: str) -> None:
    if not docker_has(deployed_image(service)):
        pytest.skip(f"no Docker engine answers that has {deployed_image(service)}")


@pytest.fixture
def aerospike_container() -> Iterator[AerospikeServer]:
    require("aerospike")
    server = AerospikeServer(nsup=0, storage="evict-used-pct 50", namespace="default-ttl 0")
    assert server.origin == "Docker"
    yield server
    server.stop()


@pytest.fixture
def rabbitmq_container(monkeypatch: pytest.MonkeyPatch) -> Iterator[RabbitServer]:
    require("rabbitmq")
    for variable in ("INGEST_TEST_RABBITMQ_URL", "INGEST_TEST_RABBITMQ_BIN"):
        monkeypatch.delenv(variable, raising=False)
    server = RabbitServer()
    assert server.origin.startswith("Docker")
    yield server
    server.stop()


async def test_aerospike_container_has_the_configuration_of_the_test(aerospike_container: AerospikeServer) -> None:
    backend = store_backend(settings.load(broker_url="amqp://h/", store_url=aerospike_container.url))
    texts = [finding.what for finding in await backend.findings()]
    assert any(text.startswith("nsup-period is 0") for text in texts)
    assert any("evict" in text and "50" in text for text in texts), texts


def test_rabbitmq_container_has_the_deployed_configuration(rabbitmq_container: RabbitServer) -> None:
    timeout = rabbitmq_container.ctl("eval", "application:get_env(rabbit, consumer_timeout).")
    assert timeout.strip() == "{ok,3600000}"
    metrics = httpx.get(f"http://{rabbitmq_container.metrics}/metrics/detailed?family=queue_coarse_metrics")
    assert metrics.status_code == 200


def test_container_is_removed_if_the_server_does_not_start() -> None:
    require("aerospike")
    before = containers()
    with pytest.raises(RuntimeError, match="Aerospike in Docker ended before it was ready"):
        AerospikeServer(namespace="nonsense 1")
    assert containers() == before


def containers() -> set[str]:
    command = ["docker", "ps", "--all", "--quiet", "--filter", f"ancestor={deployed_image('aerospike')}"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split())
