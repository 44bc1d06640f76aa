"""What `ingest doctor` finds on RabbitMQ servers that are configured well and badly."""

import asyncio
from typing import Any

import pytest

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.checks import findings as rabbitmq_findings
from ingest.broker.rabbitmq.management import Management
from ingest.broker.rabbitmq.patterns import only
from ingest.broker.rabbitmq.provisioning import apply_topology
from ingest.broker.rabbitmq.topology_checks import policy_findings
from ingest.domain import topology
from ingest.domain.findings import Finding, Severity
from tests.servers import RabbitServer
from tests.support.doctor_findings import ERROR, OK, WARNING, errors, reports

PRODUCER = {"configure": "^$", "write": "^asg[.]submissions$", "read": "^$"}


@pytest.fixture
def management(rabbitmq: RabbitServer, rabbitmq_url: str) -> Management:
    return Management(rabbitmq.management_url.replace("//", "//guest:guest@"), vhost_of(rabbitmq_url))


def vhost_of(url: str) -> str:
    return url.rpartition("/")[2]


async def check_rabbitmq(
    url: str, management: Management | None, trusted_users: frozenset[str] = frozenset()
) -> list[Finding]:
    return await rabbitmq_findings(RabbitBroker(url), management, trusted_users, 600)


async def test_broker_has_no_errors_after_topology_apply(rabbitmq_url: str, management: Management) -> None:
    """The warnings are about the test server: it is a single node, and the user is guest."""
    broker = RabbitBroker(rabbitmq_url)
    await apply_topology(broker, management)
    findings = await check_rabbitmq(rabbitmq_url, management)
    assert errors(findings) == []
    warnings = {finding.what.split(":")[0] for finding in findings if finding.severity is WARNING}
    assert warnings - {"RabbitMQ 3 is out of support, and a direct producer can stop its queues"} == {
        "only one RabbitMQ node",
        "the service's user is guest, whose password is public",
    }
    assert reports(findings, OK, "exchanges, queue types and bindings match the topology")


async def test_every_mistake_in_the_broker_topology_is_reported(
    rabbitmq: RabbitServer, rabbitmq_url: str, management: Management
) -> None:
    """A queue has another type, a queue and a binding are missing, and the only policy drops messages."""
    vhost = vhost_of(rabbitmq_url)
    await RabbitBroker(rabbitmq_url).declare_all(topology.QUEUES)
    for queue in (topology.INGEST_TASKS, topology.INGEST_DEAD):
        rabbitmq.api("DELETE", f"queues/{vhost}/{queue}")
    rabbitmq.api("PUT", f"queues/{vhost}/{topology.INGEST_TASKS}", {"durable": True, "arguments": {}})
    rabbitmq.api("DELETE", f"bindings/{vhost}/e/asg.unmatched/q/ingest.batches/batch.submitted.*")
    drops = {"pattern": "batches", "apply-to": "queues", "definition": {"message-ttl": 1000, "max-length": 10}}
    rabbitmq.api("PUT", f"policies/{vhost}/drops", drops)
    findings = await check_rabbitmq(rabbitmq_url, management)
    assert reports(findings, ERROR, "queue ingest.tasks is of type classic, it must be quorum")
    assert reports(findings, ERROR, "queue ingest.batches is not bound to asg.unmatched")
    assert reports(findings, ERROR, "missing: queue ingest.dead")
    assert reports(findings, ERROR, "no policy is set for ingest.http.0, ingest.http.1, ingest.http.bulk")
    assert reports(findings, ERROR, "ingest.batches: dead-letter-exchange is not set instead of asg.dead, dead-letter-")
    assert reports(findings, ERROR, "ingest.batches has message-ttl 1000")
    assert reports(findings, ERROR, "ingest.batches has a maximum length and drops its oldest")
    assert reports(findings, WARNING, "ingest.batches: delivery-limit is not set")


