"""Checks of the topology on RabbitMQ: exchanges, queues, bindings, and the policies that are in force."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ingest.broker.rabbitmq.broker import BrokerInfo
from ingest.broker.rabbitmq.management import Management, is_surplus, unmet
from ingest.domain import topology
from ingest.domain.findings import Finding, error, ok, warning

_AREA: Final = "broker"
_MISSING: Final = " is missing"
_DECLARED: Final = frozenset({"queue-type", "queue-leader-locator"})
"""Arguments of the declaration that are not limits."""
_APPLY: Final = "run `ingest topology apply`"
_APPLY_POLICIES: Final = (
    "run `ingest topology apply` with INGEST_MANAGEMENT_URL; its user needs the tag `policymaker` for that"
)
_REMOVE_SURPLUS: Final = (
    "set INGEST_HTTP_QUEUES and INGEST_HEAVY_QUEUES to the numbers of the shims; if all shims and workers use the "
    "smaller number, run `ingest topology apply --remove-surplus`"
)
_FEEDBACK: Final = topology.FEEDBACK_PREFIX
_NOT_LIMITED: Final = {topology.INGEST_DEAD, *topology.EVENT_QUEUES}
"""Queues whose messages must not be dropped after some deliveries."""
_NEARLY_FULL: Final = 0.9
_LOSES: Final = {
    "message-ttl": "a message that waits longer is dropped or dead-lettered",
    "expires": "the queue is deleted when it is unused",
}


def missing_queues(info: BrokerInfo) -> Iterator[Finding]:
    """The finding about missing queues, from what AMQP shows."""
    if missing := [f"queue {name}" for name, depth in info.queues.items() if depth is None]:
        yield _are_missing(missing)


def _are_missing(names: Sequence[str]) -> Finding:
    return error(_AREA, f"missing: {', '.join(names)}", _APPLY)


def topology_findings(management: Management, info: BrokerInfo, outage_hold: float) -> Iterator[Finding]:
    """Findings about exchanges, queues, bindings and policies. Raises as `Management.get`."""
    drift = management.drift()
    if missing := [sentence.removesuffix(_MISSING) for sentence in drift if sentence.endswith(_MISSING)]:
        yield _are_missing(missing)
    for sentence in drift:
        if not sentence.endswith(_MISSING):
            other_type = "of type" in sentence
            do = "move its messages, delete it, then run `ingest topology apply`" if other_type else _APPLY
            yield error(_AREA, sentence, do)
    for name in management.surplus_queues():
        yield warning(_AREA, is_surplus(name), _REMOVE_SURPLUS)
    if not drift:
        yield ok(_AREA, "exchanges, queue types and bindings match the topology")
    in_force = management.policies()
    queues = management.queues()
    yield from full_feedback(queues)
    arguments = {name: queue.get("arguments") or {} for name, queue in queues.items()}
    effective = {
        name: {key.removeprefix("x-"): value for key, value in arguments[name].items()} | in_force.of(name)
        for name in [*[queue.name for queue in management.layout.queues], *management.producer_queues()]
        if name in arguments  # `topology apply` creates a missing queue and its policy
    }
    yield from policy_findings(effective, info.major, outage_hold)


def full_feedback(queues: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Findings about producers that do not read their reports. `queues`: as the management API returns them."""
    for name, queue in sorted(queues.items()):
        used = max(
            queue.get("messages", 0) / topology.MAX_FEEDBACK,
            queue.get("message_bytes", 0) / topology.MAX_FEEDBACK_BYTES,
        )
        if name.startswith(_FEEDBACK) and used >= _NEARLY_FULL:
            cust_id = name.removeprefix(_FEEDBACK)
            yield warning(
                _AREA,
                f"{name} is {min(used, 1):.0%} full: {cust_id} does not read its reports. When it is full, "
                "the oldest are dropped",
                f"ask {cust_id} to consume it: deploy/producers.md, Feedback",
            )


