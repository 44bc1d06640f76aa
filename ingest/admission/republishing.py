"""Takes the right to publish queued submissions again whose messages are probably lost."""

from collections.abc import Sequence
from itertools import islice

import msgspec

from ingest.admission.calls import StoreCalls
from ingest.admission.progress import RequestProgress
from ingest.domain.ledger import Change, Entry, Phase, Step
from ingest.domain.ports import Ledger


class Republishing:
    """Takes the right for the requests of one attempt. Without an answer of the store it is not taken.

    The right is a lease in the queued entry. Afterwards the entry is queued as before (`Admission.queued`), or the
    right is left to the next repeat (`give_back`). If the process crashes, the lease ends.

    Args:
        ledger: the ledger.
        calls: the calls of the attempt.
        now: Unix time in milliseconds. It only saves calls to the store, whose clock decides.
        lease: how long the right lasts, in milliseconds.
        after: how long a submission is queued before its message is probably lost, in milliseconds.
    """

    def __init__(self, ledger: Ledger, calls: StoreCalls, *, now: int, lease: int, after: int) -> None:
        self._ledger = ledger
        self._calls = calls
        self._now = now
        self._lease = lease
        self._after = after

    async def take_replays(self, requests: Sequence[RequestProgress]) -> None:
        """Take the right for replays with the same body; only replays have a queued entry.

        A batch is published again with all items of its own.
        """
        overdue = [
            progress
            for progress in requests
            if self._is_overdue(progress.entry, progress.request.submission.fingerprint)
        ]
        ids = [list(dict.fromkeys(progress.entry.keyed_item_ids.values())) for progress in overdue]
        together = [item_id for own in ids for item_id in own]
        items = iter(await self._calls.results(self._ledger.read(together), len(together)) if together else [])
        ready = [
            progress
            for progress, own in zip(overdue, ids, strict=True)
            if progress.replay_items(islice(items, len(own)))
        ]
        await self._take([(progress, progress.entry) for progress in ready])

    async def take_items(self, items: Sequence[tuple[RequestProgress, Entry, bytes]]) -> None:
        """Take the right for items of new batches that other submissions made durable, with the same bodies.

        Args:
            items: each with its batch, its stored entry, and the fingerprint that it has in the batch. Those that are
                not published with their batch become its `replayed`.
        """
        overdue = [
            (progress, entry)
            for progress, entry, fingerprint in items
            if progress.owned and self._is_overdue(entry, fingerprint)
        ]
        results = await self._take(overdue)
        taken = {
            (progress.owner, entry.id)
            for (progress, entry), has_right in zip(overdue, results, strict=True)
            if has_right
        }
        for progress, entry, _ in items:
            if (progress.owner, entry.id) not in taken:
                progress.replayed.append(entry.id)

    def _is_overdue(self, entry: Entry, fingerprint: bytes) -> bool:
        is_same = entry.phase is Phase.QUEUED and entry.fingerprint == fingerprint
        return is_same and self._now - entry.created_at >= self._after

    async def _take(self, overdue: Sequence[tuple[RequestProgress, Entry]]) -> list[bool]:
        """Take the right for each entry; return whether the request has it now."""
        if not overdue:
            return []
        changes = [
            Change(
                Step.REPUBLISH,
                msgspec.structs.replace(entry, owner=progress.owner, lease=self._lease),
                entry.lease or self._after,
            )
            for progress, entry in overdue
        ]
        results = await self._calls.results(self._ledger.apply(changes), len(changes))
        for (progress, _), entry in zip(overdue, results, strict=True):
            if entry:
                progress.republished.append(entry)
        return [bool(entry) for entry in results]