async def test_missing_topology_is_one_error_and_missing_policies_are_one_error(
    rabbitmq_url: str, management: Management
) -> None:
    """One command corrects each. The policies of queues that do not exist are not reported."""
    (missing,) = errors(await check_rabbitmq(rabbitmq_url, management))
    assert missing.what.startswith(
        "missing: exchange asg.submissions, exchange asg.events, exchange asg.dead, exchange asg.unmatched"
    )
    (missing,) = errors(await check_rabbitmq(rabbitmq_url, None))
    assert missing.what == (
        "missing: queue ingest.http.0, queue ingest.http.1, queue ingest.http.bulk, queue ingest.heavy.0, queue "
        "ingest.heavy.bulk, queue ingest.tasks, queue ingest.batches, queue consensus.tasks, queue webhook.dispatch, "
        "queue ingest.dead, queue consensus.tasks.parked, queue webhook.dispatch.parked"
    )
    await RabbitBroker(rabbitmq_url).declare()
    unmatched, policies = errors(await check_rabbitmq(rabbitmq_url, management))
    assert unmatched.what == "missing: exchange asg.unmatched"
    assert policies.what.startswith("no policy is set for ingest.http.0, ingest.http.1, ingest.http.bulk")


@pytest.mark.parametrize(
    ("queue", "effective", "major", "severity", "text"),
    [
        (topology.INGEST_TASKS, {}, 3, ERROR, "no policy is set for ingest.tasks: a submission that fails too"),
        (topology.INGEST_DEAD, {}, 4, ERROR, "events and dead letters are dropped after 20 deliveries"),
        (topology.INGEST_DEAD, {"max-length": 9}, 4, ERROR, "delivery-limit is 20: a dead letter that is read so"),
        (
            topology.INGEST_DEAD,
            {"delivery-limit": 3},
            3,
            ERROR,
            "delivery-limit is 3: a dead letter that is read so often is dropped",
        ),
        (topology.CONSENSUS_TASKS, {"max-length": 9}, 4, ERROR, "delivery-limit is 20: an event that its consumer"),
        (topology.WEBHOOK_DISPATCH, {"delivery-limit": 5}, 3, ERROR, "delivery-limit is 5: an event that its consumer"),
        (topology.WEBHOOK_DISPATCH, {"consumer-timeout": 60_000}, 3, ERROR, "consumer-timeout is 60 s"),
        (topology.WEBHOOK_DISPATCH, {"max-length": 9}, 3, ERROR, "drops its oldest"),
    ],
)
def test_effective_policy_that_makes_rabbitmq_drop_messages_is_reported(
    queue: str, effective: dict[str, Any], major: int, severity: Severity, text: str
) -> None:
    """The test server has one version only, so the policies and the version are arguments here."""
    assert reports(list(policy_findings({queue: effective}, major, 600)), severity, text)


@pytest.mark.parametrize("queue", [topology.INGEST_DEAD, topology.CONSENSUS_TASKS])
def test_queue_without_delivery_limit_has_only_ok_findings_on_rabbitmq_3(queue: str) -> None:
    """RabbitMQ 3 has no limit by default, so it drops nothing."""
    assert [finding for finding in policy_findings({queue: {}}, 3, 600) if finding.severity is not OK] == []


async def test_delivery_limit_of_an_event_queue_is_an_error_unless_it_has_a_dead_letter_exchange(
    rabbitmq: RabbitServer, rabbitmq_url: str, management: Management
) -> None:
    """Without a dead-letter exchange, RabbitMQ drops the events that exceed the limit."""
    await apply_topology(RabbitBroker(rabbitmq_url), management)
    assert management.differences() == []
    cases: list[tuple[dict[str, str], bool]] = [({}, True), ({"dead-letter-exchange": "webhook.poisoned"}, False)]
    for dead_lettering, is_error in cases:
        definition = {"delivery-limit": 5, **dead_lettering}
        policy = {"pattern": "^webhook", "apply-to": "queues", "priority": 5, "definition": definition}
        rabbitmq.api("PUT", f"policies/{vhost_of(rabbitmq_url)}/own", policy)
        assert bool(management.differences()) is is_error
        findings = await check_rabbitmq(rabbitmq_url, management)
        error = "webhook.dispatch: delivery-limit is 5: an event that its consumer returns"
        assert reports(findings, ERROR, error) is is_error
        correct = f"policies are correct: {', '.join(topology.INGEST_QUEUES)}, consensus.tasks, webhook.dispatch"
        assert reports(findings, OK, correct) is not is_error


