"""`Producer`, `SyncProducer` and `FakeProducer` without RabbitMQ: arguments, loops, threads, ends."""

import asyncio
import inspect
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
from asg_gateway import BrokerUnavailableError, InvalidTaskError
from asg_gateway.amqp import Producer, SubmittedTask, SyncProducer
from asg_gateway.amqp._producing.channels import Failure
from asg_gateway.amqp._producing.many import submit_each
from asg_gateway.amqp.testing import FakeProducer

from tests.support.virtual_time_loop import in_virtual_time
from tests.unit.sdk.amqp.fake_broker import TASK, FakeBroker

URL = "amqp://acme:pw@127.0.0.1:1/"


def producer_on(broker: FakeBroker, in_flight: int = 100, deadline: float = 100.0) -> Producer:
    producer = Producer(URL)
    producer._prepare(broker, deadline, in_flight, 10.0)
    return producer


@pytest.mark.parametrize("name", ["submit", "submit_batch", "submit_many", "connect", "close", "cust_id"])
def test_all_producers_have_the_same_methods(name: str) -> None:
    asynchronous, blocking, fake = (getattr(kind, name) for kind in (Producer, SyncProducer, FakeProducer))
    if name == "cust_id":
        return
    assert inspect.signature(asynchronous) == inspect.signature(fake)
    assert list(inspect.signature(blocking).parameters) == list(inspect.signature(asynchronous).parameters)


def test_blocking_and_asynchronous_producer_have_the_same_arguments() -> None:
    assert inspect.signature(Producer) == inspect.signature(SyncProducer)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"url": "http://a"}, "must begin with amqp"),
        ({"cust_id": "a.b"}, "cust_id must be"),
        ({"deadline": 0}, "greater than 0 seconds"),
        ({"confirm_timeout": float("nan")}, "greater than 0 seconds"),
        ({"max_in_flight": 0}, "max_in_flight must be 1 or more"),
    ],
)
def test_invalid_argument_is_a_value_error(arguments: dict[str, Any], problem: str) -> None:
    threads = threading.active_count()
    for kind in (Producer, SyncProducer):
        with pytest.raises(ValueError, match=problem):
            kind(**({"url": URL} | arguments))
    assert threading.active_count() == threads


def test_password_is_not_shown() -> None:
    producer = Producer("amqps://acme:pa%2Fss@a.example,b.example:7/v")
    assert repr(producer) == "Producer('a.example:5671, b.example:7', cust_id='acme')"


def test_other_event_loop_is_an_error() -> None:
    broker = FakeBroker()
    producer = producer_on(broker)
    asyncio.run(producer.submit(TASK, key="k"))
    for call in (lambda: producer.submit(TASK, key="k"), producer.close, producer.connect):
        with pytest.raises(RuntimeError, match="belongs to another event loop: create a producer in each event loop"):
            asyncio.run(call())


@in_virtual_time
async def test_closed_producer_has_waited_for_the_calls_in_progress() -> None:
    broker = FakeBroker()
    broker.delay = 5.0
    producer = producer_on(broker, in_flight=1)
    calls = [asyncio.create_task(producer.submit(TASK, key=f"k{number}")) for number in range(3)]
    await asyncio.sleep(0.1)
    await producer.close()
    assert [call.result().key for call in calls] == ["k0", "k1", "k2"]
    assert not broker.is_open
    with pytest.raises(RuntimeError, match="is closed"):
        await producer.submit(TASK, key="k")
    await producer.close()


@in_virtual_time
async def test_close_fails_what_is_not_confirmed_in_time() -> None:
    broker = FakeBroker()
    broker.answer = lambda _message, _channel: Failure.RETURNED
    producer = producer_on(broker, deadline=100.0)
    calls = [asyncio.create_task(producer.submit(TASK, key=f"k{number}")) for number in range(3)]
    await asyncio.sleep(1)
    await producer.close()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {BrokerUnavailableError}
    assert asyncio.get_running_loop().time() < 102


@in_virtual_time
async def test_cancelled_block_does_not_wait_for_other_calls() -> None:
    broker = FakeBroker()
    broker.answer = lambda _message, _channel: Failure.RETURNED

    async def block() -> None:
        async with producer_on(broker) as producer:
            calls.append(asyncio.create_task(producer.submit(TASK, key="k")))
            await asyncio.sleep(1000)

    calls: list[asyncio.Task[SubmittedTask]] = []
    blocked = asyncio.create_task(block())
    await asyncio.sleep(1)
    blocked.cancel()
    await asyncio.wait([blocked])
    assert asyncio.get_running_loop().time() == pytest.approx(1)
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["the producer was closed before RabbitMQ confirmed the message"]


