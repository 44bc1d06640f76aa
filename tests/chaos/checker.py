"""What must hold, computed from the history alone."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from ingest.domain.identity import SubmissionKind, item_id, keyed_id
from tests.chaos.history import History, Submission
from tests.chaos.workload import POOR, RICH

MEMORY_LIMIT = 200
"""MiB that one process may use."""
_PREFIX = "https://cdn.example.com/"


@dataclass
class Result:
    """In tasks. `broken`: a sentence for each invariant that does not hold."""

    attempted: int = 0
    accepted: int = 0
    lost: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    duplicated: int = 0
    recovered: int = 0
    refused: int = 0
    overcharged: int = 0
    broken: list[str] = field(default_factory=list)


def check(history: History) -> Result:
    """Look at everything."""
    checker = _Checker(history)
    result = checker.result
    checker.identities()
    checker.total_queue()
    checker.batches()
    checker.dead_letters()
    checker.direct_outcomes()
    checker.quotas()
    for name, peak in history.peak_memory.items():
        if peak > MEMORY_LIMIT:
            result.broken.append(f"{name} used {peak} MiB")
    for injected in history.faults:
        if not injected.shown:
            result.broken.append(f"{injected.name} was not shown to have happened: {injected.proof}")
        elif injected.recovery is None:
            result.broken.append(f"no recovery after {injected.name}")
    result.broken += history.complaints
    for what, found in (("lost", result.lost), ("unexpected", result.unexpected)):
        if found:
            result.broken.append(f"{what}: {len(found)}, e.g. {found[:5]}")
    return result


class _Checker:
    def __init__(self, history: History) -> None:
        self.result = Result()
        self._history = history
        self._by_item = {item: (each, i) for each in history.submissions for i, item in enumerate(each.items)}
        self._ids: dict[str, set[str]] = defaultdict(set)
        """Marker of an item to the task ids under which it came out."""
        self._out: dict[str, Counter[str]] = {"consensus.tasks": Counter(), "webhook.dispatch": Counter()}
        """Queue to how often each item came out there, not counting what the observer had to take twice."""
        for seen in history.seen:
            if seen.routing_key.startswith("task.accepted"):
                item = str(seen.data.get("data_url", "")).removeprefix(_PREFIX)
                if not seen.again or not self._out[seen.queue][item]:
                    self._out[seen.queue][item] += 1
                self._ids[item].add(str(seen.data["task_id"]))

    def total_queue(self) -> None:
        """Jepsen's total-queue, a task at a time."""
        result = self.result
        main = self._out["consensus.tasks"]
        dead = self._dead_keys()
        for submission in self._history.submissions:
            result.attempted += len(submission.items)
            out = [item for item in submission.items if main[item]]
            if submission.known_accepted and (submission.cust_id, submission.key) in dead:
                result.refused += len(submission.items)
            elif submission.known_accepted:
                result.accepted += len(submission.items)
                result.lost += [item for item in submission.items if not main[item]]
                if submission.callback:
                    hooks = self._out["webhook.dispatch"]
                    result.lost += [f"{item} (webhook)" for item in submission.items if not hooks[item]]
            else:
                result.recovered += len(out)
                if out and not submission.unclear and not submission.attempts:
                    result.unexpected += out
        result.unexpected += [item for item in main if item not in self._by_item]
        result.duplicated = sum(count - 1 for counts in self._out.values() for count in counts.values() if count > 1)

    def identities(self) -> None:
        """One id an item, that which customer and key give, and the one that clients were told."""
        for item, ids in self._ids.items():
            if item not in self._by_item:
                continue
            submission, index = self._by_item[item]
            if len(ids) > 1:
                self.result.broken.append(f"item {item} has {len(ids)} ids: {sorted(ids)}")
            expected = self._expected(submission, index)
            if expected is not None and ids != {expected}:
                self.result.broken.append(f"item {item} is {sorted(ids)}, it should be {expected}")
        for submission in self._history.submissions:
            told = {attempt.id for attempt in submission.attempts if attempt.id}
            if len(told) > 1:
                self.result.broken.append(f"submission {submission.number} was told {sorted(told)}")
            if submission.key is not None and told - {
                keyed_id(SubmissionKind(submission.kind), submission.cust_id, submission.key)
            }:
                self.result.broken.append(f"submission {submission.number} was told a wrong id: {told}")

    def batches(self) -> None:
        """`batch.accepted` names as many distinct tasks as were declared, and comes after all of them."""
        first: dict[str, int] = {}
        complete: dict[str, tuple[int, list[str], list[str]]] = {}
        for position, seen in enumerate(self._history.seen):
            if seen.queue == "webhook.dispatch" and "task_id" in seen.data:
                # What the observer had lost with a connection it may see again after what had come behind it.
                first.setdefault(str(seen.data["task_id"]), -1 if seen.again else position)
            if seen.routing_key.startswith("batch.accepted"):
                data = seen.data
                at = position if seen.queue == "webhook.dispatch" else -1
                complete.setdefault(data["batch_id"], (at, data["task_ids"], data["replayed_task_ids"]))
        for batch_id, (at, task_ids, replayed) in complete.items():
            if at >= 0 and any(first.get(id_, at + 1) > at for id_ in task_ids if id_ not in set(replayed)):
                self.result.broken.append(f"batch.accepted of {batch_id} came before its tasks")
        for submission in self._history.submissions:
            if submission.kind == "batch" and submission.known_accepted and submission.key is not None:
                id_ = keyed_id(SubmissionKind.BATCH, submission.cust_id, submission.key)
                found = complete.get(id_)
                if found is None:
                    self.result.broken.append(f"no batch.accepted of {id_} (submission {submission.number})")
                elif len(set(found[1])) != len(submission.items):
                    self.result.broken.append(f"{id_} has {len(set(found[1]))} tasks, {len(submission.items)} declared")

    def dead_letters(self) -> None:
        """Everything sent was valid, so only an exhausted quota may refuse it."""
        for seen in self._history.seen:
            if seen.queue == "ingest.dead" and not (seen.reason == "quota_exhausted" and _customer(seen.data) == POOR):
                self.result.broken.append(f"a valid submission in ingest.dead: {seen.reason}, {str(seen.data)[:200]}")

    def direct_outcomes(self) -> None:
        """accepted + duplicate + rejected = consumed: of all messages under one key at most one was the original."""
        duplicates = {
            (_customer(seen.data), str(seen.data["message_id"]))
            for seen in self._history.seen
            if seen.routing_key == "submission.duplicate"
        }
        dead = self._dead_keys()
        slack = len(self._history.truncated) // 2
        for submission in self._history.submissions:
            sent = {a.message_id for a in submission.attempts if a.channel == "amqp" and a.outcome == "confirmed"}
            if not sent or (submission.cust_id, submission.key) in dead:
                continue
            originals = len([each for each in sent if (submission.cust_id, each) not in duplicates])
            over_http = [a.outcome for a in submission.attempts if a.channel == "http"]
            # Published twice, as an answer was missing: then one copy is told to be a duplicate of the other.
            twice = any(a.channel == "amqp" and a.outcome == "unknown" for a in submission.attempts)
            by_http = any(outcome in ("accepted", "replay", "unknown") for outcome in over_http)
            least = 0 if by_http or twice else 1
            most = (0 if "accepted" in over_http else 1) + slack
            if not least <= originals <= most:
                self.result.broken.append(
                    f"submission {submission.number}: {originals} of {len(sent)} messages were taken as the original, "
                    f"expected {least} to {most}; over HTTP {over_http}"
                )

    def quotas(self) -> None:
        """Charged is what was accepted, or more where a crash or an unclear answer lay in between; never less."""
        for cust_id in RICH:
            accepted = unclear = 0
            for submission in self._history.submissions:
                if submission.cust_id == cust_id:
                    accepted += len([item for item in submission.items if self._ids[item]])
                    unclear += len(submission.items) * len(submission.attempts)
            used = self._history.used[cust_id]
            self.result.overcharged += used - accepted
            if used < accepted:
                self.result.broken.append(f"{cust_id} was charged {used} tasks, {accepted} were accepted")
            if used > accepted + unclear:
                self.result.broken.append(f"{cust_id} was charged {used} tasks for {accepted}")
        poor = sum(bool(self._ids[i]) for s in self._history.submissions if s.cust_id == POOR for i in s.items)
        if poor > self._history.quotas[POOR]:
            self.result.broken.append(f"{POOR} got {poor} tasks accepted with a quota of {self._history.quotas[POOR]}")

    def _expected(self, submission: Submission, index: int) -> str | None:
        own = submission.own_keys.get(index)
        if own is not None:
            return keyed_id(SubmissionKind.TASK, submission.cust_id, own)
        if submission.key is None:
            return None
        if submission.kind == "task":
            return keyed_id(SubmissionKind.TASK, submission.cust_id, submission.key)
        return item_id(keyed_id(SubmissionKind.BATCH, submission.cust_id, submission.key), index)

    def _dead_keys(self) -> set[tuple[str, str | None]]:
        """(customer, key) of what stands in ingest.dead for an exhausted quota, and never came out otherwise."""
        names = {
            (_customer(seen.data), str(seen.data.get("message_id")))
            for seen in self._history.seen
            if seen.queue == "ingest.dead" and seen.reason == "quota_exhausted"
        }
        return {
            (each.cust_id, each.key)
            for each in self._history.submissions
            if any((each.cust_id, attempt.message_id) in names for attempt in each.attempts)
            and not self._ids[each.items[0]]
        }


def _customer(data: dict[str, object]) -> str:
    """Of an event, or of a dead letter's submission."""
    return str(data.get("cust_id") or str(data.get("routing_key", "")).rpartition(".")[2])
