"""`ingest doctor` on servers that are well and badly configured."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.checks import effective_findings
from ingest.broker.rabbitmq.checks import findings as rabbitmq_findings
from ingest.broker.rabbitmq.management import Management
from ingest.domain import topology
from ingest.domain.findings import Finding, Severity
from ingest.store.aerospike import checks as aerospike_checks
from ingest.store.aerospike.info import AerospikeView, Node
from tests.e2e.processes import run_ingest
from tests.servers import AerospikeServer, RabbitServer, Unavailable

ERROR, WARNING, OK = Severity.ERROR, Severity.WARNING, Severity.OK
PRODUCER = {"configure": "^$", "write": "^asg[.]submissions$", "read": "^$"}


def said(found: list[Finding], severity: Severity, text: str) -> bool:
    """Whether there is such a finding, with something to do about it unless all is well."""
    return any(each.severity is severity and text in each.what and bool(each.do) != (severity is OK) for each in found)


@pytest.fixture
def badly_configured() -> Iterator[AerospikeServer]:
    if os.environ.get("INGEST_TEST_AEROSPIKE_URL"):
        pytest.skip("the Aerospike given is not ours to configure")
    try:
        server = AerospikeServer(
            "512M",
            nsup=0,
            storage="evict-used-pct 50",
            namespace="set ledger {\n stop-writes-count 1000\n }\n default-ttl 0",
        )
    except Unavailable as error:
        pytest.skip(f"Aerospike: {error}")
    yield server
    server.stop()


async def nodes(url: str) -> list[Node]:
    view = AerospikeView.open(url, 3.0)
    try:
        return await view.nodes()
    finally:
        await view.close()


async def test_a_badly_configured_aerospike(badly_configured: AerospikeServer, tmp_path: Path) -> None:
    """Each mistake is found, exit code 1; the command shows the same."""
    found = aerospike_checks.findings(await nodes(badly_configured.url), "test")
    assert said(
        found, ERROR, "nsup-period is 0: records with a time to live, as every record of the ledger has, are refused"
    )
    assert said(found, WARNING, "storage-engine.evict-used-pct 50")
    assert said(found, WARNING, "replication-factor is 1")
    assert said(found, WARNING, "only in memory")
    assert said(found, WARNING, "set ledger has stop-writes-count 1000")
    assert said(found, OK, "clocks agree")
    env = {"INGEST_STORE_URL": badly_configured.url}
    done = await asyncio.to_thread(run_ingest, "doctor", env=env, directory=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "nsup-period is 0" in done.stdout
    assert "a write with a time to live is refused" in done.stdout


async def test_one_node_that_is_well(aerospike: AerospikeServer) -> None:
    """No error, also where the server finds fault with the machine and says so first in its statistics."""
    (node,) = await nodes(aerospike.url)
    assert node.statistics["cluster_size"] == "1"
    assert [each for each in aerospike_checks.findings([node], "test") if each.severity is ERROR] == []


async def test_an_enterprise_node_without_commit_to_device(aerospike: AerospikeServer) -> None:
    """It could have it; the Community Edition refuses to start with it."""
    (node,) = await nodes(aerospike.url)
    namespace = node.namespace | {"storage-engine": "device"}
    changed = msgspec.structs.replace(node, edition="Enterprise", namespace=namespace)
    assert said(aerospike_checks.findings([changed], "test"), WARNING, "commit-to-device is false")


async def test_a_namespace_that_is_not_there(aerospike: AerospikeServer) -> None:
    """The ones that are there are named."""
    url = aerospike.url.replace("/test", "/production")
    found = aerospike_checks.findings(await nodes(url), "production")
    assert said(found, ERROR, "has no namespace production; it has test")


async def test_clocks(aerospike: AerospikeServer) -> None:
    """This machine an hour ahead of the cluster, and 4 seconds."""
    seen = await nodes(aerospike.url)
    clock = seen[0].clock
    assert clock is not None
    assert said(aerospike_checks.findings(seen, "test", lambda: clock + 3600.0), ERROR, "clocks are 3598.5 s apart")
    assert said(aerospike_checks.findings(seen, "test", lambda: clock + 4.0), WARNING, "clocks are 2.5 s apart")
    assert said(aerospike_checks.findings(seen, "test", lambda: clock + 1.5), OK, "clocks agree")


@pytest.mark.parametrize(
    ("changes", "severity", "says"),
    [
        ({"stop_writes": "true"}, ERROR, "refuses writes"),
        ({"evicted_objects": "12345"}, ERROR, "evicted before they expire (12,345 so far)"),
        ({"data_used_pct": "65"}, WARNING, "is nearly full: 65 % used"),
        ({"data_avail_pct": "3"}, WARNING, "3 % free to write"),
        ({"dead_partitions": "7"}, ERROR, "7 dead partitions"),
        ({"replication-factor": "2"}, WARNING, "1 of 2 copies"),
        ({"nsup-period": "0", "allow-ttl-without-nsup": "true"}, ERROR, "records never expire"),
        ({"strong-consistency": "true"}, OK, "strong consistency"),
        ({"storage-engine": "device"}, WARNING, "can lose the claims of the last 1000 ms"),
        (
            {"storage-engine": "device", "storage-engine.flush-max-ms": "100"},
            WARNING,
            "lose the claims of the last 100 ms",
        ),
        ({"storage-engine": "device", "replication-factor": "2"}, OK, "that no other node has"),
    ],
)
async def test_states_of_a_cluster(
    aerospike: AerospikeServer, changes: dict[str, str], severity: Severity, says: str
) -> None:
    """A real node's answer, with what cannot be brought about here."""
    (node,) = await nodes(aerospike.url)
    changed = msgspec.structs.replace(node, namespace=node.namespace | changes)
    assert said(aerospike_checks.findings([changed], "test"), severity, says)


