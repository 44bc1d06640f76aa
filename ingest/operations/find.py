"""Where is my task? Looks for a submission in the ledger and in the dead letters."""

import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Final

import msgspec

from ingest.domain import addresses, admitted
from ingest.domain.dead_letters import DeadLetter
from ingest.domain.errors import IngestError, InvalidSubmission, StoreUnavailable
from ingest.domain.events import acceptance_id
from ingest.domain.identity import SubmissionKind, batch_and_index, is_id, keyed_id
from ingest.domain.ledger import UNDECIDED, Doubt, Phase, StoredEntry
from ingest.domain.overview import counted
from ingest.domain.ports import Store
from ingest.domain.trace import trace_of
from ingest.operations.dead_letters import Progress, Selection, select
from ingest.operations.remedies import remedy
from ingest.operations.trim import OpenDeadLetters

MAX_LETTERS: Final = 20
"""The most dead letters that are shown, the latest ones. A producer may send any number with the same message_id."""

Reading = Callable[[int], AbstractContextManager[Progress]]
"""Shows the progress of reading so many dead letters."""


class FoundEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A task or batch in the ledger.

    `state` says in a sentence how far it has come, and `event_is_out` whether its acceptance event is confirmed. Times
    are in Unix seconds; it is remembered at least until `remembered_until`. An item of a batch has `batch_id`, and
    `batch_index` if it has no key. `message_id`, `request_id` and `trace_id` are those of the request or message that
    submitted it, if they are known.
    """

    kind: SubmissionKind
    id: str
    cust_id: str
    phase: Phase
    state: str
    created_at: float
    changed_at: float
    remembered_until: float
    event_id: str
    event_is_out: bool
    task_count: int = 0
    batch_id: str = ""
    batch_index: int | None = None
    message_id: str = ""
    request_id: str = ""
    trace_id: str = ""


class FoundLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter of the submission, without its body. `died_at` is in Unix seconds, None if it is not known.

    `submission_id` is empty if the body does not say it. `what_to_do` is empty if the reason is not known.
    """

    id: str
    reason: str
    error: str
    cust_id: str
    submission_id: str
    message_id: str
    died_at: float | None
    what_to_do: str
    trace_id: str


class Findings(msgspec.Struct, kw_only=True):
    """What was found. `not_asked` are sentences about parts of the service that did not answer.

    `letters` are the latest of `letter_count`.
    """

    entries: list[FoundEntry] = []
    letters: list[FoundLetter] = []
    letter_count: int = 0
    not_asked: list[str] = []

    def add_not_asked(self, part: str) -> None:
        """Note that a part did not answer; once, if it is asked several times."""
        if part not in self.not_asked:
            self.not_asked.append(part)


@contextmanager
def _silent(_: int) -> Iterator[Progress]:
    yield Progress()


async def find(
    sought: str,
    open_store: Callable[[], Awaitable[Store]],
    open_dead_letters: OpenDeadLetters,
    customer: str | None = None,
    reading: Reading = _silent,
) -> Findings:
    """Look for a task or batch.

    Args:
        sought: its id, its idempotency key, its AMQP message_id, or the id of its dead letter.
        open_store: opens the ledger, as `StoreBackend.open`.
        open_dead_letters: opens the dead letters, as `BrokerBackend.open_dead_letters`.
        customer: only this customer's. With a key and no customer, every customer's ids are computed.
        reading: shows the progress.

    Raises:
        ConfigurationError: the settings are invalid.
    """
    findings = Findings()
    store = await _open(open_store, findings)
    try:
        ids = await _ids(sought, customer, store, findings)
        await _search_dead_letters(findings, open_dead_letters, sought, ids, customer, reading)
        ids += [letter.submission_id for letter in findings.letters if letter.submission_id]
        if store is not None:
            entries = await _entries(store, list(dict.fromkeys(ids)), customer, findings)
            findings.entries = [_with_letters(entry, findings.letters) for entry in entries]
    finally:
        if store is not None:
            await store.close()
    return findings


async def _open(open_store: Callable[[], Awaitable[Store]], findings: Findings) -> Store | None:
    try:
        return await open_store()
    except StoreUnavailable as error:
        findings.add_not_asked(f"the ledger: {error}")
        return None


