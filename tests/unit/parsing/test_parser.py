"""Parsing with a real child process: the event loop is not held, and what happens if the child fails."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
import uvloop
from structlog.testing import capture_logs

from ingest.domain.errors import InvalidSubmission, ParserFailed, UnregisteredWebhook
from ingest.domain.identity import SubmissionKind
from ingest.domain.parsing import MAX_STRUCTURE, Unparsed, parse
from ingest.domain.submissions import MAX_TASK
from ingest.fair_queue import QueueFull
from ingest.parsing.parser import SubmissionParser, is_large
from ingest.parsing.process import ParserProcess
from tests.support import hostile
from tests.support.loop_hold import LoopHold

HOLD = 0.05
"""The longest time for which a body may hold the event loop, in seconds."""
MEMORY = 200 * 1024 * 1024
"""The most that a body may need, in bytes."""
LARGE = hostile.batch(hostile.task('"' + "z" * 2000 + '"'), 300)
"""A valid batch that is parsed in the child process."""
HANGS = (sys.executable, "-c", "import time; time.sleep(60)")
DIES = (sys.executable, "-c", "import sys; sys.stdin.buffer.read(4); sys.exit(3)")


def unparsed(body: bytes, cust_id: str = "c") -> Unparsed:
    kind = SubmissionKind.BATCH if body.startswith(b'{"tasks"') else SubmissionKind.TASK
    return Unparsed(kind, body, cust_id, frozenset(), "k")


@pytest.fixture
async def process() -> ParserProcess:
    return ParserProcess()


@pytest.fixture
async def parser(process: ParserProcess) -> AsyncIterator[SubmissionParser]:
    parser = SubmissionParser(process=process)
    yield parser
    await parser.close()


def most_memory(process: ParserProcess) -> int:
    """Return the most resident memory that the child has had, in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


async def test_hostile_bodies_are_refused_without_holding_the_loop(
    parser: SubmissionParser, process: ParserProcess
) -> None:
    holds = {}
    for name, make in (hostile.TASKS | hostile.BATCHES).items():
        body = unparsed(make())
        async with LoopHold() as hold:
            with pytest.raises(InvalidSubmission):
                await parser.parse(body)
        print(f"{name}: {hold.longest * 1000:.0f} ms")
        holds[name] = hold.longest
    assert {name: hold for name, hold in holds.items() if hold > HOLD} == {}
    assert most_memory(process) < MEMORY


async def test_large_batches_are_parsed_without_holding_the_loop(
    parser: SubmissionParser, process: ParserProcess
) -> None:
    """The result is the same as without a process."""
    for make in hostile.LARGE_BATCHES.values():
        body = unparsed(make())
        async with LoopHold() as hold:
            submission = await parser.parse(body)
        assert hold.longest < HOLD
        assert submission == parse(body)
    assert most_memory(process) < MEMORY


async def test_unregistered_webhook_in_a_large_batch_is_told_from_other_errors(parser: SubmissionParser) -> None:
    """The worker accepts such a batch if it was admitted before the webhook was removed."""
    body = unparsed(LARGE.replace(b'"tasks"', b'"callback_url":"https://hooks.example/x","tasks"', 1))
    body = msgspec.structs.replace(body, kind=SubmissionKind.BATCH)
    with pytest.raises(UnregisteredWebhook):
        await parser.parse(body)
    submission = await parser.parse(msgspec.structs.replace(body, webhooks=None))
    assert all(task.has_callback for task in submission.tasks)