async def test_two_halves_of_a_cluster(aerospike: AerospikeServer) -> None:
    """Two nodes answer, and each sees itself alone."""
    (node,) = await nodes(aerospike.url)
    assert said(aerospike_checks.findings([node, node], "test"), ERROR, "the cluster is split")


@pytest.fixture
def management(rabbitmq: RabbitServer, rabbitmq_url: str) -> Management:
    return Management(rabbitmq.management_url.replace("//", "//guest:guest@"), vhost_of(rabbitmq_url))


def vhost_of(url: str) -> str:
    return url.rpartition("/")[2]


async def check(url: str, management: Management | None) -> list[Finding]:
    return await rabbitmq_findings(RabbitBroker(url), management, frozenset({"guest"}), 600)


async def test_a_broker_as_it_should_be(rabbitmq_url: str, management: Management) -> None:
    """Right after `topology apply`: no error; that it is one node and the user is guest are warnings."""
    broker = RabbitBroker(rabbitmq_url)
    await broker.declare()
    management.apply_policies()
    found = await check(rabbitmq_url, management)
    assert [each for each in found if each.severity is ERROR] == []
    assert {each.what.split(":")[0] for each in found if each.severity is WARNING} == {
        "only one RabbitMQ node",
        "the service's user is guest, whose password is public",
    }
    assert said(found, OK, "exchanges, queue types and bindings match the topology")


async def test_a_badly_configured_broker(rabbitmq: RabbitServer, rabbitmq_url: str, management: Management) -> None:
    """A queue of another type, one missing, a binding missing, no policies, one that drops messages."""
    vhost = vhost_of(rabbitmq_url)
    await RabbitBroker(rabbitmq_url).declare()
    for queue in (topology.INGEST_TASKS, topology.INGEST_DEAD):
        rabbitmq.api("DELETE", f"queues/{vhost}/{queue}")
    rabbitmq.api("PUT", f"queues/{vhost}/{topology.INGEST_TASKS}", {"durable": True, "arguments": {}})
    rabbitmq.api("DELETE", f"bindings/{vhost}/e/asg.submissions/q/ingest.batches/batch.submitted.*")
    drops = {"pattern": "batches", "apply-to": "queues", "definition": {"message-ttl": 1000, "max-length": 10}}
    rabbitmq.api("PUT", f"policies/{vhost}/drops", drops)
    found = await check(rabbitmq_url, management)
    assert said(found, ERROR, "queue ingest.tasks is of type classic, it must be quorum")
    assert said(found, ERROR, "queue ingest.batches is not bound to asg.submissions")
    assert said(found, ERROR, "queue ingest.dead is missing")
    assert said(found, ERROR, "ingest.tasks: policy dead-letter-strategy is None, it must be at-least-once")
    assert said(found, ERROR, "ingest.batches has message-ttl 1000")
    assert said(found, ERROR, "ingest.batches has a maximum length and drops its oldest")
    assert said(found, WARNING, "ingest.tasks: delivery-limit is not set")


