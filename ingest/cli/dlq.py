"""`ingest dlq`: list, show, export, redrive and purge dead letters."""

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
from ingest.backends import DeadLetterAccess, broker_backend
from ingest.cli import dlq_view
from ingest.cli.options import Json, seconds
from ingest.domain.dead_letters import DeadLetter
from ingest.domain.errors import ConfigurationError
from ingest.operations import dead_letters
from ingest.operations.dead_letters import Group, Selection
from ingest.operations.remedies import REMEDIES
from ingest.telemetry import logs

app = typer.Typer(
    help="Dead letters (ingest.dead): list them by reason, show one, export, redrive, purge.\n\n"
    "Step by step: `ingest dlq list` groups them and says what to do; `ingest dlq show ID` shows one; correct the "
    "cause; run `ingest dlq redrive --reason R --dry-run`, then without --dry-run; run `ingest dlq list` again.\n\n"
    "On RabbitMQ a command holds the messages while it runs and returns them in their order: run one at a time, as the "
    "service's user. `list`, `show` and `export` work beside a running `ingest dev`; stop it for the others.",
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
All = Annotated[bool, typer.Option("--all", help="All of them; required if nothing else selects.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
T = TypeVar("T")


@app.command("list")
def list_(
    reason: Reasons = None, customer: Customer = None, older: Older = None, newer: Newer = None, json: Json = False
) -> None:
    """Group dead letters by reason: how many, how old, an example, and what to do.

    Example: ingest dlq list --customer acme --newer-than 1h
    """
    selection = _selection(None, reason, customer, older, newer)
    groups: dict[str, Group] = {}

    async def look(access: DeadLetterAccess, progress: dead_letters.Progress) -> None:
        async for batch in dead_letters.select(access.queue, selection, access.trusted_users, progress):
            dead_letters.add_to(groups, batch)

    _run(look, change=False)
    if json:
        dlq_view.print_json(dlq_view.groups_json(groups.values()))
    else:
        typer.echo(
            dlq_view.groups_text(groups.values()) or "no dead letters" + (" match" if selection != Selection() else "")
        )


@app.command()
def show(
    id_: Annotated[str, typer.Argument(metavar="ID", help="As printed by `ingest dlq list` and `export`.")],
    json: Json = False,
) -> None:
    """Show one dead letter completely: why it is there, and the submission. Secrets are removed."""

    async def look(access: DeadLetterAccess, progress: dead_letters.Progress) -> DeadLetter | None:
        first = None
        async for batch in dead_letters.select(
            access.queue, Selection(ids=frozenset({id_})), access.trusted_users, progress
        ):
            first = first or batch[0]  # read to the end: stopping early would change the order of the queue
        return first

    dead = _run(look, change=False)
    if dead is None:
        raise ConfigurationError(f"there is no dead letter {id_}: `ingest dlq list` has examples, `export` has all ids")
    if json:
        dlq_view.print_json(dlq_view.dead_json(dead, raw=False))
    else:
        typer.echo(dlq_view.dead_text(dead))


@app.command()
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Must not exist yet; `-` is standard output.")],
    reason: Reasons = None,
    customer: Customer = None,
    older: Older = None,
    newer: Newer = None,
) -> None:
    """Write dead letters to a file, one JSON object a line, the oldest first; they stay in the queue.

    Only its owner can read the file: it contains the submissions as they were sent, including secrets in them.
    Example: ingest dlq export --reason invalid --customer acme invalid.jsonl
    """
    selection = _selection(None, reason, customer, older, newer)

    async def write(access: DeadLetterAccess, progress: dead_letters.Progress) -> int:
        count = 0
        with _output(file) as out:
            async for batch in dead_letters.select(access.queue, selection, access.trusted_users, progress):
                out.write(b"".join(msgspec.json.encode(dlq_view.dead_json(dead, raw=True)) + b"\n" for dead in batch))
                count += len(batch)
        return count

    typer.echo(f"exported {_run(write, change=False)}", err=True)


@app.command()
def redrive(
    ids: Ids = None,
    reason: Reasons = None,
    customer: Customer = None,
    older: Older = None,
    newer: Newer = None,
    all_: All = False,
    rate: Annotated[
        str | None, typer.Option(metavar="N/s", help="At most so many per second.", show_default=False)
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Submit dead letters again, unchanged: the same routing key, message_id, content type and timestamp.

    Each is removed only after the broker has confirmed the new message. It keeps its idempotency key, so a submission
    that was accepted before, or is redriven twice, is dropped as a duplicate. One that is still invalid, or over quota,
    becomes a dead letter again. A submission that another user sent in a customer's name is never redriven. Exit code 1
    if the broker did not confirm.

    Example: ingest dlq redrive --reason quota_exhausted --customer acme --rate 50/s
    """
    selection = _selection(ids, reason, customer, older, newer, all_=all_)
    limit = _rate(rate)

    async def drive(access: DeadLetterAccess, progress: dead_letters.Progress) -> dead_letters.Report:
        publisher = await access.publisher()
        return await dead_letters.redrive(
            access.queue, publisher, selection, access.trusted_users, rate=limit, dry_run=dry_run, progress=progress
        )

    report = _run(drive, change=True)
    if json:
        dlq_view.print_json(dlq_view.report_json(report, dry_run=dry_run))
    else:
        typer.echo(dlq_view.report_text(report, dry_run=dry_run))
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
    """Delete dead letters for good. It shows them and asks first; `ingest dlq export` keeps a copy.

    Example: ingest dlq purge --reason invalid --older-than 30d
    """
    selection = _selection(ids, reason, customer, older, newer, all_=all_)

    async def clear(access: DeadLetterAccess, progress: dead_letters.Progress) -> tuple[dict[str, Group], int]:
        groups, deliveries = await dead_letters.gather(access.queue, selection, access.trusted_users, progress)
        if not deliveries or dry_run or not (yes or await asyncio.to_thread(_confirmed, groups, len(deliveries))):
            return groups, 0
        await access.queue.remove(deliveries)
        return groups, len(deliveries)

    groups, purged = _run(clear, change=True)
    matched = sum(group.count for group in groups.values())
    if json:
        by_reason = {group.reason: group.count for group in groups.values()}
        dlq_view.print_json({"dry_run": dry_run, "matched": matched, "by_reason": by_reason, "purged": purged})
        return
    if dry_run and groups:
        typer.echo(dlq_view.groups_text(groups.values()) + "\n")
    typer.echo(f"would purge {matched}" if dry_run else f"purged {purged} of {matched}")


def _confirmed(groups: dict[str, Group], count: int) -> bool:
    typer.echo(dlq_view.groups_text(groups.values()) + "\n", err=True)
    if not sys.stdin.isatty():
        raise ConfigurationError("cannot ask for confirmation without a terminal: use --yes or --dry-run")
    return typer.confirm(f"Delete these {count} for good?", err=True)


def _run(job: Callable[[DeadLetterAccess, dead_letters.Progress], Awaitable[T]], *, change: bool) -> T:
    """Run a job on the dead letters, with a progress bar on a terminal."""
    current = settings.load()
    logs.configure(current.log_level, current.log_format)
    console = Console(stderr=True)

    async def main() -> T:
        async with broker_backend(current).open_dead_letters(change=change) as access:
            with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
                task = bar.add_task("ingest.dead", total=await access.queue.count() if console.is_terminal else None)
                result = await job(access, lambda count: bar.advance(task, count))
            if access.held_by_others():
                typer.echo("another consumer reads ingest.dead; messages that it holds are not shown here", err=True)
            return result

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
    for name in reason or ():
        if name not in REMEDIES:
            raise ConfigurationError(f"--reason: unknown reason {name!r}; known are {', '.join(REMEDIES)}")
    selection = Selection(
        ids=frozenset(ids or ()),
        reasons=frozenset(reason or ()),
        customer=customer,
        older_than=seconds(older, "--older-than") if older is not None else None,
        newer_than=seconds(newer, "--newer-than") if newer is not None else None,
    )
    if all_ is False and selection == Selection():
        raise ConfigurationError(
            "select dead letters with an ID, --reason, --customer, --older-than, --newer-than, or --all"
        )
    if all_ and selection != Selection():
        raise ConfigurationError("--all cannot be combined with other selections")
    return selection


def _rate(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)(?:/s)?", text)
    if match is None or not float(match[1]):
        raise ConfigurationError(f"--rate must be a number per second, such as 50/s; it is {text!r}")
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
