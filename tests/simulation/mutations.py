"""Faults that the simulation must find. `mutation_runs` puts each into a copy of the code."""

from typing import Final, NamedTuple


class Mutation(NamedTuple):
    """A fault. Each change is a file below `ingest/`, a text that occurs in it once, and what replaces the text."""

    name: str
    changes: tuple[tuple[str, str, str], ...]


def _mutation(name: str, file: str, text: str, fault: str) -> Mutation:
    return Mutation(name, ((file, text, fault),))


MUTATIONS: Final = (
    _mutation(
        "one refused event counts as an outage",
        "worker/processor.py",
        "failed.refused.append(plan)",
        "failed.unavailable.append(plan)",
    ),
    _mutation(
        "a redelivery with another body is only acked",
        "worker/planner.py",
        " and not decision.mismatch:\n        return None",
        ":\n        return None",
    ),
    _mutation(
        "another body takes over a claim in doubt",
        "admission/attempt.py",
        "max(idle, self._doubt)",
        "idle",
    ),
    _mutation(
        "a live lease is taken over",
        "admission/attempt.py",
        "idle = stored.lease\n",
        "idle = 0\n",
    ),
    _mutation(
        "a release forgets what was charged",
        "admission/admission.py",
        "charged=max(entry.charged, entry.tasks)",
        "charged=entry.charged",
    ),
    _mutation(
        "a publish in doubt is refunded",
        "shim/pipeline.py",
        "release(in_doubt, refund=False)",
        "release(in_doubt, refund=True)",
    ),
    _mutation(
        "a publish that was not taken counts as confirmed",
        "shim/pipeline.py",
        "if outcome is PublishOutcome.CONFIRMED:",
        "if True:",
    ),
    _mutation(
        "a batch is settled before its items",
        "worker/processor.py",
        "with_items = [plan for plan in plans if len(plan.entries) > 1]",
        "with_items = []",
    ),
    _mutation(
        "the ledger is not settled",
        "worker/processor.py",
        "await self._settle(_without(attempt.plans, failed.plans), failed)",
        "pass",
    ),
    _mutation(
        "deliveries are acked before they are finished",
        "worker/processor.py",
        "        attempt = Planned()\n        try:",
        "        attempt = Planned()\n        await consumer.ack(deliveries)\n        try:",
    ),
    _mutation(
        "a refunded submission is accepted without a charge",
        "worker/planner.py",
        "if is_uncharged(admitted, stored):",
        "if False:",
    ),
    _mutation(
        "charges in doubt are never refunded",
        "worker/refunds.py",
        "await admission.refund_doubts()",
        "pass",
    ),
    _mutation(
        "a repeat is charged",
        "admission/charging.py",
        "entry.tasks - entry.charged",
        "entry.tasks",
    ),
    _mutation(
        "claims that exceed the quota stay",
        "admission/attempt.py",
        "self._give_up(await self._charging.charge(self._pending))",
        "[pending.give_up() for pending in await self._charging.charge(self._pending)]",
    ),
    _mutation(
        "the circuit never closes",
        "worker/breaker.py",
        "        if attempt.made_progress:\n            self.close()",
        "        if False:\n            pass",
    ),
    _mutation(
        "a superseded body is published",
        "worker/plan.py",
        "was_lost = stored.created_at != claimed.created_at",
        "was_lost = True",
    ),
    _mutation(
        "an item is settled for another submission",
        "worker/plan.py",
        "    return was_lost, None",
        "    return was_lost, stored",
    ),
    _mutation(
        "a refund goes to the current month",
        "admission/refunds.py",
        "month = entry.charged_month or month_of(entry.created_at)",
        "month = month_of(entry.created_at)",
    ),
    _mutation(
        "usage without a quota is not counted",
        "admission/charging.py",
        "return Charge(customer.cust_id, self._month, count, limit) if count else None",
        "return Charge(customer.cust_id, self._month, count, limit) if count and limit != UNLIMITED else None",
    ),
    _mutation(
        "an outdated quota is used for ever",
        "worker/customers.py",
        "(now + CUSTOMER_CACHE, customer)",
        "(now + 1e9, customer)",
    ),
    _mutation(
        "the lease is judged by the host's clock",
        "admission/attempt.py",
        "idle = stored.lease\n",
        "idle = 0 if self._now > stored.created_at + stored.lease else stored.lease\n",
    ),
    Mutation(
        "the claims are not checked after a pause",
        (
            (
                "admission/attempt.py",
                "if self._monotonic() >= self._held_until:",
                "if False:",
            ),
            (
                "shim/pipeline.py",
                "if all(self._admission.holds(decisions[index]) for index in to_publish):",
                "if True:",
            ),
        ),
    ),
    _mutation(
        "a full ingest.dead drops the letter",
        "worker/processor.py",
        "*[plan.delivery for plan in failed.plans])}",
        "*[plan.delivery for plan in failed.plans if plan.outcome is not Outcome.REJECTED])}",
    ),
    _mutation(
        "a refused event holds the prefetch",
        "worker/apart.py",
        "await self._consumer.set_apart(waiting.deliveries, min(self.count, _MAX_APART))",
        "pass",
    ),
    _mutation(
        "a contended submission holds the prefetch",
        "worker/delivery_loop.py",
        "if (unfinished.contended or unfinished.undecided) and loop.time() >= impatient_at:",
        "if False:",
    ),
    _mutation(
        "pending changes are not retried",
        "admission/pending.py",
        "                self._retrying = asyncio.get_running_loop().create_task(self._retry())",
        "                pass",
    ),
    _mutation(
        "pending changes are forgotten",
        "admission/pending.py",
        "            self._pending += changes\n            raise",
        "            raise",
    ),
    _mutation(
        "a process that stops forgets its pending changes",
        "admission/admission.py",
        "await self._pending.close(seconds)",
        "pass",
    ),
    _mutation(
        "a lost message is not published again",
        "shim/pipeline.py",
        "if decision.must_publish]",
        "if decision.verdict is Verdict.ADMITTED]",
    ),
    _mutation(
        "an item is settled under the wrong origin",
        "domain/ledger.py",
        "            lease=lease,\n            origin=batch.id,",
        '            lease=lease,\n            origin="",',
    ),
    _mutation(
        "copies under way are not held back",
        "worker/planner.py",
        "if submission_id in self._in_progress:",
        "if False:",
    ),
    _mutation(
        "what was charged one by one is not refunded",
        "admission/charging.py",
        "        (granted,) = await self._results([progress.charge])",
        "        (granted,) = await self._calls.results(self._quotas.charge([progress.charge]), 1)",
    ),
    _mutation(
        "a key is forgotten while its submission waits",
        "domain/ledger.py",
        "return self.retention if self.phase is Phase.ACCEPTED else max(self.retention, UNFINISHED)",
        "return self.retention",
    ),
    _mutation(
        "a second acceptance has the event ids of the first",
        "domain/events.py",
        'return f"{submission_id}:accepted:{created_at}"',
        'return f"{submission_id}:accepted"',
    ),
    _mutation(
        "a refunded message that becomes queued is dropped",
        "worker/planner.py",
        "            if decision.verdict is Verdict.REPLAY:\n",
        "            if decision.verdict is Verdict.REPLAY:\n                continue\n            if False:\n",
    ),
    _mutation(
        "a submission is rejected after its webhook was removed",
        "worker/planner.py",
        "                and (entry.is_durable or entry.origin == request.origin)\n",
        "                and False\n",
    ),
    _mutation(
        "a worker that stops acks what it has not finished",
        "worker/delivery_loop.py",
        "await wait_for_event(self._stopping, pause):\n",
        "await wait_for_event(self._stopping, pause):\n                await self._all.ack(unfinished.deliveries)\n",
    ),
    _mutation(
        "a dead letter is removed before its redrive is confirmed",
        "operations/dead_letters.py",
        "if out is PublishOutcome.CONFIRMED]",
        "]",
    ),
    _mutation(
        "a nacked message counts as not taken",
        "domain/messages.py",
        "PublishOutcome.UNSENT, PublishOutcome.TOO_LARGE)",
        "PublishOutcome.UNSENT, PublishOutcome.TOO_LARGE, PublishOutcome.NACKED)",
    ),
    _mutation(
        "a bundle is acknowledged with its first submission",
        "broker/bundles/consumer.py",
        "if not bundle.remaining:",
        "if bundle in self._open:",
    ),
    _mutation(
        "a submission leaves its bundle before that is confirmed",
        "broker/bundles/consumer.py",
        "zip(alive, confirmed, strict=True) if taken]",
        "zip(alive, confirmed, strict=True)]",
    ),
    _mutation(
        "a dead bundle is removed with its first submission",
        "broker/bundles/dead_letters.py",
        " if bundle.remaining <= indexes]",
        "]",
    ),
)
