"""How dead letters are shown: tables and lines for a person, JSON for a program."""

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import msgspec
import typer

from ingest.domain.dead_letters import DeadLetter, body_fields
from ingest.domain.errors import Reason
from ingest.domain.events import rfc3339
from ingest.operations.dead_letters import Group, Report
from ingest.telemetry.logs import redact

_AS_IT_IS: Final = "wrong as it is: redriven it comes back; the customer must submit it anew"
REMEDIES: Final[dict[str, str]] = {
    Reason.MALFORMED: _AS_IT_IS,
    Reason.INVALID: _AS_IT_IS,
    Reason.TOO_LARGE: _AS_IT_IS,
    Reason.UNSUPPORTED_CONTENT_TYPE: _AS_IT_IS,
    Reason.BAD_ROUTING_KEY: _AS_IT_IS,
    Reason.MISSING_MESSAGE_ID: _AS_IT_IS,
    Reason.UNKNOWN_CUSTOMER: "redrive it after `ingest customer add`",
    Reason.USER_MISMATCH: "never redriven: another user sent it in the customer's name",
    Reason.FORGED_ADMISSION: "never redriven: it claims to come from the service",
    Reason.KEY_CONFLICT: "comes back while the customer is strict and the key is remembered",
    Reason.QUOTA_EXHAUSTED: "redrive it next month, or after `ingest customer set CUST --quota N`",
    "delivery_limit": "workers failed on it again and again: read their logs, mend it, then redrive",
    "rejected": "redrive it",
    "expired": "a policy has a message-ttl that must not be there: `ingest doctor`; then redrive it",
    "maxlen": "a policy has a max-length that must not be there: `ingest doctor`; then redrive it",
    "unknown": "not from this service: look at it with `ingest dlq show`",
}
_MAX_SHOWN: Final = 64 * 1024


def age(seconds: float | None) -> str:
    """A time span in its two largest units."""
    if seconds is None:
        return "unknown"
    left = max(0, int(seconds))
    parts: list[str] = []
    for name, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size or (name == "s" and not parts):
            parts.append(f"{left // size}{name}")
        left %= size
    return " ".join(parts[:2])


def groups_json(groups: Iterable[Group]) -> list[dict[str, Any]]:
    now = time.time()
    return [
        {
            "reason": each.reason,
            "count": each.count,
            "oldest_age_seconds": each.oldest and round(now - each.oldest),
            "newest_age_seconds": each.newest and round(now - each.newest),
            "without_time": each.undated,
            "customers": len(each.customers),
            "example": {"id": each.example, "error": redact(each.error)},
            "what_to_do": REMEDIES.get(each.reason, ""),
        }
        for each in _ordered(groups)
    ]


def groups_text(groups: Iterable[Group]) -> str:
    """A block for each reason."""
    now = time.time()
    blocks = []
    for each in _ordered(groups):
        oldest, newest = (age(at and now - at) for at in (each.oldest, each.newest))
        (customer, most), *others = each.customers.most_common()
        whose = f"{customer or 'no customer'}" + (f" ({most}) and {len(others)} more" if others else "")
        lines = [
            f"{each.reason}: {each.count}",
            f"  age        oldest {oldest}, newest {newest}",
            f"  customer   {whose}",
            f"  example    {_line(each.example)}",
            f"             {_line(each.error)}",
        ]
        if remedy := REMEDIES.get(each.reason):
            lines.append(f"  what to do {remedy}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def dead_json(dead: DeadLetter, *, raw: bool) -> dict[str, Any]:
    """One dead letter whole. `raw`: as it is, to be kept or submitted elsewhere; else without secrets."""
    origin = dead.origin
    shown: dict[str, Any] = {
        "id": dead.id,
        "reason": dead.reason,
        "error": dead.error,
        "errors": list(dead.errors),
        "cust_id": dead.cust_id,
        "died_at": dead.died_at and rfc3339(int(dead.died_at * 1000)),
        "deliveries": dead.delivery.deliveries,
    }
    if origin is None:
        shown["routing_key"] = dead.delivery.routing_key
        shown |= body_fields(dead.delivery.body)
    else:
        fields = msgspec.structs.asdict(origin)
        shown["submission"] = {name: fields[name] for name in fields if name != "body"} | body_fields(origin.body)
    return shown if raw else _redacted(shown)


def dead_text(dead: DeadLetter) -> str:
    """For a person to read: what, why, then the submission, JSON indented."""
    shown = dead_json(dead, raw=False)
    origin: dict[str, Any] = shown.pop("submission", {})
    errors = shown.pop("errors")
    body = {name: holder.pop(name) for holder in (shown, origin) for name in ("body", "body_base64") if name in holder}
    lines = [f"{name}: {_line(value)}" for name, value in shown.items()]
    lines += [f"  {_line(each.get('error', each))}" for each in errors]
    if remedy := REMEDIES.get(dead.reason):
        lines.append(f"what to do: {remedy}")
    lines += ["", "submission", *[f"  {name}: {_line(value)}" for name, value in origin.items()], ""]
    for name, text in body.items():
        lines.append(f"{name} ({len(dead.origin.body if dead.origin else dead.delivery.body):,} bytes)")
        lines.append(_pretty(text))
    return "\n".join(lines)


def report_json(report: Report, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "matched": report.looked,
        "redriven": dict(report.done),
        "not_redriven": dict(report.kept),
        "failed": dict(report.failed),
    }


def report_text(report: Report, *, dry_run: bool) -> str:
    """What was done, what was not, and why."""
    verb = "would redrive" if dry_run else "redrove"
    lines = [f"{verb} {report.done.total()} of {report.looked}"]
    for reason, count in report.done.most_common():
        remedy = REMEDIES.get(reason, "")
        lines.append(f"  {count} {reason}" + (f" ({_AS_IT_IS})" if remedy == _AS_IT_IS else ""))
    lines += [f"  kept {count}: {_line(why)}" for why, count in report.kept.most_common()]
    if report.failed:
        what = ", ".join(f"{count} {outcome}" for outcome, count in report.failed.items())
        lines.append(f"  the broker did not confirm {what}: they and the rest are still there; run it again")
    return "\n".join(lines)


def print_json(data: Any) -> None:
    typer.echo(msgspec.json.encode(data).decode())


def _ordered(groups: Iterable[Group]) -> list[Group]:
    return sorted(groups, key=lambda each: (-each.count, each.reason))


def _line(value: object) -> str:
    """On one line, and harmless to a terminal: what customers have sent is shown here."""
    text = "none" if value is None else redact(str(value))
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)


def _pretty(text: str) -> str:
    with suppress(ValueError):  # not JSON may be why it is here
        text = msgspec.json.format(text, indent=2) if len(text) <= _MAX_SHOWN else text
    shown = "\n".join(map(_line, text[:_MAX_SHOWN].split("\n")))
    more = len(text) - _MAX_SHOWN
    return shown if more <= 0 else f"{shown}\n… and {more:,} more characters: `ingest dlq export` has them all"


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {name: _redacted(each) for name, each in value.items()}
    return [_redacted(each) for each in value] if isinstance(value, list) else value
