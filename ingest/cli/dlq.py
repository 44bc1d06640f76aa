"""`ingest dlq`: what was refused or given up, to look at, submit again or throw away."""

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress

from ingest import settings
from ingest.backends import Dead, open_dead_letters
from ingest.broker.rabbitmq.dead_letters import RabbitDeadLetters
from ingest.cli import dlq_view as view
from ingest.cli.options import Json, seconds
from ingest.domain.dead_letters import DeadLetter
from ingest.domain.errors import ConfigurationError
from ingest.operations import dead_letters
from ingest.operations.dead_letters import Group, Selection
from ingest.telemetry import logs

app = typer.Typer(
    help="Dead letters (ingest.dead): list them by reason, show one, export, redrive, purge.\n\n"
    "An incident, step by step: `ingest dlq list` groups them and says what to do; `ingest dlq show ID` has one whole; "
    "mend the cause; `ingest dlq redrive --reason R --dry-run`, then without; `ingest dlq list` again.\n\n"
    "On RabbitMQ messages are held while a command runs and given back in their order: run one at a time, as the "
    "service's user. `list`, `show` and `export` work beside a running `ingest dev`, the others need it stopped.",
    no_args_is_help=True,
)

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Only these; copies share an id.")]
Reasons = Annotated[
    list[str] | None, typer.Option("--reason", metavar="R", help="Only of this reason; repeatable.", show_default=False)
]
Customer = Annotated[str | None, typer.Option(metavar="CUST", help="Only of this customer.", show_default=False)]
Older = Annotated[
    str | None, typer.Option("--older-than", metavar="TIME", help="Only if older: 90s, 12h, 7d.", show_default=False)
]
Newer = Annotated[str | None, typer.Option("--newer-than", metavar="TIME", help="Only if newer.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="Every one: needed where nothing else says which.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
T = TypeVar("T")


@app.command("list")
def list_(
    reason: Reasons = None, customer: Customer = None, older: Older = None, newer: Newer = None, json: Json = False
) -> None:
    """Group dead letters by reason: how many, how old, an example, and what to do about them.

    Example: ingest dlq list --customer acme --newer-than 1h
    """
    chosen = _selection(None, reason, customer, older, newer)
    groups: dict[str, Group] = {}

    async def look(dead: Dead, progress: dead_letters.Progress) -> None:
        async for found in dead_letters.select(dead.queue, chosen, dead.trusted, progress):
            dead_letters.add_to(groups, found)

    _run(look, clear=False)
    if json:
        view.print_json(view.groups_json(groups.values()))
    else:
        typer.echo(view.groups_text(groups.values()) or "no dead letters" + (" match" if chosen != Selection() else ""))


@app.command()
def show(
    id_: Annotated[str, typer.Argument(metavar="ID", help="As `ingest dlq list` and `export` have it.")],
    json: Json = False,
) -> None:
    """Show one dead letter whole: why it is there, and the submission. Secrets are taken out."""

    async def look(dead: Dead, progress: dead_letters.Progress) -> DeadLetter | None:
        first = None
        async for found in dead_letters.select(dead.queue, Selection(ids=frozenset({id_})), dead.trusted, progress):
            first = first or found[0]  # on to the end: else the order of the queue would change
        return first

    dead = _run(look, clear=False)
    if dead is None:
        raise ConfigurationError(f"there is no dead letter {id_}: `ingest dlq list` has examples, `export` has all ids")
    if json:
        view.print_json(view.dead_json(dead, raw=False))
    else:
        typer.echo(view.dead_text(dead))


@app.command()
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Must not exist yet; `-` is standard output.")],
    reason: Reasons = None,
    customer: Customer = None,
    older: Older = None,
    newer: Newer = None,
) -> None:
    """Write dead letters to a file, one JSON object a line, the oldest first; they stay in the queue.

    The file is for its owner's eyes only: it has the submissions as they came, with whatever secrets are in them.
    Example: ingest dlq export --reason invalid --customer acme invalid.jsonl
    """
    chosen = _selection(None, reason, customer, older, newer)

    async def write(dead: Dead, progress: dead_letters.Progress) -> int:
        count = 0
        with _output(file) as out:
            async for found in dead_letters.select(dead.queue, chosen, dead.trusted, progress):
                out.write(b"".join(msgspec.json.encode(view.dead_json(each, raw=True)) + b"\n" for each in found))
                count += len(found)
        return count

    typer.echo(f"exported {_run(write, clear=False)}", err=True)


@app.command()
def redrive(
    ids: Ids = None,
    reason: Reasons = None,
    customer: Customer = None,
    older: Older = None,
    newer: Newer = None,
    all_: All = False,
    rate: Annotated[
        str | None, typer.Option(metavar="N/s", help="At most so many a second.", show_default=False)
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Submit dead letters again, as they came: the same routing key, message_id and content type.

    Each is removed only after the broker has confirmed the new message. It keeps its idempotency key, so whatever was
    accepted before, or is redriven twice, is dropped as a duplicate. What is still wrong, or over quota, comes back.
    What another user had sent in a customer's name is never redriven. Exit code 1 where the broker did not confirm.

    Example: ingest dlq redrive --reason quota_exhausted --customer acme --rate 50/s
    """
    chosen = _selection(ids, reason, customer, older, newer, all_=all_)
    limit = _rate(rate)

    async def drive(dead: Dead, progress: dead_letters.Progress) -> dead_letters.Report:
        publisher = await dead.publisher()
        return await dead_letters.redrive(
            dead.queue, publisher, chosen, dead.trusted, rate=limit, dry_run=dry_run, progress=progress
        )

    report = _run(drive, clear=True)
    if json:
        view.print_json(view.report_json(report, dry_run=dry_run))
    else:
        typer.echo(view.report_text(report, dry_run=dry_run))
    if report.failed:
        raise typer.Exit(1)


@app.command()
def purge(
    ids: Ids = None,
    reason: Reasons = None,
    customer: Customer = None,
    older: Older = None,
    newer: Newer = None,
    all_: All = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Throw dead letters away, for good. Shows what and asks first; `ingest dlq export` keeps a copy.

    Example: ingest dlq purge --reason invalid --older-than 30d
    """
    chosen = _selection(ids, reason, customer, older, newer, all_=all_)

    async def clear(dead: Dead, progress: dead_letters.Progress) -> tuple[dict[str, Group], int]:
        groups, deliveries = await dead_letters.gather(dead.queue, chosen, dead.trusted, progress)
        if not deliveries or dry_run or not (yes or await asyncio.to_thread(_confirmed, groups, len(deliveries))):
            return groups, 0
        await dead.queue.remove(deliveries)
        return groups, len(deliveries)

    groups, purged = _run(clear, clear=True)
    matched = sum(each.count for each in groups.values())
    if json:
        by_reason = {each.reason: each.count for each in groups.values()}
        view.print_json({"dry_run": dry_run, "matched": matched, "by_reason": by_reason, "purged": purged})
        return
    if dry_run and groups:
        typer.echo(view.groups_text(groups.values()) + "\n")
    typer.echo(f"would purge {matched}" if dry_run else f"purged {purged} of {matched}")


def _confirmed(groups: dict[str, Group], count: int) -> bool:
    typer.echo(view.groups_text(groups.values()) + "\n", err=True)
    if not sys.stdin.isatty():
        raise ConfigurationError("nobody is there to confirm: say --yes, or --dry-run")
    return typer.confirm(f"Throw these {count} away for good?", err=True)


def _run(job: Callable[[Dead, dead_letters.Progress], Awaitable[T]], *, clear: bool) -> T:
    """Run a job on the dead letters, with a progress bar on a terminal."""
    loaded = settings.load()
    logs.configure(loaded.log_level, loaded.log_format)
    console = Console(stderr=True)

    async def main() -> T:
        async with open_dead_letters(loaded, clear=clear) as dead:
            with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
                task = bar.add_task("ingest.dead", total=await dead.queue.count() if console.is_terminal else None)
                done = await job(dead, lambda count: bar.advance(task, count))
            if isinstance(dead.queue, RabbitDeadLetters) and dead.queue.others:
                typer.echo("another consumer is on ingest.dead; what it holds is not seen here", err=True)
            return done

    return asyncio.run(main())


def _selection(
    ids: list[str] | None,
    reason: list[str] | None,
    customer: str | None,
    older: str | None,
    newer: str | None,
    *,
    all_: bool | None = None,
) -> Selection:
    chosen = Selection(
        ids=frozenset(ids or ()),
        reasons=frozenset(reason or ()),
        customer=customer,
        older_than=seconds(older, "--older-than") if older is not None else None,
        newer_than=seconds(newer, "--newer-than") if newer is not None else None,
    )
    if all_ is False and chosen == Selection():
        raise ConfigurationError("say which: an ID, --reason, --customer, --older-than, --newer-than, or --all")
    if all_ and chosen != Selection():
        raise ConfigurationError("--all and a choice exclude each other")
    return chosen


def _rate(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)(?:/s)?", text)
    if match is None or not float(match[1]):
        raise ConfigurationError(f"--rate must be a number a second, such as 50/s; it is {text!r}")
    return float(match[1])


@contextmanager
def _output(path: Path) -> Iterator[BinaryIO]:
    if str(path) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigurationError(f"cannot make {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as out:
        yield out
        out.flush()
        os.fsync(out.fileno())