async def _ids(sought: str, customer: str | None, store: Store | None, findings: Findings) -> list[str]:
    """Return the ids that a submission can have."""
    if any(is_id(kind, sought) for kind in SubmissionKind):
        return [sought]
    cust_ids = []
    if customer is not None:
        cust_ids = [customer]
    elif store is not None:
        try:
            cust_ids = [customer.cust_id for customer in await store.customers()]
        except StoreUnavailable as error:
            findings.add_not_asked(f"the customers, whose ids are needed to look for a key: {error}")
    return [keyed_id(kind, cust_id, sought) for cust_id in cust_ids for kind in SubmissionKind]


async def _entries(store: Store, ids: Sequence[str], customer: str | None, findings: Findings) -> list[FoundEntry]:
    """Return what the ledger says about ids."""
    stored = await _read(store, ids, findings)
    # An item without a key has no entry; that of its batch says everything about it.
    batch_ids = {batch_and_index(id_)[0] for id_ in ids if is_id(SubmissionKind.TASK, id_)}
    batch_ids |= {found.entry.origin for found in stored.values() if is_id(SubmissionKind.BATCH, found.entry.origin)}
    batches = await _read(store, sorted(batch_ids), findings)
    found = [_found(id_, stored, batches) for id_ in ids]
    return [entry for entry in found if entry is not None and customer in (None, entry.cust_id)]


def _with_letters(entry: FoundEntry, letters: Sequence[FoundLetter]) -> FoundEntry:
    """Return an entry whose state takes the dead letters into account: no worker gets a message that is there."""
    dead = {letter.submission_id for letter in letters}
    if entry.phase is not Phase.QUEUED or dead.isdisjoint((entry.id, entry.batch_id)):
        return entry
    return msgspec.structs.replace(entry, state="queued, and now in ingest.dead: it is accepted once it is redriven")


async def _read(store: Store, ids: Sequence[str], findings: Findings) -> dict[str, StoredEntry]:
    """Return the stored ones of some entries, by id."""
    try:
        stored = await store.inspect(ids)
    except StoreUnavailable as error:
        findings.add_not_asked(f"the ledger: {error}")
        return {}
    if undecided := sum(found is UNDECIDED for found in stored):
        findings.add_not_asked(f"{counted(undecided, 'record')} of the ledger, which could not be read now")
    return {id_: found for id_, found in zip(ids, stored, strict=True) if isinstance(found, StoredEntry)}


def _found(id_: str, stored: dict[str, StoredEntry], batches: dict[str, StoredEntry]) -> FoundEntry | None:
    own = stored.get(id_)
    if is_id(SubmissionKind.BATCH, id_):
        return None if own is None else _entry(SubmissionKind.BATCH, id_, own)
    if own is not None:
        batch = batches.get(own.entry.origin)
        if batch is None or id_ not in batch.entry.keyed_item_ids.values():
            return _entry(SubmissionKind.TASK, id_, own)
        item = _entry(SubmissionKind.TASK, id_, own, batch_id=batch.entry.id)
        names = {"request_id": batch.entry.request_id, "trace_id": batch.entry.trace_id}
        return msgspec.structs.replace(item, message_id=batch.entry.origin, **names)
    batch_id, index = batch_and_index(id_)
    batch = batches.get(batch_id)
    if batch is None or not batch.entry.covers_index(index):
        return None
    return _entry(SubmissionKind.TASK, id_, batch, batch_id=batch_id, batch_index=index)


def _entry(
    kind: SubmissionKind, id_: str, stored: StoredEntry, batch_id: str = "", batch_index: int | None = None
) -> FoundEntry:
    entry, now = stored.entry, time.time()
    return FoundEntry(
        kind=kind,
        id=id_,
        cust_id=entry.cust_id,
        phase=entry.phase,
        state=_state(stored),
        created_at=entry.created_at / 1000,
        changed_at=now - stored.unchanged_for,
        remembered_until=now - stored.unchanged_for + entry.time_to_live,
        event_id=acceptance_id(id_, entry.created_at),
        event_is_out=entry.phase is Phase.ACCEPTED,
        task_count=entry.task_count if kind is SubmissionKind.BATCH else 0,
        batch_id=batch_id,
        batch_index=batch_index,
        message_id=entry.origin,
        request_id=entry.request_id,
        trace_id=entry.trace_id,
    )


