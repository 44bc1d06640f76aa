"""Where is my task? Looks for a submission in the ledger and in the dead letters."""

import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, contextmanager
from typing import Final

import msgspec

from ingest.domain import addresses, admitted
from ingest.domain.dead_letters import DeadLetter, Origin, redrive_blocker
from ingest.domain.errors import IngestError, InvalidSubmission, StoreUnavailable
from ingest.domain.events import acceptance_id
from ingest.domain.identity import MAX_ITEMS, SubmissionKind, batch_and_index, is_id, keyed_id
from ingest.domain.ledger import UNDECIDED, Doubt, Phase, StoredEntry
from ingest.domain.overview import counted
from ingest.domain.ports import Store
from ingest.domain.trace import trace_of
from ingest.operations.dead_letters import Progress, Selection, select
from ingest.operations.remedies import remedy
from ingest.operations.trim import OpenDeadLetters

MAX_DEAD_LETTERS: Final = 20
"""The most dead letters that are shown, the latest ones. A producer may send any number with the same message_id."""
_FROM_BROKER: Final = frozenset({"delivery_limit", "expired", "maxlen", "rejected"})
"""Reasons of dead letters that were not rejected by a worker, so that their submissions may be claimed."""

Reading = Callable[[int], AbstractContextManager[Progress]]
"""Shows the progress of reading so many dead letters."""


class FoundEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A task or batch in the ledger.

    `state` says in a sentence how far it has come, and `event_confirmed` whether its acceptance event certainly is out.
    Times are in Unix seconds; it is remembered at least until `remembered_until`. An item of a batch has `batch_id`,
    and `batch_index` if it has no key. `message_id`, `request_id` and `trace_id` are those of the request or message
    that submitted it, if they are known.
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
    event_confirmed: bool
    task_count: int = 0
    batch_id: str = ""
    batch_index: int | None = None
    message_id: str = ""
    request_id: str = ""
    trace_id: str = ""


class FoundDeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter of the submission, without its body. `died_at` is in Unix seconds, None if it is not known.

    `submission_id` is empty if it is not certain. `from_shim`: it is a message that the shim has published for an
    admitted submission. `what_to_do` is empty if the reason is not known.
    """

    id: str
    reason: str
    error: str
    cust_id: str
    submission_id: str
    message_id: str
    died_at: float | None
    from_shim: bool
    redrivable: bool
    what_to_do: str
    trace_id: str

    def is_message_of(self, entry: FoundEntry) -> bool:
        """Return whether an entry that is not accepted waits for this message, or one that it is a copy of."""
        if self.cust_id != entry.cust_id or self.submission_id not in (entry.id, entry.batch_id):
            return False
        return self.from_shim or (self.reason in _FROM_BROKER and self.message_id == entry.message_id)


class Matches(msgspec.Struct, frozen=True):
    """The dead letters that have one of the names: the latest ones, how many there are, and what could not be read."""

    dead_letters: list[FoundDeadLetter]
    count: int
    missing: str = ""


Search = Callable[[AbstractSet[str], str | None], Awaitable[Matches]]
"""Looks for the dead letters that have one of the names, of a customer or of all. Raises IngestError."""


class Findings(msgspec.Struct, kw_only=True):
    """What was found. `missing` names the parts that could not be asked or read.

    `dead_letters` are the latest of `dead_letter_count`. `customer_exists` is None if no customer was given, or it is
    not known.
    """

    entries: list[FoundEntry] = []
    dead_letters: list[FoundDeadLetter] = []
    dead_letter_count: int = 0
    customer_exists: bool | None = None
    missing: list[str] = []

    def add_missing(self, part: str) -> None:
        """Note a part that could not be asked; once, if it is asked several times."""
        if part not in self.missing:
            self.missing.append(part)


@contextmanager
def _silent(_: int) -> Iterator[Progress]:
    yield Progress()


async def find(
    sought: str,
    open_store: Callable[[], Awaitable[Store]],
    search: Search,
    customer: str | None = None,
) -> Findings:
    """Look for a task or batch. What cannot be opened or read is in `Findings.missing`.

    Args:
        sought: its id, its idempotency key, its AMQP message_id, or the id of its dead letter.
        open_store: opens the ledger, as `StoreBackend.open_to_read`.
        search: looks for dead letters, as `search_queue`.
        customer: only this customer's. With a key and no customer, every customer's ids are computed.
    """
    findings = Findings()
    store = await _open(open_store, findings)
    try:
        ids = [sought] if any(is_id(kind, sought) for kind in SubmissionKind) else []
        entries = await _entries(store, ids, customer, findings)
        if not entries:  # a key may look like an id
            keyed_ids = await _keyed_ids(sought, customer, store, findings)
            entries = await _entries(store, keyed_ids, customer, findings)
            ids += keyed_ids
        names = {sought, *ids, *(entry.batch_id for entry in entries)} - {""}
        names |= {batch_and_index(id_)[0] for id_ in ids if is_id(SubmissionKind.TASK, id_)}
        await _search_dead_letters(findings, search, names, customer)
        further = dict.fromkeys(letter.submission_id for letter in findings.dead_letters if letter.submission_id)
        entries += await _entries(store, [id_ for id_ in further if id_ not in ids], customer, findings)
    finally:
        if store is not None:
            await store.close()
    findings.entries = [_with_dead_letters(entry, findings.dead_letters) for entry in entries]
    return findings


async def _open(open_store: Callable[[], Awaitable[Store]], findings: Findings) -> Store | None:
    try:
        return await open_store()
    except IngestError as error:
        findings.add_missing(f"the ledger: {error}")
        return None


async def _keyed_ids(sought: str, customer: str | None, store: Store | None, findings: Findings) -> list[str]:
    """Return the ids that the submission with a key can have."""
    cust_ids = [] if customer is None else [customer]
    if store is not None:
        try:
            if customer is None:
                cust_ids = [found.cust_id for found in await store.customers()]
            else:
                findings.customer_exists = await store.customer(customer) is not None
        except StoreUnavailable as error:
            findings.add_missing(f"the customers: {error}")
    return [keyed_id(kind, cust_id, sought) for cust_id in cust_ids for kind in SubmissionKind]


async def _entries(
    store: Store | None, ids: Sequence[str], customer: str | None, findings: Findings
) -> list[FoundEntry]:
    """Return what the ledger says about ids."""
    if store is None or not ids:
        return []
    stored = await _read(store, ids, findings)
    # An item without a key has no entry; that of its batch says everything about it.
    batch_ids = {batch_and_index(id_)[0] for id_ in ids if is_id(SubmissionKind.TASK, id_)}
    batch_ids |= {found.entry.origin for found in stored.values() if is_id(SubmissionKind.BATCH, found.entry.origin)}
    batches = await _read(store, sorted(batch_ids), findings)
    found = [_found(id_, stored, batches) for id_ in ids]
    return [entry for entry in found if entry is not None and customer in (None, entry.cust_id)]


async def _read(store: Store, ids: Sequence[str], findings: Findings) -> dict[str, StoredEntry]:
    """Return the entries that are stored, by id."""
    try:
        stored = await store.inspect(ids)
    except StoreUnavailable as error:
        findings.add_missing(f"the ledger: {error}")
        return {}
    if undecided := sum(found is UNDECIDED for found in stored):
        findings.add_missing(f"{counted(undecided, 'record')} of the ledger, which cannot be read now")
    return {id_: found for id_, found in zip(ids, stored, strict=True) if isinstance(found, StoredEntry)}


def _found(id_: str, stored: dict[str, StoredEntry], batches: dict[str, StoredEntry]) -> FoundEntry | None:
    own = stored.get(id_)
    if is_id(SubmissionKind.BATCH, id_):
        return None if own is None else _entry(SubmissionKind.BATCH, id_, own, own)
    if own is not None:
        batch = batches.get(own.entry.origin)
        if batch is not None and id_ in batch.entry.keyed_item_ids.values():
            return _entry(SubmissionKind.TASK, id_, own, batch, batch_id=batch.entry.id)
        found = _entry(SubmissionKind.TASK, id_, own, own)
        # The entry of a batch without a key ends before those of its items, which have its id as their origin.
        is_orphan = batch is None and is_id(SubmissionKind.BATCH, found.message_id)
        return msgspec.structs.replace(found, message_id="") if is_orphan else found
    batch_id, index = batch_and_index(id_)
    batch = batches.get(batch_id)
    if batch is None or not batch.entry.covers_index(index):
        return None
    return _entry(SubmissionKind.TASK, id_, batch, batch, batch_id=batch_id, batch_index=index)


def _entry(
    kind: SubmissionKind,
    id_: str,
    stored: StoredEntry,
    submitted: StoredEntry,
    batch_id: str = "",
    batch_index: int | None = None,
) -> FoundEntry:
    """Return what is shown of an entry. `submitted` is the one of the whole submission."""
    entry, source, changed_at = stored.entry, submitted.entry, time.time() - stored.unchanged_for
    return FoundEntry(
        kind=kind,
        id=id_,
        cust_id=entry.cust_id,
        phase=entry.phase,
        state=_state(stored),
        created_at=entry.created_at / 1000,
        changed_at=changed_at,
        remembered_until=changed_at + entry.time_to_live,
        event_id=acceptance_id(id_, entry.created_at),
        event_confirmed=entry.phase is Phase.ACCEPTED,
        task_count=entry.task_count if kind is SubmissionKind.BATCH else 0,
        batch_id=batch_id,
        batch_index=batch_index,
        message_id=source.origin,
        request_id=source.request_id,
        trace_id=source.trace_id,
    )


_REPEAT: Final = "a repeat with the same key, if it has one, continues"
_CLAIMS: Final = {
    Doubt.NONE: f"claimed, and given back before it was published: {_REPEAT}",
    Doubt.OPEN: f"claimed, and not confirmed by the broker, so it may wait for a worker: {_REPEAT}",
    Doubt.EVENTS: "claimed: a worker has begun to publish its events, and gets its message again",
    Doubt.REFUNDED: f"claimed, not confirmed by the broker, and its charge is refunded: {_REPEAT}",
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
            return f"claimed, and its lease has ended: it may wait for a worker; {_REPEAT}"
        case _:
            return _CLAIMS[entry.doubt]


def _with_dead_letters(entry: FoundEntry, dead_letters: Sequence[FoundDeadLetter]) -> FoundEntry:
    """Return an entry whose state takes dead letters into account: no worker gets a message that is in ingest.dead."""
    own = [letter for letter in dead_letters if letter.is_message_of(entry)]
    if entry.phase is Phase.ACCEPTED or not own:
        return entry
    if any(letter.redrivable for letter in own):
        state = f"{entry.phase}, and its message is in ingest.dead: it is accepted once that is redriven"
    else:
        state = f"{entry.phase}, and its message is in ingest.dead, from where it cannot be redriven: {_REPEAT}"
    return msgspec.structs.replace(entry, state=state)


async def _search_dead_letters(
    findings: Findings, search: Search, names: AbstractSet[str], customer: str | None
) -> None:
    try:
        matches = await search(names, customer)
    except IngestError as error:
        findings.add_missing(f"the dead letters: {error}")
        return
    findings.dead_letters, findings.dead_letter_count = matches.dead_letters, matches.count
    if matches.missing:
        findings.add_missing(matches.missing)


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
        if origin.user_id not in trusted or not any(is_id(kind, message_id) for kind in SubmissionKind):
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
