"""`ingest status` as a person sees it."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ingest.cli.dlq_view import age
from ingest.domain.events import rfc3339
from ingest.domain.overview import Overview
from ingest.telemetry.logs import redact

_UNKNOWN = "unknown"


def picture(seen: Overview) -> RenderableType:
    """Everything, the worst last, where the eye ends."""
    problems = [*seen.broker.problems, *seen.store.problems, *seen.process_problems]
    said = [Text(f"! {redact(each)}", style="bold red") for each in problems] or [
        Text("no problems seen", style="green")
    ]
    broker = " ".join(filter(None, (seen.broker.name, seen.broker.version)))
    return Group(
        Text(f"ingest status  {rfc3339(int(seen.at * 1000))}", style="bold"),
        Text(f"broker  {redact(broker)}"),
        _store(seen),
        _queues(seen),
        _dead(seen),
        *([_processes(seen)] if seen.processes else []),
        *said,
    )


def _store(seen: Overview) -> Text:
    store = seen.store
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


def _queues(seen: Overview) -> Table:
    table = _table("queues", "queue", "ready", "unacked", "in/s", "out/s", "consumers", "oldest")
    for each in seen.broker.queues:
        oldest = _UNKNOWN if each.oldest is None else "-" if not each.ready else age(each.oldest)
        table.add_row(
            each.name,
            f"{each.ready:,}",
            _number(each.unacked),
            _rate(each.rate_in),
            _rate(each.rate_out),
            _number(each.consumers),
            oldest,
        )
    return table


def _dead(seen: Overview) -> RenderableType:
    note = Text(redact(seen.dead_note), style="yellow")
    if not seen.dead:
        return Text.assemble("dead letters  ", "none" if seen.dead is not None and not seen.dead_note else note)
    table = _table("dead letters", "reason", "count", "oldest")
    for each in seen.dead:
        table.add_row(each.reason, f"{each.count:,}", age(each.oldest))
    return Group(table, note) if seen.dead_note else table


def _processes(seen: Overview) -> Table:
    table = _table("processes", "process", "ready", "breaker", "stalled", "in flight", "tasks/s", "idle")
    for each in seen.processes:
        table.add_row(
            f"{each.url} {each.process}",
            _yes(each.ready),
            _yes(each.breaker_open),
            _yes(each.stalled),
            _number(each.in_flight),
            _rate(each.accepted),
            age(each.idle),
        )
    return table


def _number(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value:,}"


def _rate(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.1f}"


def _yes(value: bool | None) -> str:
    return _UNKNOWN if value is None else "yes" if value else "no"
