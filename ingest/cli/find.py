"""`ingest find`: where a submission is."""

import asyncio
import time
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer

from ingest import settings
from ingest.backends import broker_backend, store_backend
from ingest.cli.dlq_session import ProgressBar
from ingest.cli.dlq_view import age, print_json
from ingest.cli.exits import UNAVAILABLE
from ingest.cli.options import Json
from ingest.domain.display import redacted, shown
from ingest.domain.errors import ConfigurationError
from ingest.domain.events import rfc3339
from ingest.operations.find import Findings, FoundEntry, FoundLetter
from ingest.operations.find import find as search
from ingest.telemetry import logs

_TIMES = ("created_at", "changed_at", "remembered_until", "died_at")


def find(
    sought: Annotated[
        str,
        typer.Argument(
            metavar="ID|KEY|MESSAGE_ID",
            help="The id of a task or batch, an idempotency key, the message_id of a direct producer, or the id of a "
            "dead letter.",
        ),
    ],
    customer: Annotated[
        str | None, typer.Option(metavar="CUST", help="Only submissions of this customer.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Show where a task or batch is: how far it has come, whether its event is out, and its dead letters.

    It looks in the ledger, which forgets a submission after its retention, and in ingest.dead. Ids are computed from
    keys, so a key is found without a search; without --customer, that of every customer. If a part of the service does
    not answer, the others are still asked, and what could not be asked is said.

    Exit code: 0, or 1 if nothing was found or something could not be asked.

    Example: ingest find order-10042-line-3 --customer acme
    """
    if not sought:
        raise ConfigurationError("what is sought must be an id, a key or a message_id; it is empty")
    current = settings.load()
    logs.configure(current.log_level, current.log_format)
    open_store, open_dead_letters = store_backend(current).open, broker_backend(current).open_dead_letters
    findings = asyncio.run(
        search(sought, open_store, open_dead_letters, customer, lambda total: ProgressBar().of(total))
    )
    if json:
        print_json(findings_json(findings))
    else:
        typer.echo(findings_text(findings, sought))
    for part in findings.not_asked:
        typer.echo(f"not asked: {shown(part)}", err=True)
    if findings.not_asked or not (findings.entries or findings.letters):
        raise typer.Exit(UNAVAILABLE)


def findings_json(findings: Findings) -> dict[str, Any]:
    """Return the findings for programs, without secrets. Times are RFC 3339."""
    found: dict[str, Any] = redacted(msgspec.to_builtins(findings))
    for part in (*found["entries"], *found["letters"]):
        for name in _TIMES:
            if part.get(name) is not None:
                part[name] = _time(part[name])
    return found


def findings_text(findings: Findings, sought: str) -> str:
    """Return the findings for people."""
    blocks = [*map(_entry_text, findings.entries), *map(_letter_text, findings.letters)]
    if (hidden := findings.letter_count - len(findings.letters)) > 0:
        blocks.append(f"… and {hidden:,} older dead letters: `ingest dlq export` has them all")
    if not blocks:
        where = "" if findings.not_asked else ": it was never submitted or was refused, or its retention has ended"
        return f"{shown(sought)} was not found{where}"
    return "\n\n".join(blocks)


def _entry_text(entry: FoundEntry) -> str:
    batch = entry.batch_id
    if entry.batch_index is not None:
        batch += f", index {entry.batch_index}"
    event = f"{entry.event_id}, {'confirmed' if entry.event_is_out else 'not confirmed'}"
    facts = {
        "state": entry.state,
        "created": _ago(entry.created_at),
        "changed": _ago(entry.changed_at),
        "remembered": f"until {_time(entry.remembered_until)}",
        "tasks": f"{entry.task_count:,}" if entry.task_count else "",
        "batch": batch,
        "event": event,
        "message_id": entry.message_id,
        "request id": entry.request_id,
        "trace id": entry.trace_id,
    }
    return "\n".join([f"{entry.kind} {shown(entry.id)} of {shown(entry.cust_id)}", *_lines(facts)])


def _letter_text(letter: FoundLetter) -> str:
    facts = {
        "reason": f"{letter.reason}: {letter.error}",
        "customer": letter.cust_id,
        "died": "unknown" if letter.died_at is None else _ago(letter.died_at),
        "submission": letter.submission_id,
        "message_id": letter.message_id,
        "trace id": letter.trace_id,
        "what to do": letter.what_to_do,
    }
    return "\n".join([f"dead letter {shown(letter.id)}", *_lines(facts)])


def _lines(facts: dict[str, str]) -> Iterator[str]:
    for name, value in facts.items():
        if value:
            yield f"  {name:<11} {shown(value)}"


def _time(seconds: float) -> str:
    return rfc3339(int(seconds * 1000))


def _ago(seconds: float) -> str:
    return f"{_time(seconds)} ({age(time.time() - seconds)} ago)"
