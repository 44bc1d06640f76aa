"""`ingest dlq trim`: bounds how many bytes the dead letters of each customer have."""

import asyncio
from functools import partial
from typing import Annotated, Any

import typer

from ingest import bootstrap, settings
from ingest.backends import BrokerBackend, broker_backend
from ingest.cli.dlq_options import DryRun
from ingest.cli.dlq_session import run_with_backend
from ingest.cli.exits import UNAVAILABLE, Ending
from ingest.cli.options import Json, byte_count, size_text
from ingest.domain.display import json_text, shown
from ingest.operations.parameters import seconds
from ingest.operations.trim import TrimReport
from ingest.operations.trim import trim as trim_once
from ingest.operations.trim_loop import trim_repeatedly
from ingest.telemetry import logs


def trim(
    keep: Annotated[
        str, typer.Option(metavar="SIZE", help="How much the dead letters of one customer may have: 256MiB, 1GiB.")
    ] = "1GiB",
    every: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Repeat after this pause, until SIGTERM: 90s, 10m, 1h.", show_default=False),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove the bodies of the oldest dead letters of a customer that has too many bytes.

    Each stays as a small dead letter with its id, reason, time, and the properties of the submission. It says when the
    body was removed, how many bytes it had, and its SHA-256. It can no longer be redriven: the customer has to submit
    it again. Customers with at most SIZE lose nothing.

    Each customer is printed and logged as a warning (`dead_letters_trimmed`). Trimmed dead letters move to the end of
    the queue. Exit code 1 if the broker did not confirm. With --every, an unavailable broker is logged and tried again.

    Example: ingest dlq trim --keep 256MiB --dry-run
    """
    limit = byte_count(keep, "--keep")
    if every is not None:
        raise typer.Exit(_repeat(limit, seconds(every, "--every"), dry_run=dry_run, json=json))
    report = TrimReport(limit)

    async def once(backend: BrokerBackend) -> None:
        await trim_once(backend.open_dead_letters, report, dry_run=dry_run)

    def tell(ending: Ending) -> None:
        if ending is not Ending.FAILED or report.customers:
            _print(report, ending, dry_run=dry_run, json=json)

    run_with_backend(once, tell)
    if report.failed:
        raise typer.Exit(UNAVAILABLE)


def _repeat(limit: int, pause: float, *, dry_run: bool, json: bool) -> int:
    current = settings.load()
    logs.configure(current.log_level, current.log_format, current.dependencies)
    backend = broker_backend(current)

    async def once() -> None:
        report, ending = TrimReport(limit), Ending.FAILED
        try:
            await trim_once(backend.open_dead_letters, report, dry_run=dry_run)
            ending = Ending.COMPLETE
        except asyncio.CancelledError:
            ending = Ending.INTERRUPTED
            raise
        finally:
            if report.customers:
                _print(report, ending, dry_run=dry_run, json=json)

    return bootstrap.run(partial(trim_repeatedly, once, pause), current.shutdown_deadline)


def _print(report: TrimReport, ending: Ending, *, dry_run: bool, json: bool) -> None:
    if json:
        typer.echo(json_text(trim_json(report, ending, dry_run=dry_run)))
    else:
        typer.echo(trim_text(report, ending, dry_run=dry_run))


def trim_json(report: TrimReport, ending: Ending, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "ending": ending,
        "keep_bytes": report.keep,
        "customers": [
            {
                "cust_id": customer,
                "trimmed": usage.trimmed,
                "copies_removed": usage.copies,
                "bytes_before": usage.found,
                "bytes_removed": usage.removed,
                "bytes_kept": usage.kept,
            }
            for customer, usage in report.customers.items()
        ],
        "failed": dict(report.failed),
    }


def trim_text(report: TrimReport, ending: Ending, *, dry_run: bool) -> str:
    """Return a line for each customer with too many bytes, and further ones if that is not the whole result."""
    most = size_text(report.keep)
    verb = "would trim" if dry_run else "trimmed"
    lines = []
    for customer, usage in report.customers.items():
        removed, kept = size_text(usage.removed), size_text(usage.kept)
        lines.append(f"{shown(customer) or 'no customer'}: {verb} {usage.trimmed:,}, {removed} removed, {kept} kept")
        if usage.copies:
            lines.append(f"  {usage.copies:,} were in the queue a second time, trimmed: removed completely")
        if ending is Ending.COMPLETE and not report.failed and customer in report.above:
            lines.append(f"  the rest is as small as it can be and still above {most}: export and purge dead letters")
    if report.failed:
        what = ", ".join(f"{count} {outcome}" for outcome, count in report.failed.items())
        lines.append(f"the broker did not confirm {what}: these and the rest are unchanged; run it again")
    if ending is not Ending.COMPLETE:
        lines.append(f"{ending}: the rest is unchanged; run it again")
    return "\n".join(lines) or f"nothing to trim: no customer has more than {most}"