@pytest.mark.parametrize("element", ["5e-324", "[]", "{}", '{"a":1}', '":"'])
async def test_largest_bodies_without_a_process_do_not_hold_the_loop(
    parser: SubmissionParser, process: ParserProcess, element: str
) -> None:
    """Ten of them arrive at once; one iteration of the loop parses one of them."""
    size = 384 * 1024
    while is_large(hostile.task(hostile.repeated(element, size))):
        size -= 1024
    body = unparsed(hostile.task(hostile.repeated(element, size)))
    async with LoopHold() as one:
        await asyncio.gather(parser.parse(body), return_exceptions=True)
    async with LoopHold() as ten:
        await asyncio.gather(*[parser.parse(body) for _ in range(10)], return_exceptions=True)
    print(f"held {one.longest * 1000:.0f} ms by one, {ten.longest * 1000:.0f} ms by ten")
    assert one.longest < HOLD
    assert ten.longest < 4 * one.longest + 0.005
    assert process.pid is None


async def test_others_run_between_bodies_that_are_parsed_without_a_process(parser: SubmissionParser) -> None:
    """They get as much time as the bodies: a request needs several iterations of the event loop."""
    body = unparsed(hostile.task(hostile.repeated("5e-324", 160_000)))
    parsing = asyncio.gather(*[parser.parse(body) for _ in range(10)])
    iterations = 0
    while not parsing.done():
        await asyncio.sleep(0)
        iterations += 1
    assert iterations > 100


async def test_small_body_starts_no_process(parser: SubmissionParser, process: ParserProcess) -> None:
    await parser.parse(unparsed(hostile.task("1")))
    await parser.parse(unparsed(hostile.batch(hostile.task("1"), 1000)))
    assert process.pid is None