@in_virtual_time
async def test_failed_part_of_a_batch_names_the_key_of_the_batch() -> None:
    broker = FakeBroker()
    broker.answer = lambda each, _channel: Failure.RETURNED if each.key == "b/1" else None
    async with producer_on(broker) as producer:
        with pytest.raises(BrokerUnavailableError) as caught:
            await producer.submit_batch([TASK] * 2500, key="b")
    assert caught.value.idempotency_key == "b"
    assert {"b/0", "b/2"} < {key for key, _ in broker.published}


@in_virtual_time
async def test_submit_many_bounds_what_is_in_flight_and_reads_no_further() -> None:
    read = 0
    running = most = 0

    async def source() -> AsyncIterator[tuple[str, Mapping[str, Any]]]:
        nonlocal read
        while True:
            read += 1
            yield f"k{read}", TASK

    async def submit(key: str, _task: Mapping[str, Any]) -> SubmittedTask:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1
        return SubmittedTask("", key)

    results = submit_each(submit, source(), 10)
    assert [(await anext(results)).key for _ in range(100)] == [f"k{number}" for number in range(1, 101)]
    await results.aclose()
    assert most == 10
    assert read <= 112
    assert len(asyncio.all_tasks()) == 1


@in_virtual_time
async def test_submit_many_raises_an_error_in_its_turn() -> None:
    """The results before it have been yielded, and no call remains."""
    keys = []

    async def collect(producer: FakeProducer) -> None:
        async for each in producer.submit_many((f"k{number}", TASK if number != 5 else {}) for number in range(9)):
            keys.append(each.key)

    with pytest.raises(InvalidTaskError) as caught:
        await collect(FakeProducer())
    assert keys == [f"k{number}" for number in range(5)]
    assert caught.value.idempotency_key == "k5"


async def test_fake_producer_records_what_would_be_published() -> None:
    producer = FakeProducer("acme")
    one = await producer.submit(TASK, key="k", created_at=5, traceparent="t")
    batch = await producer.submit_batch([TASK] * 1001, key="b")
    assert [entry.routing_key for entry in producer.submitted] == ["task.submitted.acme", *["batch.submitted.acme"] * 2]
    assert (producer.submitted[0].body, producer.submitted[0].created_at.timestamp()) == (TASK, 5)
    assert producer.submitted[0].headers == {"traceparent": "t"}
    real = Producer(URL)
    assert real._composer.task(TASK, "k")[1] == one
    assert real._composer.batch([TASK] * 1001, "b")[1] == batch


async def test_fake_producer_fails_as_told() -> None:
    producer = FakeProducer()
    producer.fail_next(BrokerUnavailableError("no confirm"))
    with pytest.raises(BrokerUnavailableError) as caught:
        await producer.submit(TASK, key="k")
    assert caught.value.idempotency_key == "k"
    await producer.submit(TASK, key="k")
    await producer.close()
    with pytest.raises(RuntimeError, match="is closed"):
        await producer.submit(TASK, key="k")
    assert len(producer.submitted) == 1


def sync_producer_on(broker: FakeBroker) -> SyncProducer:
    producer = SyncProducer(URL)
    producer._producer._prepare(broker, 100.0, 1000, 10.0)
    return producer


def test_sync_producer_yields_results_in_order_and_raises_errors() -> None:
    broker = FakeBroker()

    def source() -> Iterator[tuple[str, Mapping[str, Any]]]:
        for number in range(1300):
            yield f"k{number}", TASK if number != 1250 else {}

    keys = []

    def collect(producer: SyncProducer) -> None:
        for each in producer.submit_many(source()):
            keys.append(each.key)

    with sync_producer_on(broker) as producer:
        with pytest.raises(InvalidTaskError) as caught:
            collect(producer)
        assert producer.submit(TASK, key="one").key == "one"
        assert producer.submit_batch([TASK], key="batch").key == "batch"
    assert caught.value.idempotency_key == "k1250"
    assert keys == [f"k{number}" for number in range(1250)]
    with pytest.raises(RuntimeError, match="is closed"):
        producer.submit(TASK, key="k")
    producer.close()
    assert "asg-gateway-producer" not in {thread.name for thread in threading.enumerate()}


SCRIPT = f"""
from asg_gateway.amqp import SyncProducer
with SyncProducer({URL!r}, deadline=60) as producer:
"""


@pytest.mark.parametrize(
    "call", ["submit(TASK, key='k')", "submit_batch([TASK], key='k')", "submit_many([('k', TASK)])"]
)
def test_ctrl_c_ends_a_blocking_call(call: str) -> None:
    """The broker is unreachable, so the call would last a minute."""
    script = f"{SCRIPT}    list([producer.{call.replace('TASK', repr(TASK))}][0])\n"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        while "rabbitmq_unavailable" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
    assert "KeyboardInterrupt" in stderr
    assert "Task was destroyed" not in stderr
