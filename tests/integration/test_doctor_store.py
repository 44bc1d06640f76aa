"""What `ingest doctor` finds on Aerospike servers that are configured well and badly."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ingest import settings
from ingest.backends import store_backend
from ingest.domain.customers import Customer
from ingest.domain.findings import Severity
from ingest.store.aerospike import checks as aerospike_checks
from ingest.store.aerospike.info import AerospikeView, Node
from tests.e2e.processes import run_ingest
from tests.servers import AerospikeServer, Unavailable
from tests.support.doctor_findings import ERROR, OK, WARNING, errors, reports


@pytest.fixture
def badly_configured() -> Iterator[AerospikeServer]:
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


async def read_nodes(url: str) -> list[Node]:
    view = AerospikeView.open(url, 3.0)
    try:
        return await view.nodes()
    finally:
        await view.close()


async def test_every_mistake_in_the_aerospike_configuration_is_reported(
    badly_configured: AerospikeServer, tmp_path: Path
) -> None:
    """The command prints the findings and exits with code 1."""
    findings = aerospike_checks.findings(await read_nodes(badly_configured.url), "test")
    assert reports(
        findings, ERROR, "nsup-period is 0: records with a time to live, as every record of the ledger has, are refused"
    )
    assert reports(findings, WARNING, "storage-engine.evict-used-pct 50")
    assert reports(findings, WARNING, "replication-factor is 1")
    assert reports(findings, ERROR, "only in memory: if the node stops, everything is lost: customers, API keys")
    assert reports(findings, WARNING, "set ledger has stop-writes-count 1000")
    assert reports(findings, OK, "clocks agree")
    env = {"INGEST_STORE_URL": badly_configured.url}
    process = await asyncio.to_thread(run_ingest, "doctor", env=env, directory=tmp_path)
    assert process.returncode == 1, process.stderr
    assert "nsup-period is 0" in process.stdout
    assert "a write with a time to live is refused" in process.stdout


async def test_correctly_configured_aerospike_node_has_no_errors(aerospike: AerospikeServer) -> None:
    """The statistics are read correctly even if the server puts warnings about the machine before them."""
    (node,) = await read_nodes(aerospike.url)
    assert node.statistics["cluster_size"] == "1"
    on_disk = msgspec.structs.replace(node, namespace=node.namespace | {"storage-engine": "device"})
    assert errors(aerospike_checks.findings([on_disk], "test")) == []


async def test_enterprise_node_without_commit_to_device_is_a_warning(aerospike: AerospikeServer) -> None:
    """Only the Enterprise Edition has this option; the Community Edition does not start with it."""
    (node,) = await read_nodes(aerospike.url)
    namespace = node.namespace | {"storage-engine": "device"}
    changed = msgspec.structs.replace(node, edition="Enterprise", namespace=namespace)
    assert reports(aerospike_checks.findings([changed], "test"), WARNING, "commit-to-device is false")


async def test_finding_for_a_missing_namespace_names_the_existing_ones(aerospike: AerospikeServer) -> None:
    url = aerospike.url.replace("/test", "/production")
    findings = aerospike_checks.findings(await read_nodes(url), "production")
    assert reports(findings, ERROR, "has no namespace production; it has test")


async def test_severity_depends_on_how_far_the_clocks_are_apart(aerospike: AerospikeServer) -> None:
    """This machine is ahead of the cluster by an hour, by 4 s, and by 1.5 s."""
    nodes = await read_nodes(aerospike.url)
    clock = nodes[0].clock
    assert clock is not None
    assert reports(aerospike_checks.findings(nodes, "test", lambda: clock + 3600.0), ERROR, "clocks are 3598.5 s apart")
    assert reports(aerospike_checks.findings(nodes, "test", lambda: clock + 4.0), WARNING, "clocks are 2.5 s apart")
    assert reports(aerospike_checks.findings(nodes, "test", lambda: clock + 1.5), OK, "clocks agree")


@pytest.mark.parametrize(
    ("changes", "severity", "text"),
    [
        ({"stop_writes": "true"}, ERROR, "refuses writes"),
        ({"evicted_objects": "12345"}, ERROR, "evicted before they expire (12,345 so far)"),
        ({"data_used_pct": "65"}, WARNING, "is nearly full: 65 % used"),
        ({"data_avail_pct": "3"}, WARNING, "3 % free to write"),
        ({"dead_partitions": "7"}, ERROR, "7 dead partitions"),
        ({"replication-factor": "2"}, WARNING, "1 of 2 copies"),
        ({"nsup-period": "0", "allow-ttl-without-nsup": "true"}, ERROR, "records never expire"),
        (
            {"ns_cluster_size": "3", "write-commit-level-override": "master"},
            WARNING,
            "acknowledged before it has a second copy",
        ),
        ({"ns_cluster_size": "3"}, WARNING, "replication-factor is 1"),
        ({"effective_replication_factor": "2"}, WARNING, "only in memory: if all nodes stop, everything is lost"),
        ({"storage-engine.file[0]": "/data/ingest.dat"}, WARNING, "can lose the claims of the last"),
        ({"storage-engine.device[0]": "/dev/nvme1n1"}, WARNING, "can lose the claims of the last"),
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
async def test_state_of_the_cluster_is_reported_with_its_severity(
    aerospike: AerospikeServer, changes: dict[str, str], severity: Severity, text: str
) -> None:
    """The answer of a real node is changed to states that this node cannot be brought into."""
    (node,) = await read_nodes(aerospike.url)
    changed = msgspec.structs.replace(node, namespace=node.namespace | changes)
    assert reports(aerospike_checks.findings([changed], "test"), severity, text)


async def test_two_nodes_that_do_not_see_each_other_are_a_split_cluster(aerospike: AerospikeServer) -> None:
    (node,) = await read_nodes(aerospike.url)
    assert reports(aerospike_checks.findings([node, node], "test"), ERROR, "the cluster is split")


@pytest.mark.parametrize(
    ("least", "severity", "text"),
    [
        ("1", WARNING, "min-cluster-size is 1: every side of a split cluster takes writes"),
        ("2", OK, "min-cluster-size 2: the smaller side of a split cluster stops taking writes"),
    ],
)
async def test_min_cluster_size_below_the_majority_is_a_warning(
    aerospike: AerospikeServer, least: str, severity: Severity, text: str
) -> None:
    (node,) = await read_nodes(aerospike.url)
    changed = msgspec.structs.replace(node, service=node.service | {"min-cluster-size": least})
    assert reports(aerospike_checks.findings([changed] * 3, "test"), severity, text)
    assert not any("min-cluster-size" in finding.what for finding in aerospike_checks.findings([changed] * 2, "test"))


async def test_host_of_the_url_that_is_not_in_the_cluster_is_a_warning(aerospike: AerospikeServer) -> None:
    nodes = await read_nodes(aerospike.url)
    findings = aerospike_checks.findings(nodes, "test", hosts=3)
    assert reports(findings, WARNING, "INGEST_STORE_URL names 3 hosts, the cluster has 1 node")
    assert not any("hosts" in finding.what for finding in aerospike_checks.findings(nodes, "test", hosts=1))


async def test_store_without_customers_is_a_warning_until_one_is_added() -> None:
    """The store is a server of its own, because other tests add customers."""
    if os.environ.get("INGEST_TEST_AEROSPIKE_URL"):
        pytest.skip("the given Aerospike server may have customers")
    try:
        server = AerospikeServer("512M")
    except Unavailable as error:
        pytest.skip(f"Aerospike: {error}")
    backend = store_backend(settings.load(broker_url="amqp://h/", store_url=server.url))
    try:
        assert reports(await backend.findings(), WARNING, "there is no customer, so every submission is refused")
        store = await backend.open()
        await store.save_customer(Customer(cust_id="acme", disabled=True))
        assert reports(await backend.findings(), WARNING, "every customer is disabled, so every submission is refused")
        await store.save_customer(Customer(cust_id="other"))
        await store.close()
        assert reports(await backend.findings(), OK, "2 customers, 1 of them disabled")
    finally:
        server.stop()


async def test_missing_namespace_is_one_error(aerospike: AerospikeServer) -> None:
    url = aerospike.url.replace("/test", "/production")
    findings = await store_backend(settings.load(broker_url="amqp://h/", store_url=url)).findings()
    assert [finding.what.partition(" has ")[2] for finding in errors(findings)] == [
        "no namespace production; it has test"
    ]


async def test_unreachable_store_is_one_error_that_says_what_was_not_checked() -> None:
    url = "aerospike://127.0.0.1:1/test"
    finding, encryption = await store_backend(settings.load(broker_url="amqp://h/", store_url=url)).findings()
    assert encryption.severity is OK
    assert reports([finding], ERROR, "Not checked: its configuration, writes, customers")
