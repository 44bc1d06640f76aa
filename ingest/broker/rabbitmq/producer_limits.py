"""Checks that producers cannot use up the connections and channels of RabbitMQ."""

import shlex
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from ingest.domain.findings import Finding, warning

AREA: Final = "permissions"
LIMITS: Final = {"max-connections": 20, "max-channels": 200}
"""The limits of a producer, also in deploy/rabbitmq/users.json."""


def missing_limits(user: str, user_limits: list[dict[str, Any]]) -> dict[str, int]:
    """Return the limits that a producer lacks. `user_limits` is as the management API returns them."""
    limits: dict[str, int] = next((entry["value"] for entry in user_limits if entry["user"] == user), {})
    return {name: value for name, value in LIMITS.items() if limits.get(name, -1) < 0}  # a negative one is no limit


def producer_limits(producers: Iterable[str], user_limits: list[dict[str, Any]]) -> Iterator[Finding]:
    """Yield a warning for each producer that lacks a limit.

    Args:
        producers: the users that may submit.
        user_limits: as the management API returns them.
    """
    for user in producers:
        if missing := missing_limits(user, user_limits):
            what = " and ".join(name.removeprefix("max-") for name in missing)
            yield warning(
                AREA,
                f"producer {user} has no limit of {what}: it can use up those of RabbitMQ",
                f"rabbitmqctl set_user_limits {shlex.quote(user)} {shlex.quote(_json(missing))}",
            )


def _json(limits: dict[str, int]) -> str:
    return msgspec.json.encode(limits).decode().replace(":", ": ").replace(",", ", ")