_CLAIMS: Final = {
    Doubt.NONE: "given back before it was published: a repeat with the same key continues",
    Doubt.OPEN: "the broker did not confirm it, so it may wait for a worker: a repeat with the same key continues",
    Doubt.EVENTS: "a worker has begun to publish its events, and gets its message again",
    Doubt.REFUNDED: "the broker did not confirm it, and its charge is refunded: a repeat with the same key continues",
}


def _state(stored: StoredEntry) -> str:
    entry = stored.entry
    is_held = stored.unchanged_for * 1000 < entry.lease
    match entry.phase:
        case Phase.ACCEPTED:
            return "accepted: all its events are confirmed"
        case Phase.QUEUED if is_held:
            return "queued, and being published again, because it has been queued for long"
        case Phase.QUEUED:
            return "queued: it waits for a worker"
        case _ if is_held:
            return "claimed: a request or a worker deals with it now"
        case _ if entry.lease:
            return "claimed by a process that has stopped: its message, or a repeat with the same key, continues"
        case _:
            return _CLAIMS[entry.doubt]


async def _search_dead_letters(
    findings: Findings,
    open_dead_letters: OpenDeadLetters,
    sought: str,
    ids: Sequence[str],
    customer: str | None,
    reading: Reading,
) -> None:
    wanted = frozenset([sought, *ids, *(batch_and_index(id_)[0] for id_ in ids if is_id(SubmissionKind.TASK, id_))])
    latest: deque[FoundLetter] = deque(maxlen=MAX_LETTERS)
    try:
        async with open_dead_letters(change=False) as access:
            with reading(await access.queue.count()) as progress:
                async for batch in select(access.queue, Selection(customer=customer), access.trusted_users, progress):
                    for dead in batch:
                        submission_id, names = _names(dead)
                        if not wanted.isdisjoint(names):
                            findings.letter_count += 1
                            latest.append(_letter(dead, submission_id))
                    progress.add(len(batch))
            if access.held_by_others():
                findings.add_not_asked("the dead letters that another consumer of ingest.dead holds")
    except IngestError as error:
        findings.add_not_asked(f"the dead letters: {error}")
    findings.letters = list(latest)


class _Keyed(msgspec.Struct):
    idempotency_key: object = None
    tasks: object = None


_decode = msgspec.json.Decoder(_Keyed).decode


def _names(dead: DeadLetter) -> tuple[str, set[str]]:
    """Return the id of a dead letter's submission, if it can be known, and everything it can be looked for by."""
    origin = dead.origin
    if origin is None:
        return "", {dead.id}
    names = {dead.id, origin.message_id or ""}
    if origin.type == admitted.TYPE:
        try:
            submission = admitted.from_body(origin.body).submission
        except InvalidSubmission:
            return origin.message_id or "", names
        return submission.id, names | {submission.id, submission.key or "", *(t.task_id for t in submission.tasks)}
    address = addresses.parse(origin.routing_key)
    try:
        body = _decode(origin.body)
    except (ValueError, RecursionError):
        body = _Keyed()
    key = body.idempotency_key if isinstance(body.idempotency_key, str) else origin.message_id
    items = [item.get("idempotency_key") for item in _mappings(body.tasks)]
    item_keys = [item for item in items if isinstance(item, str)]
    names |= {key or "", *item_keys}
    if address is None or not key:
        return "", names
    id_ = keyed_id(address.kind, address.cust_id, key)
    return id_, names | {id_, *(keyed_id(SubmissionKind.TASK, address.cust_id, item) for item in item_keys)}


def _mappings(value: object) -> list[dict[object, object]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _letter(dead: DeadLetter, submission_id: str) -> FoundLetter:
    trace = trace_of(dead.delivery.headers)
    return FoundLetter(
        id=dead.id,
        reason=dead.reason,
        error=dead.error,
        cust_id=dead.cust_id,
        submission_id=submission_id,
        message_id=(dead.origin and dead.origin.message_id) or "",
        died_at=dead.died_at,
        what_to_do=remedy(dead),
        trace_id=trace.trace_id if trace else "",
    )
