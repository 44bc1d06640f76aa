"""The service with a client certificate instead of a password: a RabbitMQ that takes no other over TLS."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from ingest import settings
from ingest.backends import broker_backend
from ingest.domain import topology
from ingest.domain.messages import Message, PublishOutcome
from tests.e2e.contract import TASK
from tests.e2e.processes import Ingest, run_ingest, wait_ready
from tests.servers import AerospikeServer, RabbitServer, Unavailable
from tests.servers.process import free_ports

CUSTOMER = "certified"


@pytest.fixture(scope="module")
def env(aerospike: AerospikeServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Settings with the certificate of user `ingest`; the topology is there."""
    directory = tmp_path_factory.mktemp("certificates")
    files = {name: str(directory / name) for name in ("ca", "server", "client", "key")}
    authority = trustme.CA()
    authority.cert_pem.write_to_path(files["ca"])
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(files["server"])
    # Erlang takes no certificate whose alternative names are critical and empty.
    client = authority.issue_cert("ingest.example", common_name="ingest")
    client.cert_chain_pems[0].write_to_path(files["client"])
    client.private_key_pem.write_to_path(files["key"])
    (port,) = free_ports(1)
    conf = f"""listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.cacertfile = {files["ca"]}
ssl_options.certfile = {files["server"]}
ssl_options.keyfile = {files["server"]}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
"""
    try:
        server = RabbitServer(conf, ["rabbitmq_auth_mechanism_ssl"])
    except Unavailable as error:
        pytest.skip(f"RabbitMQ: {error}")
    server.api("PUT", "users/ingest", {"password_hash": "", "tags": ""})
    server.api("PUT", "permissions/%2F/ingest", {"configure": ".*", "write": ".*", "read": ".*"})
    made = {
        "INGEST_BROKER_URL": f"amqps://127.0.0.1:{port}/?auth=external",
        "INGEST_BROKER_CAFILE": files["ca"],
        "INGEST_BROKER_CERTFILE": files["client"],
        "INGEST_BROKER_KEYFILE": files["key"],
        "INGEST_BROKER_USER": "ingest",
        "INGEST_STORE_URL": aerospike.url,
        "INGEST_MANAGEMENT_URL": server.management_url.replace("//", "//guest:guest@"),
    }
    done = run_ingest("topology", "apply", env=made, directory=directory)
    assert done.returncode == 0, done.stderr
    yield made
    server.stop()


def loaded(env: dict[str, str], **changes: str) -> settings.Settings:
    return settings.load(**{name.removeprefix("INGEST_").lower(): value for name, value in (env | changes).items()})


async def test_what_the_shim_admits_the_worker_believes(env: dict[str, str], tmp_path: Path) -> None:
    """POST, 202, the event downstream: published under the certificate's user, who is trusted; no dead letter."""
    for words in (("customer", "add", CUSTOMER), ("key", "create", CUSTOMER)):
        done = run_ingest(*words, "--json", env=env, directory=tmp_path)
        assert done.returncode == 0, done.stderr
    key = json.loads(done.stdout)["api_key"]
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with Ingest("serve", "--port", str(port), directory=tmp_path, env=env), Ingest("work", directory=tmp_path, env=env):
        wait_ready(url)
        answer = httpx.post(f"{url}/v1/tasks", json=TASK, headers={"Authorization": f"Bearer {key}"}, timeout=20)
        assert answer.status_code == 202, answer.text
        broker = await broker_backend(loaded(env)).open("test")
        consumer = await broker.consumer(topology.CONSENSUS_TASKS, 10)
        (event,) = await asyncio.wait_for(consumer.receive(), 20)
        await consumer.ack([event])
        await consumer.close()
        await broker.close()
    assert event.message_id == f"{answer.json()['task_id']}:accepted"
    assert event.user_id == "ingest"
    dead = run_ingest("dlq", "list", "--json", env=env, directory=tmp_path)
    assert (dead.returncode, json.loads(dead.stdout)) == (0, [])


async def test_another_name_than_the_certificates(env: dict[str, str]) -> None:
    """RabbitMQ refuses it: nothing is taken for published."""
    broker = await broker_backend(loaded(env, INGEST_BROKER_USER="somebody", INGEST_CONFIRM_TIMEOUT="2")).open("test")
    publisher = await broker.publisher()
    lost = Message(exchange=topology.EVENTS, routing_key="task.accepted.x.none", body=b"{}", message_id="m")
    assert await publisher.publish([lost]) == [PublishOutcome.UNKNOWN]
    await broker.close()


def test_doctor_knows_the_user(env: dict[str, str], tmp_path: Path) -> None:
    """It has the rights of the service, which would be an error in any other user."""
    shown = run_ingest("doctor", env=env, directory=tmp_path)
    assert "user ingest" not in shown.stdout
    assert "0 errors" in shown.stdout
