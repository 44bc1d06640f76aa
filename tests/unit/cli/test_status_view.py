"""What `ingest status` prints for people, on terminals of several sizes."""

import io

import msgspec
import pytest
from rich.console import Console
from rich.screen import Screen

from ingest.cli.status_view import Cropped, render
from ingest.domain.overview import BrokerState, DeadReason, Overview, ProcessState, QueueState, StoreState

QUEUES = [
    QueueState(name="ingest.http.0", ready=3, unacked=10, consumers=2, rate_in=1.5, rate_out=1.0, oldest=4.0),
    QueueState(name="ingest.http.1", ready=2, unacked=None, consumers=1, rate_in=1.0, oldest=9.0),
    QueueState(name="ingest.http.bulk", ready=0, unacked=1, consumers=2, oldest=99.0),
    QueueState(name="ingest.heavy.0", ready=4_321, unacked=0, consumers=2),
    QueueState(name="ingest.heavy.bulk", ready=0, unacked=0, consumers=2),
    QueueState(name="ingest.tasks", ready=1_234_567, unacked=1000, consumers=0, rate_in=812.5, oldest=93_784.0),
    QueueState(name="ingest.batches", ready=0, unacked=0, consumers=2, rate_in=0.0, rate_out=0.0, oldest=0.0),
    QueueState(name="consensus.tasks", ready=98_765, unacked=0, consumers=0, rate_in=11.0, rate_out=0.0),
    QueueState(name="webhook.dispatch", ready=7, unacked=0, consumers=1, rate_in=11.0, rate_out=10.0, oldest=3.0),
    QueueState(name="ingest.dead", ready=42, unacked=0, consumers=0, rate_in=0.0, rate_out=0.0, oldest=7200.0),
]
PROCESSES = [
    ProcessState(
        url="http://10.20.30.40:9464",
        process=str(number),
        version="0.1.0",
        ready=True,
        in_flight=1000,
        accepted=12345.6,
    )
    for number in range(2)
]
OVERVIEW = Overview(
    at=1_775_735_999.0,
    broker=BrokerState(
        name="RabbitMQ at 10.20.30.41:5672", version="4.3.0", queues=QUEUES, problems=["node r1 is down"]
    ),
    store=StoreState(name="Aerospike at 10.20.30.51:3000", version="8.1.0", round_trip=0.0012, entries=1_234_567_890),
    processes=PROCESSES,
    dead=[DeadReason(reason="quota_exhausted", count=42, oldest=7200.0)],
)


def shown(overview: Overview, width: int = 80) -> str:
    output = io.StringIO()
    Console(file=output, width=width, height=24, force_terminal=False).print(render(overview))
    return output.getvalue()


def shown_live(overview: Overview, width: int, height: int) -> list[str]:
    """Return the lines that the live view shows."""
    output = io.StringIO()
    console = Console(file=output, width=width, height=height, force_terminal=True, color_system=None)
    console.print(Screen(Cropped(render(overview))))
    return [line.rstrip() for line in output.getvalue().splitlines()]


def test_problems_are_first_and_name_dead_letters_and_queues_that_nothing_consumes() -> None:
    lines = shown(OVERVIEW).splitlines()
    assert [line for line in lines if line.startswith("! ")] == lines[1:5]
    problems = "\n".join(lines[1:5])
    assert "node r1 is down" in problems
    assert "42 dead letters" in problems
    assert "ingest.tasks: 1,234,567 messages and no consumer: start `ingest work`" in problems
    assert "consensus.tasks: 98,765 messages and no consumer: start its consumer" in problems


def test_parked_events_have_an_advice_of_their_own() -> None:
    """Usually nothing consumes their queue."""
    broker = BrokerState(name="RabbitMQ", queues=[QueueState(name="consensus.tasks.parked", ready=3)])
    (problem,) = msgspec.structs.replace(OVERVIEW, broker=broker, process_problems=[]).problems()[:1]
    assert problem.text.startswith(
        "consensus.tasks.parked: 3 parked events: correct the consumer of consensus.tasks, then"
    )


def test_everything_fits_80_columns_and_24_lines() -> None:
    text = shown(OVERVIEW)
    assert len(text.splitlines()) <= 24
    assert "…" not in text
    for value in ("webhook.dispatch", "1,234,567", "1d 2h", "812.5", "quota_exhausted", "12,345.6"):
        assert value in text