@pytest.mark.parametrize(
    ("queue", "effective", "major", "severity", "says"),
    [
        (topology.INGEST_DEAD, {}, 4, ERROR, "delivery-limit is 20: a dead letter that is read so often is dropped"),
        (
            topology.INGEST_DEAD,
            {"delivery-limit": 3},
            3,
            ERROR,
            "delivery-limit is 3: a dead letter that is read so often is dropped",
        ),
        (topology.CONSENSUS_TASKS, {}, 4, ERROR, "delivery-limit is 20: an event that its consumer returns more often"),
        (topology.WEBHOOK_DISPATCH, {"delivery-limit": 5}, 3, ERROR, "delivery-limit is 5: an event that its consumer"),
        (topology.WEBHOOK_DISPATCH, {"consumer-timeout": 60_000}, 3, ERROR, "consumer-timeout is 60 s"),
        (topology.WEBHOOK_DISPATCH, {"max-length": 9}, 3, ERROR, "drops its oldest"),
    ],
)
def test_what_other_versions_and_policies_make_of_a_queue(
    queue: str, effective: dict[str, Any], major: int, severity: Severity, says: str
) -> None:
    """What cannot be set on the RabbitMQ that is here."""
    assert said(list(effective_findings(queue, effective, major, 600)), severity, says)


def test_what_is_no_danger_on_rabbitmq_3() -> None:
    """No limit is its default: nothing is dropped."""
    for queue in (topology.INGEST_DEAD, topology.CONSENSUS_TASKS):
        assert [each for each in effective_findings(queue, {}, 3, 600) if each.severity is not OK] == []


async def test_a_consumers_own_limit(rabbitmq: RabbitServer, rabbitmq_url: str, management: Management) -> None:
    """Events may have another one where a dead-letter exchange takes what exceeds it; alone it drops them."""
    await RabbitBroker(rabbitmq_url).declare()
    management.apply_policies()
    assert management.differences() == []
    own: list[tuple[dict[str, str], bool]] = [({}, True), ({"dead-letter-exchange": "webhook.poisoned"}, False)]
    for more, finds in own:
        definition = {"delivery-limit": 5, **more}
        policy = {"pattern": "^webhook", "apply-to": "queues", "priority": 5, "definition": definition}
        rabbitmq.api("PUT", f"policies/{vhost_of(rabbitmq_url)}/own", policy)
        assert bool(management.differences()) is finds
        found = await check(rabbitmq_url, management)
        assert said(found, ERROR, "webhook.dispatch: delivery-limit is 5: an event that its consumer returns") is finds
        assert said(found, OK, "webhook.dispatch: the policies are correct") is not finds


async def test_users_that_may_too_much(rabbitmq: RabbitServer, rabbitmq_url: str, management: Management) -> None:
    """A producer without topic permissions, one that reads queues; one that is as it should be is not named."""
    vhost = vhost_of(rabbitmq_url)
    await RabbitBroker(rabbitmq_url).declare()
    rights: dict[str, dict[str, str]] = {
        "wide": PRODUCER,
        "curious": PRODUCER | {"read": ".*"},
        "loose": PRODUCER,
        "fine": PRODUCER,
    }
    for name, permissions in rights.items():
        rabbitmq.api("PUT", f"users/{vhost}-{name}", {"password": "pw", "tags": ""})
        rabbitmq.api("PUT", f"permissions/{vhost}/{vhost}-{name}", permissions)
    for name, pattern in (("fine", r"^(task|batch)\.submitted\.{username}$"), ("loose", "submitted")):
        topic = {"exchange": topology.SUBMISSIONS, "write": pattern, "read": "^$"}
        rabbitmq.api("PUT", f"topic-permissions/{vhost}/{vhost}-{name}", topic)
    try:
        found = await check(rabbitmq_url, management)
        assert said(found, ERROR, "-wide may submit for any customer")
        assert said(found, ERROR, "-loose may submit for any customer")
        assert said(found, ERROR, "-curious may read asg.submissions, asg.events, asg.dead, ingest.tasks")
        assert not any("-fine" in each.what for each in found)
    finally:
        for name in rights:
            rabbitmq.api("DELETE", f"users/{vhost}-{name}")


