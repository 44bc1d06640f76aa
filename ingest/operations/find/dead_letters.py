"""Looks for a submission in the dead letters."""

from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, contextmanager
from typing import Final

import msgspec

from ingest.domain import addresses, admitted
from ingest.domain.dead_letters import DeadLetter, Origin, redrive_blocker
from ingest.domain.errors import InvalidSubmission
from ingest.domain.identity import MAX_ITEMS, SubmissionKind, is_submission_id, keyed_id
from ingest.domain.trace import trace_of
from ingest.operations.dead_letters import Progress, Selection, select
from ingest.operations.find.findings import FoundDeadLetter, Matches, Search
from ingest.operations.remedies import remedy
from ingest.operations.trim import OpenDeadLetters

MAX_DEAD_LETTERS: Final = 20
"""The most dead letters that are shown, the latest ones. A producer may send any number with the same message_id."""

Reading = Callable[[int], AbstractContextManager[Progress]]
"""Shows the progress of reading so many dead letters."""


@contextmanager
def _silent(_: int) -> Iterator[Progress]:
    yield Progress()


def search_queue(open_dead_letters: OpenDeadLetters, reading: Reading = _silent) -> Search:
    """Return a search that reads the whole queue.

    Args:
        open_dead_letters: opens it, as `BrokerBackend.open_dead_letters`.
        reading: shows the progress.
    """

    async def search(names: AbstractSet[str], customer: str | None) -> Matches:
        latest: deque[FoundDeadLetter] = deque(maxlen=MAX_DEAD_LETTERS)
        count = 0
        async with open_dead_letters(change=False) as access:
            with reading(await access.queue.count()) as progress:
                async for batch in select(access.queue, Selection(customer=customer), access.trusted_users, progress):
                    for dead in batch:
                        found, own_names = found_dead_letter(dead, access.trusted_users)
                        if not names.isdisjoint(own_names):
                            count += 1
                            latest.append(found)
                    progress.add(len(batch))
            held = "the dead letters that another consumer of ingest.dead holds" if access.held_by_others() else ""
        return Matches(list(latest), count, held)

    return search


def found_dead_letter(dead: DeadLetter, trusted: frozenset[str]) -> tuple[FoundDeadLetter, set[str]]:
    """Return what is shown of a dead letter, and all names under which it can be found."""
    submission_id, names = _names(dead, trusted)
    trace, origin = trace_of(dead.delivery.headers), dead.origin
    found = FoundDeadLetter(
        id=dead.id,
        reason=dead.reason,
        error=dead.error,
        cust_id=dead.cust_id,
        submission_id=submission_id,
        message_id=(origin and origin.message_id) or "",
        died_at=dead.died_at,
        from_shim=origin is not None and origin.type == admitted.TYPE and origin.user_id in trusted,
        redrivable=redrive_blocker(dead, trusted) is None,
        what_to_do=remedy(dead),
        trace_id=trace.trace_id if trace else "",
    )
    return found, names - {""}


class _Keyed(msgspec.Struct):
    """What names a direct submission or one of its items. The rest of the body is not decoded."""

    idempotency_key: msgspec.Raw = msgspec.Raw()
    tasks: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Keyed).decode
_decode_items = msgspec.json.Decoder(list[_Keyed]).decode
_decode_text = msgspec.json.Decoder(str).decode
_LONGEST_TASKS: Final = 2 * 1024 * 1024
"""Bytes of tasks in which keys are looked for, which takes up to 0.1 s: a producer may send bodies of 16 MiB."""
_LONGEST_KEY: Final = 2000
"""Bytes of a key in JSON; it has at most 255 characters."""


def _key(raw: msgspec.Raw) -> str | None:
    try:
        return _decode_text(raw) if 0 < len(bytes(raw)) <= _LONGEST_KEY else None
    except ValueError:
        return None  # it is not a string


def _item_keys(tasks: msgspec.Raw) -> set[str]:
    try:
        items = _decode_items(tasks) if 0 < len(bytes(tasks)) <= _LONGEST_TASKS else []
    except (ValueError, RecursionError):
        return set()
    return {key for item in items[:MAX_ITEMS] if (key := _key(item.idempotency_key))}


def _names(dead: DeadLetter, trusted: frozenset[str]) -> tuple[str, set[str]]:
    """Return the id of a dead letter's submission, if it is certain, and all names under which it can be found."""
    origin = dead.origin
    if origin is None:
        return "", {dead.id}
    message_id = origin.message_id or ""
    names = {dead.id, message_id}
    if origin.type == admitted.TYPE:
        # Only the service's own users say the truth about ids. The message_id is that of the submission.
        if origin.user_id not in trusted or not is_submission_id(message_id):
            return "", names
        return message_id, names | _admitted_names(origin.body, dead.cust_id, message_id)
    submission_id, direct_names = _direct_names(origin)
    return submission_id, names | direct_names


def _admitted_names(body: bytes, cust_id: str, message_id: str) -> set[str]:
    try:
        submission = admitted.from_body(body).submission
    except InvalidSubmission:
        return set()  # for example trimmed
    if (submission.cust_id, submission.id) != (cust_id, message_id):
        return set()
    return {submission.key or "", *(task.task_id for task in submission.tasks)}


def _direct_names(origin: Origin) -> tuple[str, set[str]]:
    address = addresses.parse(origin.routing_key)
    try:
        decoded, is_certain = _decode(origin.body), True
    except (ValueError, RecursionError):  # for example trimmed; then the body may have had another key
        decoded, is_certain = _Keyed(), False
    key = _key(decoded.idempotency_key) or origin.message_id
    keys = _item_keys(decoded.tasks)
    if address is None or not key:
        return "", keys
    id_ = keyed_id(address.kind, address.cust_id, key)
    item_ids = [keyed_id(SubmissionKind.TASK, address.cust_id, item_key) for item_key in keys]
    return (id_ if is_certain else ""), {key, id_, *keys, *item_ids}
