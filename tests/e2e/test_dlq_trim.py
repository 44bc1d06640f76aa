"""`ingest dlq trim` as an operator uses it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.management import Management
from ingest.domain.dead_letters import dead_letter
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.messages import Message, PublishOutcome
from ingest.domain.ports import Broker
from tests.e2e.processes import Ingest, run_ingest
from tests.servers import RabbitServer
from tests.servers.process import free_ports, wait_until
from tests.support.deliveries import delivery

KEEP = 128 * 1024
BODY = 20_000


def letters(count: int, cust_id: str = "acme") -> list[Message]:
    """Return dead letters of which KEEP has room for six."""
    rejected = [
        delivery(
            body=f"{number:0{BODY}d}".encode(),
            message_id=f"order-{number}",
            routing_key=f"task.submitted.{cust_id}",
            user_id=cust_id,
        )
        for number in range(count)
    ]
    error = InvalidSubmission(Reason.QUOTA_EXHAUSTED, "the quota is exhausted")
    return [dead_letter(submission, error, "2026-04-09T12:00:00Z") for submission in rejected]


async def publish(broker: Broker, messages: Sequence[Message]) -> None:
    await broker.declare()
    publisher = await broker.publisher()
    assert set(await publisher.publish(messages)) == {PublishOutcome.CONFIRMED}
    await broker.close()


async def test_trim_reports_each_customer_and_every_command_shows_what_was_removed(tmp_path: Path) -> None:
    env = {"INGEST_DATA_DIR": str(tmp_path), "INGEST_LOG_FORMAT": "json"}
    await publish(await EmbeddedBroker.open(tmp_path / "queue.db"), [*letters(10), *letters(2, "quiet")])

    def run(*arguments: str) -> str:
        done = run_ingest("dlq", *arguments, env=env, directory=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    nothing = run_ingest("dlq", "trim", env=env, directory=tmp_path)
    assert (nothing.stdout, nothing.stderr) == ("nothing to trim: no customer has more than 1.0 GiB\n", "")
    dry = json.loads(run("trim", "--keep", "128KiB", "--dry-run", "--json"))
    assert dry["dry_run"] is True
    assert [customer["trimmed"] for customer in dry["customers"]] == [4]
    assert "would trim 4" in run("trim", "--keep", "128KiB", "--dry-run")
    done = run_ingest("dlq", "trim", "--keep", "128KiB", env=env, directory=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("acme: trimmed 4, 7")
    assert done.stdout.count("\n") == 1
    (log,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (log["event"], log["level"], log["cust_id"], log["trimmed"]) == (
        "dead_letters_trimmed",
        "warning",
        "acme",
        4,
    )
    assert json.loads(run("trim", "--keep", "128KiB", "--json"))["customers"] == []

    assert "what to do (for 4) Never redriven" in run("list")
    exported = [json.loads(line) for line in run("export", "-").splitlines()]
    assert len(exported) == 12
    trimmed = [line for line in exported if "trimmed" in line]
    assert [line["submission"]["message_id"] for line in trimmed] == [f"order-{number}" for number in range(4)]
    digest = hashlib.sha256(f"{0:0{BODY}d}".encode()).hexdigest()
    assert (trimmed[0]["trimmed"]["body_bytes"], trimmed[0]["trimmed"]["body_sha256"]) == (BODY, digest)
    shown = run("show", trimmed[0]["id"])
    assert f"the body had {BODY:,} bytes" in shown
    assert f"body_sha256: {digest}" in shown
    assert "died_at: 2026-04-09T12:00:00Z" in shown
    redriven = json.loads(run("redrive", "--all", "--json"))
    assert redriven["redriven"] == {"quota_exhausted": 8}
    assert sum(redriven["not_redriven"].values()) == 4
    assert "has removed its body" in next(iter(redriven["not_redriven"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--keep", "1GB"), "--keep must be a size"),
        (("--keep", "0MiB"), "--keep must be a size"),
        (("--every", "10"), "--every must be a time"),
        ((), ".ingest/queue.db does not exist"),
    ],
)
def test_wrong_arguments_of_trim_exit_with_2(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run_ingest("dlq", "trim", *arguments, env={}, directory=tmp_path)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


async def test_trim_repeats_until_sigterm(rabbitmq: RabbitServer, rabbitmq_url: str, tmp_path: Path) -> None:
    management = rabbitmq.management_url.replace("//", "//guest:guest@")
    env = {"INGEST_BROKER_URL": rabbitmq_url, "INGEST_MANAGEMENT_URL": management}
    Management(management, rabbitmq_url.rpartition("/")[2]).apply_policies()
    await publish(RabbitBroker(rabbitmq_url), letters(10))
    with Ingest("dlq", "trim", "--keep", "128KiB", "--every", "1s", directory=tmp_path, env=env) as trimming:
        trimming.wait_for("acme: trimmed 4")
        await publish(RabbitBroker(rabbitmq_url), letters(20)[10:])
        wait_until(lambda: trimming.text().count("acme: trimmed ") >= 2, "a second result", 30)
        assert trimming.stop() == 0
    exported = run_ingest("dlq", "export", "-", env=env, directory=tmp_path).stdout.splitlines()
    ids = {json.loads(line)["submission"]["message_id"] for line in exported}
    assert ids == {f"order-{number}" for number in range(20)}


def test_trim_that_repeats_waits_for_an_unavailable_broker(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    env = {"INGEST_BROKER_URL": f"amqp://guest:guest@127.0.0.1:{port}/", "INGEST_LOG_FORMAT": "json"}
    with Ingest("dlq", "trim", "--every", "1s", directory=tmp_path, env=env) as trimming:
        wait_until(lambda: trimming.text().count("dead_letters_not_trimmed") >= 2, "two tries", 20)
        assert trimming.stop() == 0
    once = run_ingest("dlq", "trim", env=env, directory=tmp_path)
    assert (once.returncode, "cannot connect" in once.stderr) == (1, True), once.stderr
