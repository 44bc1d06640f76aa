"""Routing keys of submissions: `<kind>.submitted.<cust_id>`, after a route if the shim has admitted the submission.

A direct producer may use only `task.submitted.<cust_id>` and `batch.submitted.<cust_id>` of its own customer. A route
such as `http.0` or `heavy.0` names the traffic class and the queue of that class (`topology.Layout`).

A bundle (`domain.bundles`) has the routing key `<route>.bundle`.
"""

import re
from typing import Final, NamedTuple

from ingest.domain.identity import SubmissionKind

_ADDRESS: Final = re.compile(
    r"(?:(?P<route>(?:http|heavy)\.(?:[0-9]+|bulk))\.)?(?P<kind>task|batch)\.submitted\.(?P<cust_id>[^.]*)"
)


_NUMBERED: Final = re.compile(r"\A(http|heavy)\.[0-9]+\.")
DEFAULT_ROUTE: Final = "http.0"
"""The route of what the shim admits, if no router chooses another."""


class Address(NamedTuple):
    """What a routing key says about its submission. `cust_id` is not checked; `route` is empty if there is none."""

    kind: SubmissionKind
    cust_id: str
    route: str = ""


def routing_key(kind: SubmissionKind, cust_id: str, route: str = "") -> str:
    """Return the routing key of a submission; without a route, the one that direct producers use."""
    key = f"{kind}.submitted.{cust_id}"
    return f"{route}.{key}" if route else key


def bundle_routing_key(route: str) -> str:
    """Return the routing key of a bundle."""
    return f"{route}.bundle"


def route_of(routing_key: str) -> str:
    """Return the route in the routing key of an admitted submission."""
    return ".".join(routing_key.split(".", 2)[:2])


def with_first_queue(routing_key: str) -> str:
    """Return a routing key with the first queue of its traffic class, because others may have been removed."""
    return _NUMBERED.sub(r"\1.0.", routing_key)


def is_batch(routing_key: str) -> bool:
    """Return whether a routing key is one of a batch, as far as can be seen without checking it."""
    return "batch.submitted." in routing_key


def parse(routing_key: str) -> Address | None:
    """Return the address in a routing key; None if it is not one of a submission."""
    match = _ADDRESS.fullmatch(routing_key)
    return match and Address(SubmissionKind(match["kind"]), match["cust_id"], match["route"] or "")
