"""The output of `ingest status` for people."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ingest.cli.dlq_view import age
from ingest.domain.events import rfc3339
from ingest.domain.overview import Overview
from ingest.telemetry.logs import redact

_UNKNOWN = "unknown"


def render(overview: Overview) -> RenderableType:
    """Return the whole status as text. Problems come last, because people read the end of the output first."""
    problems = [*overview.broker.problems, *overview.store.problems, *overview.process_problems]
    problem_lines = [Text(f"! {redact(problem)}", style="bold red") for problem in problems] or [
        Text("no problems seen", style="green")
    ]
    broker = " ".join(filter(None, (overview.broker.name, overview.broker.version)))
    return Group(
        Text(f"ingest status  {rfc3339(int(overview.at * 1000))}", style="bold"),
        Text(f"broker  {redact(broker)}"),
        _store(overview),
        _queues(overview),
        _dead(overview),
        *([_processes(overview)] if overview.processes else []),
        *problem_lines,
    )


def _store(overview: Overview) -> Text:
    store = overview.store
    parts = [" ".join(filter(None, (store.name, store.version)))]
    if store.round_trip is not None:
        parts.append(f"round trip {store.round_trip * 1000:.1f} ms")
    if store.used:
        parts.append(store.used)
    if store.entries is not None:
        parts.append(f"{store.entries:,} records")
    return Text(f"store   {', '.join(parts)}")


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _queues(overview: Overview) -> Table:
    table = _table("queues", "queue", "ready", "unacked", "in/s", "out/s", "consumers", "oldest")
    for queue in overview.broker.queues:
        oldest = _UNKNOWN if queue.oldest is None else "-" if not queue.ready else age(queue.oldest)
        table.add_row(
            queue.name,
            f"{queue.ready:,}",
            _number(queue.unacked),
            _rate(queue.rate_in),
            _rate(queue.rate_out),
            _number(queue.consumers),
            oldest,
        )
    return table


def _dead(overview: Overview) -> RenderableType:
    note = Text(redact(overview.dead_note), style="yellow")
    if not overview.dead:
        return Text.assemble("dead letters  ", "none" if overview.dead is not None and not overview.dead_note else note)
    table = _table("dead letters", "reason", "count", "oldest")
    for group in overview.dead:
        table.add_row(group.reason, f"{group.count:,}", age(group.oldest))
    return Group(table, note) if overview.dead_note else table


def _processes(overview: Overview) -> Table:
    table = _table("processes", "process", "ready", "breaker", "stalled", "in flight", "tasks/s", "idle")
    for process in overview.processes:
        table.add_row(
            f"{process.url} {process.process}",
            _yes(process.ready),
            _yes(process.breaker_open),
            _yes(process.stalled),
            _number(process.in_flight),
            _rate(process.accepted),
            age(process.idle),
        )
    return table


def _number(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value:,}"


def _rate(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.1f}"


def _yes(value: bool | None) -> str:
    return _UNKNOWN if value is None else "yes" if value else "no"
