"""The search for a submission in the ledger and in the dead letters."""

from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet

from ingest.domain.errors import IngestError, StoreUnavailable
from ingest.domain.identity import SubmissionKind, batch_and_index, is_id, is_submission_id, keyed_id
from ingest.domain.ports import Store
from ingest.operations.find.entries import found_entries, with_dead_letters
from ingest.operations.find.findings import Findings, Search


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
        ids = [sought] if is_submission_id(sought) else []
        entries = await found_entries(store, ids, customer, findings)
        if not entries:  # a key may look like an id
            keyed_ids = await _keyed_ids(sought, customer, store, findings)
            entries = await found_entries(store, keyed_ids, customer, findings)
            ids += keyed_ids
        names = {sought, *ids, *(entry.batch_id for entry in entries)} - {""}
        names |= {batch_and_index(id_)[0] for id_ in ids if is_id(SubmissionKind.TASK, id_)}
        await _search_dead_letters(findings, search, names, customer)
        further = dict.fromkeys(letter.submission_id for letter in findings.dead_letters if letter.submission_id)
        entries += await found_entries(store, [id_ for id_ in further if id_ not in ids], customer, findings)
    finally:
        if store is not None:
            await store.close()
    findings.entries = [with_dead_letters(entry, findings.dead_letters) for entry in entries]
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
