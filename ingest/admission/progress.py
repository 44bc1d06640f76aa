"""What an attempt knows about one request while it is being decided."""

from collections.abc import Iterable

import msgspec

from ingest.admission.decision import Decision, Request, Verdict
from ingest.domain.ledger import Change, Charge, Entry, Step, Undecided


def give_back(entry: Entry) -> Change:
    """Return the change that gives back a claim whose submission this attempt did not publish.

    A claim that this attempt created is deleted. One that it took over stays, because an earlier attempt may have
    published the submission; it is released with what that attempt has charged. The right to publish a queued
    submission again is left to the next repeat, by a lease of a millisecond.
    """
    if entry.is_durable:
        return Change(Step.REPUBLISH, msgspec.structs.replace(entry, lease=1))
    return Change(Step.FORGET if entry.generation == 1 else Step.RELEASE, entry)


class RequestProgress:
    """One request while it is being decided. The attributes are those of `Decision`."""

    __slots__ = (
        "charge",
        "contended",
        "entry",
        "is_replay",
        "item_created_at",
        "may_be_published",
        "owned",
        "owner",
        "replayed",
        "republished",
        "request",
        "undecided",
    )

    def __init__(self, request: Request, owner: str) -> None:
        self.request = request
        self.owner = owner
        self.entry: Entry
        self.owned: list[Entry] = []
        self.republished: list[Entry] = []
        self.replayed: list[str] = []
        self.item_created_at: dict[str, int] = {}
        self.charge: Charge | None = None
        self.contended = False
        self.undecided = False
        self.is_replay = False
        self.may_be_published = False
        """An earlier attempt with the same body has crashed or left a doubt, so its events may be published."""

    @property
    def verdict(self) -> Verdict:
        if self.undecided:
            return Verdict.UNDECIDED
        if self.is_replay:
            return Verdict.REPLAY
        if self.contended:
            return Verdict.CONTENDED
        return Verdict.ADMITTED if self.owned else Verdict.QUOTA_EXHAUSTED

    def decision(self, held_until: float) -> Decision:
        return Decision(
            verdict=self.verdict,
            request=self.request,
            entry=self.entry,
            owned=tuple(self.owned),
            charge=self.charge,
            replayed=tuple(self.replayed),
            republished=tuple(self.republished),
            held_until=held_until,
            item_created_at=self.item_created_at,
        )

    def replay_items(self, items: Iterable[Entry | Undecided | None]) -> bool:
        """Take note which keyed items of a batch that is published again belong to other submissions.

        Returns False if the batch cannot be published now: another attempt has claimed an item, or one is undecided.
        Items whose entries are lost belong to the batch.
        """
        for item in items:
            if isinstance(item, Undecided):
                return False
            if item is not None and item.origin != self.entry.id:
                if not item.is_durable:
                    return False
                self.replayed.append(item.id)
            elif item is not None and item.created_at != self.entry.created_at:
                self.item_created_at[item.id] = item.created_at
        return True

    def give_up(self) -> list[Change]:
        """Drop the claims and the charge; return the changes that give the claims back."""
        changes = [give_back(entry) for entry in self.owned]
        self.owned.clear()
        self.charge = None
        return changes