async def test_users_with_too_many_permissions_are_reported(
    rabbitmq: RabbitServer, rabbitmq_url: str, management: Management
) -> None:
    """The user whose permissions are correct is not mentioned."""
    vhost = vhost_of(rabbitmq_url)
    await RabbitBroker(rabbitmq_url).declare()
    permissions_by_user: dict[str, dict[str, str]] = {
        "no-topics": PRODUCER,
        "reader": PRODUCER | {"read": ".*"},
        "feedback": PRODUCER | {"read": "^feedback[.]"},
        "consumer": {"configure": "", "write": "", "read": ".*"},
        "loose-topics": PRODUCER,
        "loose-start": PRODUCER,
        "other-name": PRODUCER,
        "correct": PRODUCER,
        "line-break": PRODUCER,
    }
    for name, permissions in permissions_by_user.items():
        rabbitmq.api("PUT", f"users/{vhost}-{name}", {"password": "pw", "tags": ""})
        rabbitmq.api("PUT", f"permissions/{vhost}/{vhost}-{name}", permissions)
    patterns = {
        "correct": r"^(task|batch)\.submitted\.{username}\z",
        "line-break": r"^(task|batch)\.submitted\.{username}$",
        "loose-topics": "submitted",
        "loose-start": r"submitted\.{username}\z",
        "other-name": r"^task\.submitted\.acme$",
    }
    for name, pattern in patterns.items():
        topic = {"exchange": topology.SUBMISSIONS, "write": pattern, "read": "^$"}
        rabbitmq.api("PUT", f"topic-permissions/{vhost}/{vhost}-{name}", topic)
    for limit, value in (("max-connections", 20), ("max-channels", 200)):
        rabbitmq.api("PUT", f"user-limits/{vhost}-correct/{limit}", {"value": value})
    try:
        findings = await check_rabbitmq(rabbitmq_url, management)
        assert reports(findings, ERROR, "-no-topics may submit for any customer")
        assert reports(findings, ERROR, "-loose-topics may submit for any customer")
        assert reports(findings, ERROR, "-loose-start may publish to the queues of the shim")
        assert reports(findings, ERROR, "-reader may read asg.submissions, asg.events, asg.dead, asg.unmatched")
        (reader,) = [finding.do for finding in findings if "-reader may read" in finding.what]
        command = f"rabbitmqctl set_permissions -p {vhost} {vhost}-reader '^$' '^asg[.]submissions$'"
        assert reader == f"{command} '^feedback[.]{vhost}-reader$' (if it has other queues, add them to the patterns)"
        assert reports(findings, ERROR, "-feedback may read feedback.ingest-doctor-other-customer")
        (consumer,) = [finding.do for finding in findings if "-consumer may read" in finding.what]
        assert f"-consumer '' '' '{only(*topology.EVENT_QUEUES)}'" in consumer
        assert reports(findings, ERROR, "-other-name may submit, but not for a customer of its own name")
        assert reports(findings, WARNING, "-line-break may submit with a routing key that ends with a line break")
        assert not any("-correct" in finding.what for finding in findings)
    finally:
        for name in permissions_by_user:
            rabbitmq.api("DELETE", f"users/{vhost}-{name}")


