"""`asg-submit --amqp-url`: arguments, what a chunk becomes, counts, and the errors of RabbitMQ."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from asg_gateway import BrokerRefusedError, BrokerUnavailableError
from asg_gateway._bulk.broker import BrokerSender, BrokerTransport
from asg_gateway._bulk.command import main
from asg_gateway._bulk.engine import submit_chunk
from asg_gateway._bulk.items import Chunk, chunks, digest_of
from asg_gateway._bulk.journal import Journal
from asg_gateway._bulk.options import UsageError, parse
from asg_gateway._bulk.progress import Counts
from asg_gateway._bulk.sources import Row
from asg_gateway._bulk.stops import stop_of
from asg_gateway.amqp._producing.identity import batch_id, task_id
from asg_gateway.amqp.testing import FakeProducer

from tests.unit.sdk.bulk.gateway import task

URL = "amqp://acme:S3CRET@127.0.0.1:1/v"
HIDE_EXTRA = "import sys; sys.modules['aio_pika'] = None; from asg_gateway._bulk.command import main; sys.exit(main())"


def one_chunk(*names: str, note: int = 0) -> Chunk:
    rows = [Row(number, task(name)) for number, name in enumerate(names, 1)]
    for row in rows:
        if row.task is not None and note:
            row.task["label_spec"]["note"] = "x" * note
    (chunk,) = chunks(rows, "")
    return chunk


@pytest.mark.parametrize(
    ("arguments", "env", "url"),
    [
        (["--amqp-url", "amqp://a"], {}, "amqp://a"),
        ([], {"ASG_AMQP_URL": "amqp://b"}, "amqp://b"),
        (["--amqp-url", "amqp://a"], {"ASG_AMQP_URL": "amqp://b", "ASG_BASE_URL": "http://g"}, "amqp://a"),
        (["--base-url", "http://g"], {"ASG_AMQP_URL": "amqp://b", "ASG_API_KEY": "k"}, None),
        ([], {"ASG_AMQP_URL": "", "ASG_API_KEY": "k"}, None),
    ],
)
def test_url_of_rabbitmq_chooses_it_unless_the_gateway_is_named(
    arguments: list[str], env: dict[str, str], url: str | None
) -> None:
    """Then no API key is needed."""
    options = parse(["a.csv", *arguments], env)
    assert (options.amqp_url, options.api_key) == (url, "" if url else "k")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--amqp-url", "amqp://a", "--base-url", "http://g"], "set either --amqp-url, or --base-url"),
        (["--customer", "acme"], "--customer is for RabbitMQ, so it needs --amqp-url"),
    ],
)
def test_contradicting_arguments_are_refused(arguments: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        parse(["a.csv", *arguments], {"ASG_API_KEY": "k"})


@pytest.mark.parametrize(
    ("url", "customer", "problem"),
    [
        ("http://acme:S3CRET@a", None, "must begin with amqp://"),
        ("amqp://acme:S3CRET@a:x", None, "the port is missing or invalid"),
        (URL, "a.b", "cust_id must be"),
    ],
)
def test_invalid_url_or_customer_is_a_usage_error_without_the_password(
    url: str, customer: str | None, problem: str
) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        BrokerTransport(url, customer, None, 10, 4)
    assert "S3CRET" not in str(caught.value)


def test_journal_is_for_one_broker_customer_and_webhook() -> None:
    """Another password is the same destination."""

    def identity(url: str = URL, customer: str | None = None, callback_url: str | None = None) -> str:
        return digest_of(BrokerTransport(url, customer, callback_url, 10, 4).identity)

    same = {identity(), identity(URL.replace("S3CRET", "new")), identity(customer="acme")}
    others = {identity(URL.replace("/v", "/w")), identity(customer="other"), identity(callback_url="https://a.example")}
    assert (len(same), len(others), len(same & others)) == (1, 3, 0)


async def test_chunk_is_one_batch_with_a_key_of_its_content() -> None:
    """So a repeat is a duplicate for the service."""
    producer = FakeProducer("acme")
    chunk = one_chunk("a", "b")
    for _ in range(2):
        outcome = await submit_chunk(BrokerSender(producer, "https://a.example/hook"), chunk.items)
    first, second = producer.submitted
    assert first.key == second.key == digest_of(item.identity for item in chunk.items)
    assert first.body == {"tasks": [item.task for item in chunk.items], "callback_url": "https://a.example/hook"}
    ((result, items),) = outcome.accepted
    assert (result.batch_id, result.status) == (batch_id("acme", first.key), "published")
    assert result.task_ids == tuple(task_id("acme", item.identity) for item in items)


async def test_journal_has_the_key_and_the_lines_of_a_chunk(tmp_path: Path) -> None:
    """A report about a rejected chunk names only its key."""
    producer = FakeProducer("acme")
    chunk = one_chunk("a", "b")
    await submit_chunk(BrokerSender(producer, None), chunk.items)
    journal = Journal(tmp_path / "journal", "destination")
    journal.record(chunk)
    journal.close()
    (line,) = (tmp_path / "journal").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["key"], entry["lines"]) == (producer.submitted[0].key, [1, 2])


async def test_chunk_that_is_too_large_for_the_service_is_split() -> None:
    """Each part has its own batch id, and all lines have a task id."""
    producer = FakeProducer("acme")
    chunk = one_chunk(*map(str, range(500)), note=16_440)
    outcome = await submit_chunk(BrokerSender(producer, f"https://a.example/{'x' * 500}"), chunk.items)
    assert len(outcome.accepted) == len(producer.submitted) == 2
    assert [item for _, items in outcome.accepted for item in items] == chunk.items
    for result, items in outcome.accepted:
        assert result.task_ids == tuple(task_id("acme", item.identity) for item in items)


async def test_too_large_line_is_refused_and_the_others_are_published() -> None:
    producer = FakeProducer("acme")
    chunk = one_chunk("a", "b", "c")
    chunk.items[1].task["label_spec"]["note"] = "x" * 300_000
    outcome = await submit_chunk(BrokerSender(producer, None), chunk.items)
    ((item, ((field, sentence),)),) = outcome.refused
    assert (item.number, field) == (2, "")
    assert sentence.startswith("the task has 300")
    assert [each.number for _, items in outcome.accepted for each in items] == [1, 3]


def test_counts_say_published_not_accepted() -> None:
    counts = Counts(published=0, skipped=3)
    counts.add(0, 5)
    assert (counts.all, counts.sentence()) == (8, "5 published, 3 skipped (finished according to the journal)")
    assert counts.named() == {"published": 5, "skipped": 3, "refused": 0}
    assert Counts(accepted=1).named() == {"accepted": 1, "replayed": 0, "skipped": 0, "refused": 0}


@pytest.mark.parametrize(
    ("error", "code"), [(BrokerRefusedError("the login was refused"), 2), (BrokerUnavailableError("no answer"), 3)]
)
def test_errors_of_rabbitmq_have_exit_codes(error: Exception, code: int) -> None:
    stop = stop_of(error, "a.csv", "", lambda: datetime.now(UTC))
    assert (stop.code, stop.sentence) == (code, str(error))


def test_dry_run_needs_neither_rabbitmq_nor_the_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(json.dumps(task("a")))
    assert main([str(file), "--amqp-url", URL, "--dry-run"]) == 0
    assert "1 valid, 0 invalid; nothing was submitted" in capsys.readouterr().err


def test_missing_extra_is_a_usage_error(tmp_path: Path) -> None:
    """The SDK is imported in another process, in which aio-pika cannot be imported."""
    file = tmp_path / "tasks.jsonl"
    file.write_text(json.dumps(task("a")))
    done = subprocess.run(
        [sys.executable, "-c", HIDE_EXTRA, str(file), "--amqp-url", URL], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "pip install asg-gateway[amqp]" in done.stderr) == (2, True)
    assert "S3CRET" not in done.stderr
