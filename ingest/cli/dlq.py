"""`ingest dlq`: list, show, export, redrive, purge and trim dead letters."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from ingest.backends import DeadLetterAccess
from ingest.cli import dlq_trim, dlq_view
from ingest.cli.dlq_options import All, Customer, DryRun, Ids, Newer, Older, Reasons, selection_of
from ingest.cli.dlq_session import ProgressBar, confirmed, run, terminal
from ingest.cli.exits import UNAVAILABLE, Ending, writing_to
from ingest.cli.options import Json
from ingest.domain.dead_letters import DeadLetter
from ingest.domain.display import json_text
from ingest.domain.errors import ConfigurationError
from ingest.operations import dead_letters, parameters
from ingest.operations.dead_letters import Group, Report, Selection

app = typer.Typer(
    help="Dead letters: what is in the queue ingest.dead.\n\n"
    "Step by step: `ingest dlq list` groups them and says what to do; `ingest dlq show ID` shows one; correct the "
    "cause; run `ingest dlq redrive --reason R --dry-run`, then without --dry-run; run `ingest dlq list` again.\n\n"
    "On RabbitMQ a command holds the messages while it runs and returns them in their order: run one at a time, as the "
    "service's user. `list`, `show` and `export` work beside a running `ingest dev`; stop it for the others.\n\n"
    "Ctrl-C ends a command after the messages that it is dealing with, at most 200; it prints what is done and what is "
    "not, and the exit code is 130.",
    no_args_is_help=True,
)


@app.command("list")
def list_(
    reason: Reasons = None, customer: Customer = None, older: Older = None, newer: Newer = None, json: Json = False
) -> None:
    """Group dead letters by reason, with their number, their age, an example, and what to do.

    Example: ingest dlq list --customer acme --newer-than 1h
    """
    selection = selection_of(None, reason, customer, older, newer)
    groups: dict[str, Group] = {}

    async def look(access: DeadLetterAccess) -> None:
        with ProgressBar().of(await access.queue.count()) as progress:
            async for batch in dead_letters.select(access.queue, selection, access.trusted_users, progress):
                dead_letters.add_to(groups, batch)
                progress.add(len(batch))

    def tell(ending: Ending) -> None:
        if ending is not Ending.COMPLETE:
            return
        if json:
            dlq_view.print_json(dlq_view.groups_json(groups.values()))
        else:
            matching = " match" if selection != Selection() else ""
            typer.echo(dlq_view.groups_text(groups.values()) or f"no dead letters{matching}")

    run(look, change=False, tell=tell)


@app.command()
def show(
    id_: Annotated[str, typer.Argument(metavar="ID", help="As printed by `ingest dlq list` and `export`.")],
    raw: Annotated[bool, typer.Option("--raw", help="Do not remove secrets.")] = False,
    json: Json = False,
) -> None:
    """Show one dead letter completely. That is why it is there, and the submission.

    Without --raw, secrets are removed: API keys, and passwords, tokens and signatures in URLs. Without --json, control
    characters are escaped and a long body is cut.
    """
    copies: list[DeadLetter] = []

    async def look(access: DeadLetterAccess) -> None:
        selection = Selection(ids=frozenset({id_}))
        with ProgressBar().of(await access.queue.count()) as progress:
            # It reads to the end: stopping early would change the order of the queue.
            async for batch in dead_letters.select(access.queue, selection, access.trusted_users, progress):
                copies.append(batch[0])
                progress.add(len(batch))

    def tell(ending: Ending) -> None:
        if ending is not Ending.COMPLETE:
            return
        if not copies:
            raise ConfigurationError(
                f"there is no dead letter {id_}: `ingest dlq list` has examples, `export` has all ids"
            )
        if json:
            dlq_view.print_json(dlq_view.dead_json(copies[0], raw=raw))
        else:
            typer.echo(dlq_view.dead_text(copies[0], raw=raw))

    run(look, change=False, tell=tell)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Must not exist yet; `-` is standard output.")],
    reason: Reasons = None,
    customer: Customer = None,
    older: Older = None,
    newer: Newer = None,
) -> None:
    """Write dead letters to a file. Each is a line of JSON, the oldest first; they stay in the queue.

    Only its owner can read the file: it contains the submissions exactly as they were sent, including secrets in them.
    Example: ingest dlq export --reason invalid --customer acme invalid.jsonl
    """
    selection = selection_of(None, reason, customer, older, newer)
    name = "the output" if str(file) == "-" else str(file)
    progress = ProgressBar("exported {done:,}, read {handled:,}")

    async def write(access: DeadLetterAccess) -> None:
        with _output(file) as out, progress.of(await access.queue.count()):
            async for batch in dead_letters.select(access.queue, selection, access.trusted_users, progress):
                lines = "".join(f"{json_text(dlq_view.dead_json(dead, raw=True))}\n" for dead in batch)
                with writing_to(f"{name}, which has only the first {progress.done:,} dead letters"):
                    out.write(lines.encode())
                    out.flush()  # only what is written counts as exported
                progress.add(len(batch), len(batch))

    def tell(ending: Ending) -> None:
        if ending is not Ending.FAILED or progress.handled:
            typer.echo(dlq_view.export_text(progress.done, ending, progress.remaining, str(file)), err=True)

    run(write, change=False, tell=tell)


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
    """Submit dead letters again, unchanged. Routing key, message_id, content type and timestamp stay the same.

    Each is removed only after the broker has confirmed the new message. It keeps its idempotency key, so a submission
    that was accepted before, or is redriven twice, is dropped as a duplicate. One that is still invalid, or over quota,
    becomes a dead letter again. A submission that another user sent in a customer's name is never redriven. Exit code 1
    if the broker did not confirm.

    Example: ingest dlq redrive --reason quota_exhausted --customer acme --rate 50/s
    """
    selection = selection_of(ids, reason, customer, older, newer, all_=all_)
    limit = None if rate is None else parameters.rate(rate, "--rate")
    report, progress = Report(), ProgressBar("redriven {done:,}, read {handled:,}")

    async def drive(access: DeadLetterAccess) -> None:
        publisher = await access.publisher()
        with progress.of(await access.queue.count()):
            await dead_letters.redrive(
                access.queue,
                publisher,
                selection,
                access.trusted_users,
                rate=limit,
                dry_run=dry_run,
                report=report,
                progress=progress,
            )

    def tell(ending: Ending) -> None:
        if ending is Ending.FAILED and not report.matched:
            return
        unread = progress.remaining - report.not_tried
        if json:
            dlq_view.print_json(dlq_view.report_json(report, ending, unread, dry_run=dry_run))
        else:
            typer.echo(dlq_view.report_text(report, ending, unread, dry_run=dry_run))

    run(drive, change=True, tell=tell)
    if report.failed:
        raise typer.Exit(UNAVAILABLE)


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
    selection = selection_of(ids, reason, customer, older, newer, all_=all_)
    if not (yes or dry_run):
        terminal()  # fails before anything is read if there is none
    groups: dict[str, Group] = {}
    progress = ProgressBar("purged {done:,}")

    async def clear(access: DeadLetterAccess) -> None:
        with ProgressBar().of(await access.queue.count()) as reading:
            found, deliveries = await dead_letters.gather(access.queue, selection, access.trusted_users, reading)
        groups.update(found)
        if not deliveries or dry_run or not (yes or await _agreed(groups)):
            return
        with progress.of(len(deliveries)):
            await dead_letters.remove(access.queue, deliveries, progress)

    def tell(ending: Ending) -> None:
        if ending is Ending.FAILED and not groups:
            return
        if json:
            dlq_view.print_json(dlq_view.purge_json(groups, progress.done, ending, dry_run=dry_run))
        else:
            typer.echo(dlq_view.purge_text(groups, progress.done, ending, dry_run=dry_run))

    run(clear, change=True, tell=tell)


app.command()(dlq_trim.trim)


async def _agreed(groups: dict[str, Group]) -> bool:
    stream = terminal()
    print(dlq_view.groups_text(groups.values()), file=stream)
    return await confirmed(f"\nDelete {dlq_view.counts(groups)} for good?", stream)


@contextmanager
def _output(path: Path) -> Iterator[BinaryIO]:
    standard = str(path) == "-"
    try:
        descriptor = sys.stdout.fileno() if standard else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigurationError(f"cannot make {path}: {error.strerror}") from error
    out = os.fdopen(descriptor, "wb", closefd=not standard)
    try:
        yield out
        if not standard:
            with writing_to(str(path)):
                os.fsync(descriptor)
    finally:
        with suppress(OSError):  # raised before: everything was flushed
            out.close()
