"""Looks for a submission in the ledger."""

import time
from collections.abc import Sequence
from typing import Final

import msgspec

from ingest.domain.errors import StoreUnavailable
from ingest.domain.events import acceptance_id
from ingest.domain.identity import SubmissionKind, batch_and_index, is_id
from ingest.domain.ledger import UNDECIDED, Doubt, Phase, StoredEntry
from ingest.domain.overview import counted
from ingest.domain.ports import Store
from ingest.operations.find.findings import Findings, FoundDeadLetter, FoundEntry


async def found_entries(
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


def with_dead_letters(entry: FoundEntry, dead_letters: Sequence[FoundDeadLetter]) -> FoundEntry:
    """Return an entry whose state takes dead letters into account: no worker gets a message that is in ingest.dead."""
    own = [letter for letter in dead_letters if letter.is_message_of(entry)]
    if entry.phase is Phase.ACCEPTED or not own:
        return entry
    if any(letter.redrivable for letter in own):
        state = f"{entry.phase}, and its message is in ingest.dead: it is accepted once that is redriven"
    else:
        state = f"{entry.phase}, and its message is in ingest.dead, from where it cannot be redriven: {_REPEAT}"
    return msgspec.structs.replace(entry, state=state)
