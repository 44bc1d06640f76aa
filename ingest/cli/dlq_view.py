"""The output of `ingest dlq`: text for people, JSON for programs."""

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import typer

from ingest.cli.exits import Ending
from ingest.domain.dead_letters import DeadLetter
from ingest.domain.display import age, escape, indented, json_text, redact, redacted, shown
from ingest.operations.dead_letters import Group, Report, details
from ingest.operations.remedies import INVALID_PAYLOAD, REMEDIES, remedy

_MAX_SHOWN: Final = 64 * 1024


def groups_json(groups: Iterable[Group]) -> list[dict[str, Any]]:
    now = time.time()
    return [
        {
            "reason": group.reason,
            "count": group.count,
            "oldest_age_seconds": group.oldest and round(now - group.oldest),
            "newest_age_seconds": group.newest and round(now - group.newest),
            "without_time": group.undated,
            "customers": len(group.customers),
            "example": {"id": group.example, "error": redact(group.error)},
            "what_to_do": " ".join(group.remedies),
        }
        for group in _ordered(groups)
    ]


def groups_text(groups: Iterable[Group]) -> str:
    """Return one block per reason."""
    now = time.time()
    blocks = []
    for group in _ordered(groups):
        oldest, newest = (age(at and now - at) for at in (group.oldest, group.newest))
        (customer, most), *others = group.customers.most_common()
        customers = f"{shown(customer) or 'no customer'}" + (f" ({most}) and {len(others)} more" if others else "")
        lines = [
            f"{shown(group.reason)}: {group.count}",
            f"  age        oldest {oldest}, newest {newest}",
            f"  customer   {customers}",
            f"  example    {shown(group.example)}",
            f"             {shown(group.error)}",
        ]
        for advice, count in group.remedies.most_common():
            part = f"(for {count}) " if count < group.count else ""
            lines += [f"  what to do {part}{advice}"] if advice else []
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def dead_json(dead: DeadLetter, *, raw: bool) -> dict[str, Any]:
    """Return one dead letter completely, as `details`: unchanged with `raw`, otherwise without secrets."""
    fields = details(dead)
    return fields if raw else cast("dict[str, Any]", redacted(fields))


def dead_text(dead: DeadLetter, *, raw: bool) -> str:
    """Return one dead letter as text for people: its facts, then the submission as indented JSON.

    With `raw` it contains secrets. It never contains control characters.
    """
    facts = dead_json(dead, raw=raw)
    origin: dict[str, Any] = facts.pop("submission", {})
    errors = facts.pop("errors")
    body = {name: holder.pop(name) for holder in (facts, origin) for name in ("body", "body_base64") if name in holder}
    if dead.trimmed is not None:
        removed = facts.pop("trimmed")
        facts["trimmed"] = f"at {removed['at']}, the body had {removed['body_bytes']:,} bytes"
        facts["body_sha256"] = removed["body_sha256"]
    lines = [f"{name}: {_line(value)}" for name, value in facts.items()]
    lines += [f"  {_line(error.get('error', error))}" for error in errors]
    if advice := remedy(dead):
        lines.append(f"what to do: {advice}")
    lines += ["", "submission", *[f"  {name}: {_line(value)}" for name, value in origin.items()], ""]
    for name, text in body.items():
        lines.append(f"{name} ({len(dead.origin.body if dead.origin else dead.delivery.body):,} bytes)")
        lines.append(_pretty(text))
    return "\n".join(lines)


def report_json(report: Report, ending: Ending, unread: int, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "ending": ending,
        "matched": report.matched,
        "redriven": dict(report.done),
        "not_redriven": dict(report.kept),
        "failed": dict(report.failed),
        "not_tried": report.not_tried,
        "not_read": unread,
    }


def report_text(report: Report, ending: Ending, unread: int, *, dry_run: bool) -> str:
    """Return lines that say what was redriven, what was not, and why.

    `unread` is how many dead letters were not looked at, because the redrive ended before.
    """
    verb = "would redrive" if dry_run else "redrove"
    lines = [f"{verb} {report.done.total():,} of {report.matched:,}"]
    for reason, count in report.done.most_common():
        invalid = REMEDIES.get(reason) == INVALID_PAYLOAD
        lines.append(f"  {count} {shown(reason)}" + (f" ({INVALID_PAYLOAD})" if invalid else ""))
    lines += [f"  kept {count}: {shown(blocker)}" for blocker, count in report.kept.most_common()]
    if report.failed:
        what = ", ".join(f"{count} {outcome}" for outcome, count in report.failed.items())
        lines.append(f"  the broker did not confirm {what}: these and the rest are still in the queue; run it again")
    if ending is not Ending.COMPLETE:
        lines.append(
            f"  {ending}: {report.not_tried:,} more that match and {unread:,} that were not read are still in the "
            "queue; run it again"
        )
    return "\n".join(lines)


def purge_json(groups: Mapping[str, Group], purged: int, ending: Ending, *, dry_run: bool) -> dict[str, Any]:
    by_reason = {group.reason: group.count for group in groups.values()}
    matched = sum(by_reason.values())
    return {"dry_run": dry_run, "ending": ending, "matched": matched, "by_reason": by_reason, "purged": purged}


def purge_text(groups: Mapping[str, Group], purged: int, ending: Ending, *, dry_run: bool) -> str:
    """Return lines that say how many were deleted, in a dry run those that would be."""
    matched = sum(group.count for group in groups.values())
    if ending is not Ending.COMPLETE:
        rest = f"the other {matched - purged:,} are still in the queue" if groups else "nothing was deleted"
        return f"purged {purged:,} of {matched:,}\n  {ending}: {rest}; run it again"
    if not dry_run:
        return f"purged {purged:,} of {matched:,}"
    return (groups_text(groups.values()) + "\n\n" if groups else "") + f"would purge {matched:,}"


def counts(groups: Mapping[str, Group]) -> str:
    """Return how many there are, and of which reasons: `5 dead letters (3 invalid, 2 expired)`."""
    by_reason = ", ".join(f"{group.count:,} {shown(group.reason)}" for group in _ordered(groups.values()))
    matched = sum(group.count for group in groups.values())
    return f"{matched:,} dead letter{'' if matched == 1 else 's'} ({by_reason})"


def export_text(exported: int, ending: Ending, remaining: int, file: str) -> str:
    """Return a line that says how many were exported, and whether that is all."""
    if ending is Ending.COMPLETE:
        return f"exported {exported:,}"
    where = "the output" if file == "-" else shown(file)
    return f"exported {exported:,}\n  {ending}: {remaining:,} were not read, so {where} may be incomplete"


def print_json(data: Any) -> None:
    typer.echo(json_text(data))


def _ordered(groups: Iterable[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: (-group.count, group.reason))


def _line(value: object) -> str:
    """Return a value on one line, without control characters."""
    return "none" if value is None else escape(str(value))


def _pretty(text: str) -> str:
    text = indented(text)  # a dead letter need not be valid JSON
    lines = "\n".join(map(_line, text[:_MAX_SHOWN].split("\n")))
    more = len(text) - _MAX_SHOWN
    return lines if more <= 0 else f"{lines}\n… and {more:,} more characters: `ingest dlq export` has them all"