@pytest.mark.parametrize("width", [40, 60])
def test_narrow_terminal_cuts_no_number(width: int) -> None:
    """A number that does not fit its column would lose digits, and be read as another number."""
    words = shown(OVERVIEW, width).replace(", ", " ").replace(",\n", " ").split()
    for value in ("1,234,567", "98,765", "42", "812.5", "12,345.6"):
        assert value in words
    assert all(len(line) <= width for line in shown(OVERVIEW, width).splitlines())


def test_live_view_of_30_lines_and_40_columns_shows_all_queues_and_problems() -> None:
    lines = shown_live(msgspec.structs.replace(OVERVIEW, processes=[]), 40, 30)
    assert len(lines) <= 30
    text = " ".join(" ".join(lines).split())
    assert "more lines" not in text
    for value in ("node r1 is down", "ready 1,234,567", "ingest.batches", "webhook.dispatch", "quota_exhausted"):
        assert value in text


def test_queues_of_a_traffic_class_are_one_row() -> None:
    """Depths and rates are added up; the smallest number of consumers and the oldest message of all count."""
    rows = {line.split()[0]: line.split()[1:] for line in shown(OVERVIEW).splitlines() if line.startswith("ingest.")}
    assert rows["ingest.http.*"] == ["5", "11", "2.5", "1.0", "1", "9s"]
    assert rows["ingest.heavy.*"] == ["4,321", "0", "-", "-", "2", "-"]
    assert list(rows) == ["ingest.http.*", "ingest.heavy.*", "ingest.tasks", "ingest.batches", "ingest.dead"]


def test_processes_with_heavy_customers_are_named() -> None:
    processes = [*PROCESSES, ProcessState(url="http://10.20.30.50:9464", process="1", heavy=2)]
    lines = shown(msgspec.structs.replace(OVERVIEW, processes=processes)).splitlines()
    assert [line for line in lines if "heavy customer" in line] == [
        "10.20.30.50:9464 1  2 heavy customers, named in its log"
    ]


def test_version_of_each_process_is_shown_and_different_ones_are_a_note() -> None:
    """They are no problem: an upgrade may be in progress."""
    old, new = "0.1.0\x1b", "0.2.0"
    processes = [
        ProcessState(url=f"http://10.20.30.40:{port}", process="0", version=version)
        for port, version in ((9464, new), (9465, old), (9466, old), (9467, ""))
    ]
    lines = shown(msgspec.structs.replace(OVERVIEW, processes=processes), 120).splitlines()
    rows = {line.split()[0]: line.split()[2] for line in lines if line.startswith("10.20.30.40")}
    assert rows == {
        "10.20.30.40:9464": new,
        "10.20.30.40:9465": r"0.1.0\x1b",
        "10.20.30.40:9466": r"0.1.0\x1b",
        "10.20.30.40:9467": "-",
    }
    note = r"note: versions differ, as during an upgrade: 0.1.0\x1b (2 processes), 0.2.0 (1 process)"
    assert [line for line in lines if line.startswith("note: ")] == [note]
    same = msgspec.structs.replace(OVERVIEW, processes=[processes[0], processes[3]])
    assert "note: " not in shown(same, 120)


def test_live_view_says_how_many_lines_do_not_fit() -> None:
    all_lines = shown(OVERVIEW, 40).splitlines()
    lines = shown_live(OVERVIEW, 40, 10)
    assert len(lines) == 10
    assert lines[:9] == [line.rstrip() for line in all_lines[:9]]
    assert lines[9] == f"… {len(all_lines) - 9} more lines (see them with --once)"


def test_what_does_not_apply_is_a_dash() -> None:
    embedded = BrokerState(name="embedded", queues=[QueueState(name="ingest.tasks", ready=0, unacked=0)])
    text = shown(Overview(at=0.0, broker=embedded, store=StoreState(name="embedded"), dead=[]))
    assert "no problems seen" in text.splitlines()[1]
    assert "unknown" not in text
    row = next(line for line in text.splitlines() if "ingest.tasks" in line)
    assert row.split()[1:] == ["0", "0", "-", "-", "-", "-"]