async def test_an_alarm(rabbitmq: RabbitServer, rabbitmq_url: str, management: Management) -> None:
    """Memory: publishers are blocked, and the doctor says so."""
    if not rabbitmq.controllable:
        pytest.skip("the RabbitMQ given is not ours to disturb")
    await asyncio.to_thread(rabbitmq.ctl, "eval", "vm_memory_monitor:set_vm_memory_high_watermark(0.00001).")
    try:
        async with asyncio.timeout(20):
            while not said(await check(rabbitmq_url, management), ERROR, "out of memory"):
                await asyncio.sleep(0.5)
    finally:
        await asyncio.to_thread(rabbitmq.ctl, "eval", "vm_memory_monitor:set_vm_memory_high_watermark(0.6).")
        async with asyncio.timeout(20):
            while said(await check(rabbitmq_url, management), ERROR, "out of memory"):
                await asyncio.sleep(0.5)


async def test_what_cannot_be_seen_is_said(rabbitmq: RabbitServer, rabbitmq_url: str) -> None:
    """No management URL; a wrong password of its; a user without the tag `administrator`; nobody there."""
    await RabbitBroker(rabbitmq_url).declare()
    assert said(await check(rabbitmq_url, None), WARNING, "INGEST_MANAGEMENT_URL is not set")
    wrong = Management(rabbitmq.management_url.replace("//", "//guest:topsecret@"), vhost_of(rabbitmq_url))
    found = await check(rabbitmq_url, wrong)
    assert said(found, WARNING, "not checked")
    assert "topsecret" not in str(found)
    name = f"{vhost_of(rabbitmq_url)}-m"
    rabbitmq.api("PUT", f"users/{name}", {"password": "pw", "tags": "monitoring"})
    try:
        rabbitmq.api("PUT", f"permissions/{vhost_of(rabbitmq_url)}/{name}", PRODUCER)
        monitor = Management(rabbitmq.management_url.replace("//", f"//{name}:pw@"), vhost_of(rabbitmq_url))
        found = await check(rabbitmq_url, monitor)
        assert said(found, OK, "not checked, because that needs the tag `administrator`")
        assert said(found, OK, "no memory or disk alarm")
    finally:
        rabbitmq.api("DELETE", f"users/{name}")
    (one,) = await check("amqp://guest:topsecret@127.0.0.1:1/", None)
    assert one.severity is ERROR
    assert "topsecret" not in one.what


def doctor(directory: Path, *arguments: str, **env: str) -> tuple[int, list[dict[str, Any]], str]:
    done: subprocess.CompletedProcess[str] = run_ingest("doctor", "--json", *arguments, env=env, directory=directory)
    return done.returncode, json.loads(done.stdout), done.stdout


def test_the_embedded_default(tmp_path: Path) -> None:
    """Fine before the first start, exit code 0 also with --strict; a damaged file and a typing error are found."""
    assert doctor(tmp_path, "--strict")[0] == 0
    (tmp_path / ".ingest").mkdir()
    (tmp_path / ".ingest" / "queue.db").write_bytes(b"not a database" * 100)
    code, found, _ = doctor(tmp_path, INGEST_BROKER_ULR="x")
    assert code == 1
    assert any("queue.db is damaged" in each["what"] for each in found)
    assert any("INGEST_BROKER_ULR is not a setting" in each["what"] for each in found)
    (tmp_path / ".ingest" / "queue.db").unlink()
    assert doctor(tmp_path, INGEST_BROKER_ULR="x")[0] == 0
    assert doctor(tmp_path, "--strict", INGEST_BROKER_ULR="x")[0] == 1


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"INGEST_PORT": "70000"}, "INGEST_PORT"),
        ({"INGEST_STORE_URL": "redis://h/0"}, "store"),
        ({"INGEST_BROKER_URL": "http://user:topsecret@h/"}, "INGEST_BROKER_URL must begin with"),
        ({"INGEST_BROKER_URL": "amqp://user:topsecret@203.0.113.1:1/"}, "without TLS"),
    ],
)
def test_wrong_settings_are_findings(tmp_path: Path, env: dict[str, str], says: str) -> None:
    """Not a crash, and without the password."""
    code, found, text = doctor(tmp_path, **env)
    assert code == 1
    assert any(says in each["what"] + each["area"] for each in found)
    assert "topsecret" not in text
