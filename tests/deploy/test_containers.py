"""The image and the compose file on a real Docker engine, if one answers that has the images they are made from."""

import json
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.deploy.compose_stack import SERVICES, STARTED, ComposeStack, docker, missing
from tests.servers.process import wait_until
from tests.support.summary import note_server

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    if why := missing():
        note_server("Containers", f"SKIPPED: {why}")
        pytest.skip(f"containers: {why}")
    note_server("Containers", docker("version", "--format", "Docker {{.Server.Version}}").strip())
    stack = ComposeStack(tmp_path_factory.mktemp("compose"))
    try:
        stack.start()
        yield stack
    finally:
        stack.down()


def test_task_is_answered_202_and_its_event_waits_for_consumers(stack: ComposeStack) -> None:
    stack.wait_until_accepted("the shim")

    def event_arrived() -> bool:
        status = json.loads(stack.ingest("status", "--json"))
        return any(queue["name"] == "consensus.tasks" and queue["ready"] for queue in status["broker"]["queues"])

    wait_until(event_arrived, "the worker")


@pytest.mark.parametrize("service", SERVICES)
def test_container_is_healthy_and_cannot_change_the_broker(stack: ComposeStack, service: str) -> None:
    wait_until(lambda: stack.is_healthy(service), service)
    for container in stack.containers(service):
        assert not [name for name in container["Config"]["Env"] if name.startswith("INGEST_MANAGEMENT_URL")]


@pytest.mark.parametrize("service", STARTED)
def test_container_is_read_only_and_unprivileged(stack: ComposeStack, service: str) -> None:
    for container in stack.containers(service):
        script = "id -u; grep CapBnd /proc/1/status; grep ' / ' /proc/mounts; touch /tmp/file"
        user, capabilities, root = docker("exec", container["Id"], "sh", "-c", script).splitlines()
        assert (user, capabilities.split()[1].strip("0")) == ("10001", "")
        assert root.split()[3].startswith("ro,")


@pytest.mark.parametrize(
    ("service", "pattern"),
    [("shim", "bin/[i]ngest"), ("worker", "bin/[i]ngest"), ("rabbitmq", "[r]abbit.boot"), ("aerospike", "[a]sd")],
)
def test_processes_may_open_many_files(stack: ComposeStack, service: str, pattern: str) -> None:
    """The process of a shim that only supervises the others does not raise the engine's limit."""
    script = f"for p in /proc/[0-9]*; do grep -qa '{pattern}' $p/cmdline && grep 'Max open files' $p/limits; done; true"
    for container in stack.containers(service):
        limits = [int(line.split()[3]) for line in docker("exec", container["Id"], "sh", "-c", script).splitlines()]
        assert max(limits) >= 16_384


@pytest.mark.parametrize(
    ("network", "host", "port", "expected"),
    [
        ("broker", "aerospike", 3000, False),
        ("dashboards", "aerospike", 3000, False),
        ("dashboards", "rabbitmq", 5672, False),
        ("broker", "rabbitmq", 15692, True),
        ("broker", "shim", 9464, True),
    ],
)
def test_network_reaches_only_its_members(
    stack: ComposeStack, network: str, host: str, port: int, expected: bool
) -> None:
    assert stack.reaches(network, host, port) is expected


@pytest.mark.parametrize("service", ["rabbitmq", "aerospike", *SERVICES])
def test_service_accepts_tasks_after_a_restart_and_knows_the_old_ones(stack: ComposeStack, service: str) -> None:
    key = uuid.uuid4().hex
    wait_until(lambda: stack.submit(key) in (200, 202), "the shim")
    stack.compose("restart", service)
    stack.wait_until_accepted(f"{service} after a restart")
    assert stack.submit(key) == 200


def test_trim_bounds_dead_letters_and_continues_after_restarts_of_rabbitmq(stack: ComposeStack) -> None:
    size = 16 * 1024  # TRIM_KEEP has room for fewer than four
    stack.reject(8, size)
    wait_until(lambda: stack.trimmed() >= 4, "trim")
    before = stack.trimmed()
    stack.compose("restart", "rabbitmq")
    stack.wait_until_accepted("rabbitmq after a restart")
    stack.reject(4, size)
    wait_until(lambda: stack.trimmed() >= before + 4, "trim after a restart of rabbitmq")
    (container,) = stack.containers("trim")
    assert (container["State"]["Status"], container["RestartCount"]) == ("running", 0)


def test_workers_scale(stack: ComposeStack) -> None:
    stack.compose("up", "--detach", "--no-recreate", "--scale", "worker=3", "worker")
    assert len(stack.containers("worker")) == 3
    wait_until(lambda: stack.is_healthy("worker"), "three workers")


def test_command_ends_on_sigterm(stack: ComposeStack) -> None:
    container = stack.compose("run", "--detach", "--entrypoint", "sleep", "operator", "600").strip()
    try:
        start = time.monotonic()
        docker("stop", "-t", "10", container)
        assert time.monotonic() - start < 5
    finally:
        docker("rm", "--force", container)


@pytest.mark.parametrize("service", STARTED)
def test_container_exits_with_0_on_sigterm(stack: ComposeStack, service: str) -> None:
    stack.compose("stop", service)
    assert {container["State"]["ExitCode"] for container in stack.containers(service)} == {0}
