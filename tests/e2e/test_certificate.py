"""The service authenticates to RabbitMQ with a client certificate instead of a password."""

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
    """Start a RabbitMQ that requires client certificates; return settings with that of the user `ingest`."""
    directory = tmp_path_factory.mktemp("certificates")
    files = {name: str(directory / name) for name in ("ca", "server", "client", "key")}
    authority = trustme.CA()
    authority.cert_pem.write_to_path(files["ca"])
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(files["server"])
    # Erlang rejects a certificate whose alternative names are critical and empty, so this one has a name.
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
    env = {
        "INGEST_BROKER_URL": f"amqps://127.0.0.1:{port}/?auth=external",
        "INGEST_BROKER_CAFILE": files["ca"],
        "INGEST_BROKER_CERTFILE": files["client"],
        "INGEST_BROKER_KEYFILE": files["key"],
        "INGEST_BROKER_USER": "ingest",
        "INGEST_STORE_URL": aerospike.url,
        "INGEST_MANAGEMENT_URL": server.management_url.replace("//", "//guest:guest@"),
    }
    done = run_ingest("topology", "apply", env=env, directory=directory)
    assert done.returncode == 0, done.stderr
    yield env
    server.stop()


def load_settings(env: dict[str, str], **changes: str) -> settings.Settings:
    return settings.load(**{name.removeprefix("INGEST_").lower(): value for name, value in (env | changes).items()})


async def test_worker_trusts_what_the_shim_publishes_as_the_user_of_the_certificate(
    env: dict[str, str], tmp_path: Path
) -> None:
    """A POST is answered 202, its event is published under that user, and nothing is dead-lettered."""
    for arguments in (("customer", "add", CUSTOMER), ("key", "create", CUSTOMER)):
        done = run_ingest(*arguments, "--json", env=env, directory=tmp_path)
        assert done.returncode == 0, done.stderr
    key = json.loads(done.stdout)["api_key"]
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with Ingest("serve", "--port", str(port), directory=tmp_path, env=env), Ingest("work", directory=tmp_path, env=env):
        wait_ready(url)
        answer = httpx.post(f"{url}/v1/tasks", json=TASK, headers={"Authorization": f"Bearer {key}"}, timeout=20)
        assert answer.status_code == 202, answer.text
        broker = await broker_backend(load_settings(env)).open("test")
        consumer = await broker.consumer(topology.CONSENSUS_TASKS, 10)
        (event,) = await asyncio.wait_for(consumer.receive(), 20)
        await consumer.ack([event])
        await consumer.close()
        await broker.close()
    assert (event.message_id or "").startswith(f"{answer.json()['task_id']}:accepted:")
    assert event.user_id == "ingest"
    dead = run_ingest("dlq", "list", "--json", env=env, directory=tmp_path)
    assert (dead.returncode, json.loads(dead.stdout)) == (0, [])


async def test_publish_is_not_confirmed_if_the_user_differs_from_the_certificate(env: dict[str, str]) -> None:
    """RabbitMQ refuses a message whose user_id is not that of the connection."""
    broker = await broker_backend(load_settings(env, INGEST_BROKER_USER="another", INGEST_CONFIRM_TIMEOUT="2")).open(
        "test"
    )
    publisher = await broker.publisher()
    message = Message(exchange=topology.EVENTS, routing_key="task.accepted.x.none", body=b"{}", message_id="m")
    assert await publisher.publish([message]) == [PublishOutcome.UNKNOWN]
    await broker.close()


def test_doctor_accepts_the_permissions_of_the_user_of_the_certificate(env: dict[str, str], tmp_path: Path) -> None:
    """Any other user with these permissions would be an error."""
    shown = run_ingest("doctor", env=env, directory=tmp_path)
    assert "user ingest" not in shown.stdout
    assert "other users are narrow enough" in shown.stdout
