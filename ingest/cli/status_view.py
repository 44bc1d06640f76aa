"""The output of `ingest status` for people."""

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.text import Text

from ingest.domain.display import age, shown
from ingest.domain.events import rfc3339
from ingest.domain.overview import Overview, ProcessState, by_class, counted

_NONE = "-"
"""Shown for what is unknown or does not apply."""


def render(overview: Overview) -> RenderableType:
    """Return the whole status as text. Problems come first, so that a small terminal shows them."""
    problem_lines = [Text(f"! {shown(problem.text)}", style="bold red") for problem in overview.problems()] or [
        Text("no problems seen", style="green")
    ]
    notes = [Text(f"note: {shown(note)}", style="yellow") for note in overview.notes()]
    broker = " ".join(filter(None, (overview.broker.name, overview.broker.version)))
    return Group(
        Text(f"ingest status  {rfc3339(int(overview.at * 1000))}", style="bold"),
        *problem_lines,
        *notes,
        Text(f"broker  {shown(broker)}"),
        _store(overview),
        _queues(overview),
        _dead(overview),
        *([_processes(overview)] if overview.processes else []),
        *_heavy(overview),
    )


class Cropped:
    """The content as far as it fits the height of the terminal. The last line says if there is more."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        lines = console.render_lines(self._content, options.update(height=None), pad=False)
        excess = len(lines) - options.max_height
        if excess > 0:
            kept = options.max_height - 1
            lines = [*lines[:kept], [Segment(f"… {excess + 1} more lines (see them with --once)")]]
        for line in lines:
            yield from line
            yield Segment.line()


class _Table:
    """A table whose first column is a name. If it is too wide, each row becomes a name and a list of its values.

    The list leaves out what is 0 or unknown, so that it is short. A value is never cut: a number without its first or
    last digits looks like another number.
    """

    def __init__(self, *columns: str) -> None:
        self._columns = columns
        self._rows: list[tuple[str, ...]] = []

    def add(self, *row: str) -> None:
        self._rows.append(tuple(shown(value) for value in row))

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Text]:
        lines = [self._columns, *self._rows]
        widths = [max(len(line[index]) for line in lines) for index in range(len(self._columns))]
        if sum(widths) + 2 * (len(widths) - 1) <= options.max_width:
            for line in lines:
                numbers = [value.rjust(width) for value, width in zip(line[1:], widths[1:], strict=True)]
                text = "  ".join([line[0].ljust(widths[0]), *numbers])
                yield Text(text, style="bold" if line is self._columns else "")
            return
        yield Text(f"{self._columns[0]} (0 and unknown left out)", style="bold")
        for name, *values in self._rows:
            pairs = [
                f"{label} {value}"
                for label, value in zip(self._columns[1:], values, strict=True)
                if value not in ("0", "0.0", _NONE)
            ]
            one_line = f"{name}  {', '.join(pairs)}".rstrip()
            if len(one_line) <= options.max_width:
                yield Text(one_line)
                continue
            yield Text(name)
            for text in _filled(pairs, options.max_width - 2):
                yield Text(f"  {text}")


def _filled(parts: Sequence[str], width: int) -> Iterator[str]:
    """Yield lines of at most `width` characters that do not split a part, unless it is longer."""
    line = ""
    for part in parts:
        longer = f"{line}, {part}" if line else part
        if line and len(longer) > width:
            yield line
            longer = part
        line = longer
    yield line


def _store(overview: Overview) -> Text:
    store = overview.store
    parts = [" ".join(filter(None, (store.name, store.version)))]
    if store.round_trip is not None:
        parts.append(f"round trip {store.round_trip * 1000:.1f} ms")
    if store.used:
        parts.append(store.used)
    if store.entries is not None:
        parts.append(counted(store.entries, "record"))
    return Text(f"store   {shown(', '.join(parts))}")


def _queues(overview: Overview) -> _Table:
    table = _Table("queue", "ready", "unacked", "in/s", "out/s", "consumers", "oldest")
    for queue in by_class(overview.broker.queues):
        oldest = age(queue.oldest) if queue.ready and queue.oldest is not None else _NONE
        table.add(
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
    note = Text(shown(overview.dead_note), style="yellow")
    if not overview.dead:
        return Text.assemble("dead letters  ", "none" if overview.dead is not None and not overview.dead_note else note)
    table = _Table("dead letters", "count", "oldest")
    for group in overview.dead:
        table.add(group.reason, f"{group.count:,}", age(group.oldest))
    return Group(table, note) if overview.dead_note else table


def _processes(overview: Overview) -> _Table:
    table = _Table("process", "version", "ready", "breaker", "stalled", "in flight", "tasks/s", "idle")
    for process in overview.processes:
        table.add(
            _name(process),
            process.version or _NONE,
            _yes(process.ready),
            _yes(process.breaker_open),
            _yes(process.stalled),
            _number(process.in_flight),
            _rate(process.accepted),
            _NONE if process.idle is None else age(process.idle),
        )
    return table


def _heavy(overview: Overview) -> Iterator[Text]:
    for process in overview.processes:
        if process.heavy:
            heavy = counted(process.heavy, "heavy customer")
            yield Text(shown(f"{_name(process)}  {heavy}, named in its log"))


def _name(process: ProcessState) -> str:
    return " ".join(filter(None, (process.url.removeprefix("http://"), process.address, process.process)))


def _number(value: int | None) -> str:
    return _NONE if value is None else f"{value:,}"


def _rate(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.1f}"


def _yes(value: bool | None) -> str:
    return _NONE if value is None else "yes" if value else "no"