async def test_producers_without_limits_of_connections_and_channels_are_a_warning(
    rabbitmq: RabbitServer, rabbitmq_url: str, management: Management
) -> None:
    """A user that may not submit needs none. -1 is no limit."""
    vhost = vhost_of(rabbitmq_url)
    await RabbitBroker(rabbitmq_url).declare()
    limits: dict[str, dict[str, int]] = {
        "none": {},
        "unlimited": {"max-connections": -1, "max-channels": -1},
        "connections": {"max-connections": 20},
        "both": {"max-connections": 20, "max-channels": 200},
        "consumer": {},
    }
    topic = {"exchange": topology.SUBMISSIONS, "write": r"^(task|batch)\.submitted\.{username}\z", "read": "^$"}
    for name, values in limits.items():
        user = f"{vhost}-{name}"
        rabbitmq.api("PUT", f"users/{user}", {"password": "pw", "tags": ""})
        write = "^$" if name == "consumer" else PRODUCER["write"]
        rabbitmq.api("PUT", f"permissions/{vhost}/{user}", PRODUCER | {"write": write})
        rabbitmq.api("PUT", f"topic-permissions/{vhost}/{user}", topic)
        for limit, value in values.items():
            rabbitmq.api("PUT", f"user-limits/{user}/{limit}", {"value": value})
    try:
        findings = await check_rabbitmq(rabbitmq_url, management)
        about = {finding.what: finding.do for finding in findings if "no limit of" in finding.what}
        both = '\'{"max-connections": 20, "max-channels": 200}\''
        assert about == {
            f"producer {vhost}-none has no limit of connections and channels: it can use up those of RabbitMQ": (
                f"rabbitmqctl set_user_limits {vhost}-none {both}"
            ),
            f"producer {vhost}-unlimited has no limit of connections and channels: it can use up those of RabbitMQ": (
                f"rabbitmqctl set_user_limits {vhost}-unlimited {both}"
            ),
            f"producer {vhost}-connections has no limit of channels: it can use up those of RabbitMQ": (
                f"rabbitmqctl set_user_limits {vhost}-connections '{{\"max-channels\": 200}}'"
            ),
        }
        assert {finding.severity for finding in findings if finding.what in about} == {WARNING}
    finally:
        for name in limits:
            rabbitmq.api("DELETE", f"users/{vhost}-{name}")


@pytest.mark.parametrize(
    ("shim", "trusted", "untrusted"),
    [
        ("shim", set(), "shim"),
        ("shim", {"guest"}, "shim"),
        ("shim", {"shim"}, "guest"),
        ("shim", {"guest", "shim"}, ""),
        ("guest", set(), ""),
    ],
)
async def test_user_of_a_connected_shim_or_worker_whom_the_workers_do_not_trust_is_an_error(
    rabbitmq: RabbitServer, rabbitmq_url: str, management: Management, shim: str, trusted: set[str], untrusted: str
) -> None:
    """A worker trusts its own user unless INGEST_TRUSTED_USERS is set. It publishes submissions again, too."""
    vhost = vhost_of(rabbitmq_url)
    users = {"guest": "guest", "shim": f"{vhost}-shim", "": "none"}
    rabbitmq.api("PUT", f"users/{users['shim']}", {"password": "pw", "tags": ""})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    rabbitmq.api("PUT", f"permissions/{vhost}/{users['shim']}", everything)
    worker = RabbitBroker(rabbitmq_url, name="ingest work")
    shim_url = rabbitmq_url.replace("guest:guest", f"{users['shim']}:pw") if shim == "shim" else rabbitmq_url
    serve = RabbitBroker(shim_url, name="ingest serve")
    await worker.declare()
    try:
        await worker.publisher()
        await serve.publisher()
        findings: list[Finding] = []
        async with asyncio.timeout(20):
            while not reports(findings, ERROR, "trust") and not reports(
                findings, OK, "2 connections of shims and workers"
            ):
                await asyncio.sleep(0.3)
                findings = await check_rabbitmq(rabbitmq_url, management, frozenset(users[name] for name in trusted))
        about = [finding for finding in findings if "do not trust" in finding.what]
        assert [f"user {users[untrusted]} " in finding.what for finding in about] == [True] * bool(untrusted)
        assert all("INGEST_TRUSTED_USERS" in (finding.do or "") for finding in about)
    finally:
        await worker.close()
        await serve.close()
        rabbitmq.api("DELETE", f"users/{users['shim']}")


