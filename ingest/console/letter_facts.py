"""What is shown of a single dead letter."""

from typing import Any

from ingest.domain.display import indented, redacted


def details_facts(found: dict[str, Any]) -> tuple[dict[str, str], str]:
    """Return what is shown of the details of a dead letter, by name, and its body; both without secrets."""
    found = redacted(found)
    submission: dict[str, Any] = found.get("submission", {})
    names = ("body", "body_base64")
    bodies = [str(holder.pop(name)) for holder in (found, submission) for name in names if name in holder]
    body = "".join(map(indented, bodies)) + (
        "\n… the rest is not kept here: `ingest dlq export` has it" if found.get("cut") else ""
    )
    trimmed = found.get("trimmed")
    facts = {
        "reason": f"{found['reason']}: {found['error']}",
        "customer": found["cust_id"],
        "died": found["died_at"] or "unknown",
        "redriven": _redriven(found),
        **{f"error {number}": error.get("error", error) for number, error in enumerate(found["errors"], 1)},
        "what to do": found["remedy"],
        "redrive": f"not possible: {found['blocker']}" if found["blocker"] else "possible",
        "trace id": found.get("trace_id"),
        "trimmed": trimmed and f"at {trimmed['at']}, the body had {trimmed['body_bytes']:,} bytes",
        "deliveries": f"{found['deliveries']}, also those for reading it",
        **submission,
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}, body


def _redriven(found: dict[str, Any]) -> str:
    """Return how often it was redriven before, and when it first died; empty if it was not."""
    count = found.get("redrives", 0)
    first = found.get("first_died_at") or "at an unknown time"
    return f"{count} time{'' if count == 1 else 's'}; it first died {first}" if count else ""
