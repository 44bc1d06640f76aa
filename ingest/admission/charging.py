"""Charges the quotas of the customers whose requests an attempt has claimed."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from ingest.admission.calls import StoreCalls
from ingest.admission.progress import RequestProgress
from ingest.domain.ledger import UNDECIDED, UNLIMITED, Charge, Undecided
from ingest.domain.ports import Quotas


class Charging:
    """Charges requests in one month (`YYYY-MM`, UTC). `granted` is what the store has charged so far."""

    def __init__(self, quotas: Quotas, calls: StoreCalls, month: str) -> None:
        self._quotas = quotas
        self._calls = calls
        self._month = month
        self.granted: list[Charge] = []

    async def charge(self, claimants: Sequence[RequestProgress]) -> list[RequestProgress]:
        """Charge each customer in one call; if the sum exceeds the quota, charge the requests one by one.

        A request without a claim costs nothing. One that an earlier attempt may have published is charged in any case:
        to refuse it would contradict its acceptance. Returns the requests that were not charged: refused, or undecided.
        """
        first: list[RequestProgress] = []
        again: list[RequestProgress] = []
        for progress in claimants:
            progress.charge = self._charge_of(progress)
            if progress.charge is not None:
                (again if progress.may_be_published else first).append(progress)
        # Two calls, because one may charge a customer only once.
        return [*await self._charge(first), *await self._charge(again)]

    async def _charge(self, claimants: Sequence[RequestProgress]) -> list[RequestProgress]:
        groups = defaultdict(list)
        for progress in claimants:
            groups[progress.request.customer.cust_id].append(progress)
        if not groups:
            return []
        answers = await self._results([_sum(group) for group in groups.values()])
        uncharged = []
        for group, granted in zip(groups.values(), answers, strict=True):
            for progress in group:
                own = await self._charge_alone(progress) if granted is False and len(group) > 1 else granted
                progress.undecided = own is UNDECIDED
                if not own:
                    uncharged.append(progress)
        return uncharged

    async def _charge_alone(self, progress: RequestProgress) -> bool | Undecided:
        if progress.charge is None or self._calls.failure is not None:
            return UNDECIDED  # an outage costs a call or two, not one for each request
        (granted,) = await self._results([progress.charge])
        return granted

    async def _results(self, charges: list[Charge]) -> list[bool | Undecided]:
        results = await self._calls.results(self._quotas.charge(charges), len(charges))
        self.granted += [charge for charge, granted in zip(charges, results, strict=True) if granted]
        return results

    def _charge_of(self, progress: RequestProgress) -> Charge | None:
        customer = progress.request.customer
        quota = None if progress.may_be_published else customer.monthly_quota
        limit = UNLIMITED if quota is None else quota
        count = sum(max(0, entry.tasks - entry.charged) for entry in progress.owned)
        return Charge(customer.cust_id, self._month, count, limit) if count else None


def month_of(milliseconds: int) -> str:
    """Return the month of a Unix time, as charges name it: `YYYY-MM`, UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m")


def _sum(group: list[RequestProgress]) -> Charge:
    charges = [progress.charge for progress in group if progress.charge is not None]
    return msgspec.structs.replace(charges[0], count=sum(charge.count for charge in charges))