async def test_users_are_not_compared_if_nothing_is_connected(rabbitmq_url: str, management: Management) -> None:
    await RabbitBroker(rabbitmq_url).declare()
    findings = await check_rabbitmq(rabbitmq_url, management)
    assert reports(findings, OK, "no shim or worker is connected: there are no users to compare")


async def test_memory_alarm_is_an_error_until_it_ends(
    rabbitmq: RabbitServer, rabbitmq_url: str, management: Management
) -> None:
    if not rabbitmq.has_ctl:
        pytest.skip("these tests may not disturb the given RabbitMQ")
    await asyncio.to_thread(rabbitmq.ctl, "eval", "vm_memory_monitor:set_vm_memory_high_watermark(0.00001).")
    try:
        async with asyncio.timeout(20):
            while not reports(await check_rabbitmq(rabbitmq_url, management), ERROR, "out of memory"):
                await asyncio.sleep(0.5)
    finally:
        await asyncio.to_thread(rabbitmq.ctl, "eval", "vm_memory_monitor:set_vm_memory_high_watermark(0.6).")
        async with asyncio.timeout(20):
            while reports(await check_rabbitmq(rabbitmq_url, management), ERROR, "out of memory"):
                await asyncio.sleep(0.5)


async def test_missing_management_url_is_a_warning(rabbitmq_url: str) -> None:
    await RabbitBroker(rabbitmq_url).declare()
    findings = await check_rabbitmq(rabbitmq_url, None)
    assert reports(findings, WARNING, "INGEST_MANAGEMENT_URL is not set. Not checked: topology and policies, nodes and")


async def test_wrong_management_password_is_a_warning_that_hides_it(rabbitmq: RabbitServer, rabbitmq_url: str) -> None:
    await RabbitBroker(rabbitmq_url).declare()
    url = rabbitmq.management_url.replace("//", "//guest:topsecret@")
    findings = await check_rabbitmq(rabbitmq_url, Management(url, vhost_of(rabbitmq_url)))
    assert reports(findings, WARNING, "Not checked: topology and policies")
    assert "topsecret" not in str(findings)


async def test_unreachable_management_api_is_one_warning(rabbitmq_url: str) -> None:
    await RabbitBroker(rabbitmq_url).declare()
    findings = await check_rabbitmq(rabbitmq_url, Management("http://127.0.0.1:1", vhost_of(rabbitmq_url)))
    (warning,) = [finding for finding in findings if "is unreachable" in finding.what]
    assert "Not checked: topology and policies, nodes and alarms, queue members, permissions" in warning.what


async def test_checks_that_need_an_administrator_are_left_out_for_a_monitoring_user(
    rabbitmq: RabbitServer, rabbitmq_url: str
) -> None:
    await RabbitBroker(rabbitmq_url).declare()
    vhost = vhost_of(rabbitmq_url)
    name = f"{vhost}-m"
    rabbitmq.api("PUT", f"users/{name}", {"password": "pw", "tags": "monitoring"})
    try:
        rabbitmq.api("PUT", f"permissions/{vhost}/{name}", PRODUCER)
        management = Management(rabbitmq.management_url.replace("//", f"//{name}:pw@"), vhost)
        findings = await check_rabbitmq(rabbitmq_url, management)
        assert reports(findings, OK, "permissions are not checked: that needs a management user with the tag `admin")
        assert reports(findings, OK, "no memory or disk alarm")
    finally:
        rabbitmq.api("DELETE", f"users/{name}")


async def test_unreachable_broker_is_a_single_error_that_hides_the_password() -> None:
    (finding,) = await check_rabbitmq("amqp://guest:topsecret@127.0.0.1:1/", None)
    assert finding.severity is ERROR
    assert "Not checked: topology and policies" in finding.what
    assert "topsecret" not in finding.what