@pytest.mark.parametrize("kind", SubmissionKind)
def test_body_with_too_many_values_is_too_large(kind: SubmissionKind) -> None:
    """A comma inside a string does not count."""
    most = MAX_STRUCTURE[kind]
    commas = hostile.task('"' + "," * (MAX_TASK - 300) + '"')
    parse(Unparsed(SubmissionKind.TASK, commas, "c", frozenset(), None))
    body = (hostile.task(hostile.repeated("1", MAX_TASK // 2)) + b",") * (most // (MAX_TASK // 4) + 2)
    with pytest.raises(InvalidSubmission, match=rf"outside strings, at most {most:,} are allowed"):
        parse(Unparsed(kind, body, "c", frozenset(), None))


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("idle", [0, 0.001, 0.3])
def test_child_that_was_killed_is_replaced(idle: float, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The request does not notice, however long ago that was, in seconds. uvloop's pipes fail in other ways."""

    async def main() -> None:
        process = ParserProcess()
        parser = SubmissionParser(process=process)
        await parser.parse(unparsed(LARGE))
        assert process.pid is not None
        killed = process.pid
        os.kill(killed, signal.SIGKILL)
        await asyncio.sleep(idle)
        assert len((await parser.parse(unparsed(LARGE))).tasks) == 300
        assert process.pid != killed
        await parser.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


async def test_child_that_is_killed_while_it_parses_is_replaced(process: ParserProcess) -> None:
    parser = SubmissionParser(process=process)
    parsing = asyncio.ensure_future(parser.parse(unparsed(LARGE)))
    while process.pid is None:
        await asyncio.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(ParserFailed, match="died: exit code -9"):
        await parsing
    assert len((await parser.parse(unparsed(LARGE))).tasks) == 300
    await parser.close()


async def test_body_that_kills_the_child_fails_alone() -> None:
    parser = SubmissionParser(process=ParserProcess(command=DIES))
    with capture_logs() as logs, pytest.raises(ParserFailed, match="died: exit code 3"):
        await parser.parse(unparsed(LARGE))
    assert [line["exit_code"] for line in logs if line["event"] == "parser_died"] == [3]
    assert len((await parser.parse(unparsed(hostile.task("1")))).tasks) == 1
    await parser.close()


async def test_program_that_cannot_be_started_is_an_error() -> None:
    parser = SubmissionParser(process=ParserProcess(command=("/does/not/exist",)))
    with pytest.raises(ParserFailed, match="cannot be started"):
        await parser.parse(unparsed(LARGE))
    await parser.close()


async def test_child_that_hangs_is_killed_at_its_time_limit() -> None:
    process = ParserProcess(time_limit=0.2, command=HANGS)
    parser = SubmissionParser(process=process)
    with pytest.raises(ParserFailed, match=r"more than 0\.2 s"):
        await parser.parse(unparsed(LARGE))
    assert process.pid is None
    await parser.close()


async def test_caller_gives_up_at_its_deadline() -> None:
    """A body whose caller has given up is not parsed: only one child is started."""
    process = ParserProcess(time_limit=1, command=HANGS)
    parser = SubmissionParser(deadline=0.2, process=process)
    with capture_logs() as logs:
        results = await asyncio.gather(*[parser.parse(unparsed(LARGE)) for _ in range(5)], return_exceptions=True)
        assert [type(result) for result in results] == [TimeoutError] * 5
        await asyncio.sleep(1.2)
    assert [line["event"] for line in logs] == ["parser_started", "parser_killed"]
    await parser.close()


async def test_customer_with_many_large_bodies_does_not_delay_others(parser: SubmissionParser) -> None:
    """One customer has 20 large bodies waiting when the other's arrives: it is the second."""
    finished: list[str] = []

    async def submit(cust_id: str) -> None:
        await parser.parse(unparsed(LARGE, cust_id))
        finished.append(cust_id)

    await asyncio.gather(*[submit("many") for _ in range(20)], submit("one"))
    assert finished.index("one") == 1


async def test_body_is_refused_if_too_many_wait() -> None:
    """The customer with the most waiting bodies makes room for another one's."""
    parser = SubmissionParser(max_waiting=2, process=ParserProcess(time_limit=1, command=HANGS))
    many = [asyncio.ensure_future(parser.parse(unparsed(LARGE, "many")))]
    await asyncio.sleep(0.1)
    many += [asyncio.ensure_future(parser.parse(unparsed(LARGE, "many"))) for _ in range(3)]
    await asyncio.sleep(0.1)
    one = asyncio.ensure_future(parser.parse(unparsed(LARGE, "one")))
    results = await asyncio.gather(*many, one, return_exceptions=True)
    assert [type(result) for result in results] == [ParserFailed, ParserFailed, QueueFull, QueueFull, ParserFailed]
    await parser.close()


async def test_child_survives_signals_to_the_group_and_ends_with_stdin(
    parser: SubmissionParser, process: ParserProcess
) -> None:
    await parser.parse(unparsed(LARGE))
    assert process.pid is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.pid, number)
    before = process.pid
    await parser.parse(unparsed(LARGE))
    assert process.pid == before


async def test_child_ends_with_its_parent(tmp_path: Path) -> None:
    """Also if the parent is killed."""
    script = (
        "import asyncio; from ingest.parsing.process import ParserProcess; from tests.unit.parsing import test_parser\n"
        "from ingest.parsing.messages import request\n"
        "async def main():\n"
        "    process = ParserProcess()\n"
        "    await process.ask(request(test_parser.unparsed(test_parser.LARGE)))\n"
        "    print(process.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    lines = [line async for line in _lines(parent.stdout)]
    parent.kill()
    await parent.wait()
    pid = int(lines[-1])
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            return
        await asyncio.sleep(0.05)
    pytest.fail("the child process still runs")


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield lines up to the first number."""
    while line := await stream.readline():
        yield line
        if line.strip().isdigit():
            return


@pytest.mark.parametrize("size", [8 * 1024, 1024 * 1024])
async def test_rejected_body_is_freed_without_the_garbage_collector(size: int) -> None:
    """Full collections are rare, and until then rejected bodies of 8 MiB would add up to hundreds of megabytes."""
    parser = SubmissionParser()
    body = bytes(bytearray(b"{" + b" " * size))
    gc.disable()
    try:
        before = sys.getrefcount(body)
        for _ in range(2):
            with contextlib.suppress(InvalidSubmission):
                await parser.parse(unparsed(body))
        for _ in range(5):
            await asyncio.sleep(0)  # the executor notices that nothing else waits
        assert sys.getrefcount(body) == before
    finally:
        gc.enable()
        await parser.close()
