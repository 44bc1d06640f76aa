"""The arguments of a consumer, its stand-in for tests, and what surrounds its handlers."""

import asyncio
import contextvars
import functools
import sqlite3
import threading
from pathlib import Path
from typing import Any

import asg_gateway.amqp
import asg_gateway.amqp.testing
import pytest
import sqlalchemy
from asg_gateway.amqp import Consumer, Event, MemoryDedupe, SqlAlchemyDedupe, SqlDedupe
from asg_gateway.amqp._consuming.threads import Threads
from asg_gateway.amqp._consuming.tracing import consumer_span
from asg_gateway.amqp.testing import FakeConsumer, deliver, sample_events, task_accepted
from opentelemetry import trace
from sqlalchemy.ext.asyncio import create_async_engine

URL = "amqp://consensus:s3cret@127.0.0.1:1/vhost"
SQL = SqlDedupe(lambda: sqlite3.connect(":memory:"))
ENGINE = SqlAlchemyDedupe(sqlalchemy.create_engine("sqlite://"))
ASYNC_ENGINE = SqlAlchemyDedupe(create_async_engine("sqlite+aiosqlite://"))


def one(event: Event) -> None:
    """Handle an event."""


def two(event: Event, connection: object) -> None:
    """Handle an event."""


async def async_one(event: Event) -> None:
    """Handle an event."""


async def async_two(event: Event, connection: object) -> None:
    """Handle an event."""


class Callable:
    async def __call__(self, event: Event) -> None:
        """Handle an event."""


@pytest.mark.parametrize(
    ("dedupe", "handler"),
    [
        (None, one),
        (None, async_one),
        (None, Callable()),
        (None, functools.partial(two, connection=None)),
        (None, print),
        (MemoryDedupe(), async_one),
        (SQL, two),
        (ENGINE, two),
        (ASYNC_ENGINE, async_two),
    ],
)
def test_handler_that_suits_the_strategy_is_accepted(dedupe: Any, handler: Any) -> None:
    Consumer(URL, "q", handler, dedupe=dedupe)
    FakeConsumer(handler, dedupe=dedupe)


@pytest.mark.parametrize(
    ("dedupe", "handler", "problem"),
    [
        (None, two, r"with dedupe=None the handler is called as handler\(event\)"),
        (MemoryDedupe(), two, r"with MemoryDedupe the handler is called as handler\(event\)"),
        (SQL, one, r"with SqlDedupe the handler is called as handler\(event, connection\)"),
        (SQL, async_two, "with SqlDedupe the handler must be an ordinary function"),
        (ENGINE, async_two, "with SqlAlchemyDedupe the handler must be an ordinary function"),
        (ASYNC_ENGINE, two, "with SqlAlchemyDedupe the handler must be a coroutine function"),
        (None, "handle", "handler must be a function"),
        ("memory", one, "dedupe must be SqlDedupe"),
    ],
)
def test_handler_that_does_not_suit_the_strategy_is_an_error_that_says_why(
    dedupe: Any, handler: Any, problem: str
) -> None:
    with pytest.raises(TypeError, match=problem):
        Consumer(URL, "q", handler, dedupe=dedupe)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"queue": ""}, "queue must be the name"),
        ({"prefetch": 0}, "prefetch must be a whole number from 1 to 65535"),
        ({"prefetch": 70_000}, "prefetch must be a whole number from 1 to 65535"),
        ({"concurrency": True}, "concurrency must be a whole number"),
        ({"concurrency": 30}, "prefetch must be at least concurrency"),
        ({"max_attempts": 0}, "max_attempts must be a whole number"),
        ({"max_attempts": 2.5}, "max_attempts must be a whole number"),
        ({"parked_pause": -1}, "parked_pause must be a number of seconds"),
        ({"drain_timeout": -1}, "drain_timeout must be a number of seconds"),
        ({"drain_timeout": float("nan")}, "drain_timeout must be a number of seconds"),
        ({"url": "http://a"}, "the URL must begin with amqp"),
    ],
)
def test_invalid_argument_is_a_value_error(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Consumer(**{"url": URL, "queue": "q", "handler": one, "dedupe": None, **arguments})


@pytest.mark.parametrize("module", [asg_gateway.amqp, asg_gateway.amqp.testing])
def test_all_is_sorted_and_every_name_exists(module: Any) -> None:
    assert sorted(module.__all__) == module.__all__
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


async def test_unavailable_broker_is_waited_for_until_stop(caplog: pytest.LogCaptureFixture) -> None:
    consumer = Consumer(URL, "q", one, dedupe=None)
    running = asyncio.create_task(consumer.run())
    async with asyncio.timeout(20):
        while "broker_unavailable" not in caplog.text:
            await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="running already"):
            await consumer.run()
        await asyncio.to_thread(consumer.stop)
        await running
    assert "127.0.0.1:1" in caplog.text
    assert "s3cret" not in caplog.text + repr(vars(consumer))
    consumer.stop()


def test_consumer_runs_in_a_thread_where_signals_cannot_be_handled() -> None:
    consumer = Consumer(URL, "q", one, dedupe=None)
    thread = threading.Thread(target=consumer.run_forever)
    thread.start()
    while thread.is_alive():
        consumer.stop()
        thread.join(0.05)


def test_database_that_is_configured_wrongly_ends_the_run() -> None:
    dedupe = SqlDedupe(lambda: object())
    with pytest.raises(ValueError, match="pass paramstyle="):
        Consumer(URL, "q", two, dedupe=dedupe).run_forever()


async def test_threads_pass_results_errors_and_context_variables_on() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("inherited")
    threads = Threads(2)
    assert await threads.run(variable.get) == "inherited"
    with pytest.raises(ZeroDivisionError):
        await threads.run(divmod, 1, 0)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.run(next, iter(()))
    gate = threading.Barrier(2)
    await asyncio.wait_for(asyncio.gather(threads.run(gate.wait), threads.run(gate.wait)), 10)
    threads.close()


def test_handler_runs_below_the_span_that_published_the_event() -> None:
    """Without a configured SDK of OpenTelemetry, the remote context is passed on."""
    seen = []
    event = task_accepted(traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    deliver(lambda event: seen.append(trace.get_current_span().get_span_context()), event, dedupe=None)
    assert [(context.trace_id, context.span_id) for context in seen] == [(int("a" * 32, 16), int("b" * 16, 16))]
    with consumer_span(task_accepted(), "q"):
        assert not trace.get_current_span().get_span_context().is_valid


def test_fake_consumer_says_what_happened_to_every_event(tmp_path: Path) -> None:
    def handle(event: Event, connection: sqlite3.Connection) -> None:
        if event.id == "odd":
            raise ValueError("odd")

    dedupe = SqlDedupe(lambda: sqlite3.connect(tmp_path / "app.db"))
    events: list[Event | bytes] = [*sample_events(), task_accepted(), task_accepted(id="odd"), b"no event"]
    outcome = deliver(handle, *events, dedupe=dedupe, max_attempts=2)
    assert (outcome.handled, outcome.duplicates, outcome.retried) == (4, 1, 1)
    assert [(str(parked.error)[:23], parked.attempts) for parked in outcome.parked] == [
        ("the message is not JSON", 0),
        ("odd", 2),
    ]