def policy_findings(effective: Mapping[str, dict[str, Any]], major: int, outage_hold: float) -> Iterator[Finding]:
    """Findings about the policies of all queues.

    Args:
        effective: the arguments and policies of each queue together, by its name.
        major: the first number of RabbitMQ's version.
        outage_hold: seconds for which workers hold deliveries in an outage.
    """
    correct = []
    without_policy = []
    for queue, values in effective.items():
        own = [*_policy(queue, values, major), *_timeout(queue, values, outage_hold)]
        if not own:
            correct.append(queue)
        elif not values.keys() - _DECLARED:
            without_policy.append(queue)
        else:
            yield from own
    if without_policy:
        yield error(_AREA, f"no policy is set for {', '.join(without_policy)}{_lost(without_policy)}", _APPLY_POLICIES)
    if correct:
        yield ok(_AREA, f"policies are correct: {', '.join(correct)}")
    if not any("consumer-timeout" in values for values in effective.values()):
        yield ok(
            _AREA,
            f"no policy sets consumer-timeout; the broker's own consumer_timeout (30 min by default, not visible from "
            f"here) must be above INGEST_OUTAGE_HOLD, {outage_hold:.0f} s",
        )


def _lost(queues: Sequence[str]) -> str:
    """Return what happens in queues that need a policy and have none. Only RabbitMQ 4 limits deliveries by itself."""
    consequences = []
    submissions = [name for name in queues if name not in _NOT_LIMITED and not name.startswith(_FEEDBACK)]
    if submissions:
        consequences.append("a submission that fails too often is lost instead of dead-lettered")
    if not _NOT_LIMITED.isdisjoint(queues):
        consequences.append("events and dead letters are dropped after 20 deliveries")
    if any(name.startswith(_FEEDBACK) for name in queues):
        consequences.append("the number of unread reports to producers is not bounded")
    return f": {', and '.join(consequences)}"


def _policy(queue: str, effective: dict[str, Any], major: int) -> Iterator[Finding]:
    wrong = unmet(queue, effective)
    if queue.startswith(_FEEDBACK):
        yield from _feedback_policy(queue, effective, wrong)
        return
    limit = wrong.pop("delivery-limit", None)
    has = effective.get("delivery-limit")
    in_force = 20 if has is None else has
    if wrong:
        shown = ", ".join(f"{name} is {effective.get(name, 'not set')} instead of {wrong[name]}" for name in wrong)
        yield error(_AREA, f"{queue}: {shown}: dead letters can be lost", _APPLY_POLICIES)
    if limit is not None and queue == topology.INGEST_DEAD and (has is not None or major >= 4):
        what = f"{queue}: delivery-limit is {in_force}: a dead letter that is read so often is dropped"
        yield error(_AREA, what, _APPLY_POLICIES)
    elif limit is not None and queue in topology.EVENT_QUEUES:
        if has is not None or major >= 4:
            yield error(
                _AREA,
                f"{queue}: delivery-limit is {in_force}: an event that its consumer returns more often is dropped",
                f"{_APPLY_POLICIES}; or add a dead-letter-exchange to the policy that limits it",
            )
    elif limit is not None and queue != topology.INGEST_DEAD:
        what = f"{queue}: delivery-limit is {has or 'not set'}; tested with {limit}"
        yield warning(_AREA, what, _APPLY_POLICIES)
    for name, consequence in _LOSES.items():
        if name in effective:
            do = "remove it from the policy or the queue"
            yield error(_AREA, f"{queue} has {name} {effective[name]}: {consequence}", do)
    if {"max-length", "max-length-bytes"} & effective.keys() and effective.get("overflow") != "reject-publish":
        yield error(_AREA, f"{queue} has a maximum length and drops its oldest messages", "set overflow reject-publish")


def _feedback_policy(queue: str, effective: dict[str, Any], wrong: Mapping[str, Any]) -> Iterator[Finding]:
    """Findings about the queue of reports to a producer, which is bounded: only its oldest reports are dropped."""
    if wrong:
        shown = ", ".join(f"{name} is {effective.get(name, 'not set')} instead of {wrong[name]}" for name in wrong)
        yield warning(_AREA, f"{queue}: {shown}", _APPLY_POLICIES)


def _timeout(queue: str, effective: dict[str, Any], outage_hold: float) -> Iterator[Finding]:
    timeout = effective.get("consumer-timeout")
    if isinstance(timeout, int) and timeout / 1000 <= outage_hold:
        yield error(
            _AREA,
            f"{queue}: consumer-timeout is {timeout / 1000:.0f} s, workers hold up to {outage_hold:.0f} s in an outage",
            "raise consumer-timeout, or lower INGEST_OUTAGE_HOLD",
        )
