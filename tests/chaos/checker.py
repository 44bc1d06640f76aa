"""Computes from the history alone which invariants hold."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from ingest.domain.identity import SubmissionKind, item_id, keyed_id
from tests.chaos.history import History, Submission
from tests.chaos.workload import FEEDBACK, POOR, RICH, SPY, WITH_QUEUES

MEMORY_LIMIT = 200
"""MiB that one process may use."""
_PREFIX = "https://cdn.example.com/"


@dataclass
class Result:
    """Counts are in tasks. `broken` has one sentence for each violation of an invariant."""

    attempted: int = 0
    accepted: int = 0
    lost: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    duplicated: int = 0
    recovered: int = 0
    rejected: int = 0
    overcharged: int = 0
    undercharged: int = 0
    broken: list[str] = field(default_factory=list)


def check(history: History) -> Result:
    """Check every invariant."""
    checker = _Checker(history)
    result = checker.result
    checker.check_ids()
    checker.check_acceptances()
    checker.check_total_queue()
    checker.check_batches()
    checker.check_dead_letters()
    checker.check_direct_outcomes()
    checker.check_quotas()
    checker.check_feedback()
    for name, peak in history.peak_memory.items():
        if peak > MEMORY_LIMIT:
            result.broken.append(f"{name} used {peak} MiB")
    for injected in history.faults:
        if not injected.shown:
            result.broken.append(f"{injected.name} was not shown to have happened: {injected.proof}")
        elif injected.recovery is None:
            result.broken.append(f"no recovery after {injected.name}")
    result.broken += history.complaints
    for defect, items in (("lost", result.lost), ("unexpected", result.unexpected)):
        if items:
            result.broken.append(f"{defect}: {len(items)}, e.g. {items[:5]}")
    return result


class _Checker:
    def __init__(self, history: History) -> None:
        self.result = Result()
        self._history = history
        self._by_item = {
            item: (submission, index)
            for submission in history.submissions
            for index, item in enumerate(submission.items)
        }
        self._task_ids: dict[str, set[str]] = defaultdict(set)
        """Item to the task ids of its events."""
        self._events: dict[str, Counter[str]] = {"consensus.tasks": Counter(), "webhook.dispatch": Counter()}
        """Queue to the number of events of each item, without those that were only redelivered to the observer."""
        self._seen_at: dict[str, list[float]] = defaultdict(list)
        """Item to the times at which its events were seen."""
        self._acceptances: dict[str, set[str]] = defaultdict(set)
        """Id of a task or batch to the ids of its acceptance events."""
        for seen in history.seen:
            if ".accepted." in seen.routing_key:
                self._acceptances[str(seen.data.get("task_id") or seen.data["batch_id"])].add(seen.event_id)
            if seen.routing_key.startswith("task.accepted"):
                item = str(seen.data.get("data_url", "")).removeprefix(_PREFIX)
                if not seen.redelivered or not self._events[seen.queue][item]:
                    self._events[seen.queue][item] += 1
                self._task_ids[item].add(str(seen.data["task_id"]))
                self._seen_at[item].append(seen.at)

    def check_total_queue(self) -> None:
        """Check as Jepsen's total-queue does, per task: nothing is lost, nothing is unexpected."""
        result = self.result
        tasks = self._events["consensus.tasks"]
        webhooks = self._events["webhook.dispatch"]
        rejected = self._rejected_keys()
        for submission in self._history.submissions:
            result.attempted += len(submission.items)
            delivered = [item for item in submission.items if tasks[item]]
            if submission.known_accepted and (submission.cust_id, submission.key) in rejected:
                result.rejected += len(submission.items)
            elif submission.known_accepted:
                result.accepted += len(submission.items)
                result.lost += [item for item in submission.items if not tasks[item]]
                if submission.callback:
                    result.lost += [f"{item} (webhook)" for item in submission.items if not webhooks[item]]
            else:
                result.recovered += len(delivered)
                if not submission.attempts:
                    result.unexpected += delivered
        result.unexpected += [item for item in tasks if item not in self._by_item]
        result.duplicated = sum(count - 1 for counts in self._events.values() for count in counts.values() if count > 1)

    def check_ids(self) -> None:
        """Check that an item has one id, that customer and key determine it, and that the answers have the same."""
        for item, task_ids in self._task_ids.items():
            if item not in self._by_item:
                continue
            submission, index = self._by_item[item]
            if len(task_ids) > 1:
                self.result.broken.append(f"item {item} has {len(task_ids)} ids: {sorted(task_ids)}")
            expected = self._expected_task_id(submission, index)
            if expected is not None and task_ids != {expected}:
                self.result.broken.append(f"item {item} is {sorted(task_ids)}, it should be {expected}")
        for submission in self._history.submissions:
            answered = {attempt.id for attempt in submission.attempts if attempt.id}
            if len(answered) > 1:
                self.result.broken.append(f"submission {submission.number} got several ids: {sorted(answered)}")
            if submission.key is not None and answered - {
                keyed_id(SubmissionKind(submission.kind), submission.cust_id, submission.key)
            }:
                self.result.broken.append(f"submission {submission.number} got a wrong id: {sorted(answered)}")

    def check_acceptances(self) -> None:
        """Check that all events of one acceptance have one id, and that only a lost entry led to another acceptance.

        If a producer's messages have a timestamp, their events have one id even then.
        """
        for submission in self._history.submissions:
            over_http = any(attempt.channel == "http" for attempt in submission.attempts)
            most = 1 + self._lost_entries(submission) if over_http or submission.timestamp is None else 1
            ids = {task_id for item in submission.items for task_id in self._task_ids[item]}
            if submission.key is not None:
                ids.add(keyed_id(SubmissionKind.BATCH, submission.cust_id, submission.key))
            for id_ in sorted(ids):
                if len(event_ids := self._acceptances.get(id_, set())) > most:
                    self.result.broken.append(f"{id_} was accepted as {sorted(event_ids)}, expected at most {most}")

    def check_batches(self) -> None:
        """Check that `batch.accepted` has as many distinct tasks as were submitted, and comes after all of them."""
        first_seen: dict[str, int] = {}
        batches: dict[str, tuple[int, list[str], list[str]]] = {}
        for position, seen in enumerate(self._history.seen):
            if seen.queue == "webhook.dispatch" and "task_id" in seen.data:
                # A redelivery to the observer may come after later messages, so its position proves nothing.
                first_seen.setdefault(str(seen.data["task_id"]), -1 if seen.redelivered else position)
            if seen.routing_key.startswith("batch.accepted"):
                data = seen.data
                batch_position = position if seen.queue == "webhook.dispatch" else -1
                batches.setdefault(data["batch_id"], (batch_position, data["task_ids"], data["replayed_task_ids"]))
        for batch_id, (batch_position, task_ids, replayed) in batches.items():
            new_task_ids = [task_id for task_id in task_ids if task_id not in set(replayed)]
            if batch_position >= 0 and any(
                first_seen.get(task_id, batch_position + 1) > batch_position for task_id in new_task_ids
            ):
                self.result.broken.append(f"batch.accepted of {batch_id} came before its tasks")
        for submission in self._history.submissions:
            if submission.kind == "batch" and submission.known_accepted and submission.key is not None:
                batch_id = keyed_id(SubmissionKind.BATCH, submission.cust_id, submission.key)
                if batch_id not in batches:
                    self.result.broken.append(f"no batch.accepted of {batch_id} (submission {submission.number})")
                elif (count := len(set(batches[batch_id][1]))) != len(submission.items):
                    self.result.broken.append(f"{batch_id} has {count} tasks, {len(submission.items)} submitted")

    def check_dead_letters(self) -> None:
        """Check that only an exhausted quota led to a dead letter: everything that was sent was valid."""
        for seen in self._history.seen:
            if seen.queue == "ingest.dead" and not (seen.reason == "quota_exhausted" and _customer(seen.data) == POOR):
                self.result.broken.append(f"a valid submission in ingest.dead: {seen.reason}, {str(seen.data)[:200]}")

    def check_direct_outcomes(self) -> None:
        """Check that of all messages with one key at most one was the original and the others were duplicates."""
        duplicates = {
            (_customer(seen.data), str(seen.data["message_id"]))
            for seen in self._history.seen
            if seen.routing_key.startswith("submission.duplicate")
        }
        rejected = self._rejected_keys()
        for submission in self._history.submissions:
            confirmed = {
                attempt.message_id
                for attempt in submission.attempts
                if attempt.channel == "amqp" and attempt.outcome == "confirmed"
            }
            if not confirmed or (submission.cust_id, submission.key) in rejected:
                continue
            originals = len(
                [message_id for message_id in confirmed if (submission.cust_id, message_id) not in duplicates]
            )
            over_http = [attempt.outcome for attempt in submission.attempts if attempt.channel == "http"]
            maybe_by_http = any(outcome in ("accepted", "replay", "unknown") for outcome in over_http)
            # After a missing confirm the producer publishes again under the same message_id, and the second copy is
            # reported as a duplicate.
            maybe_published_twice = any(
                attempt.channel == "amqp" and attempt.outcome == "unknown" for attempt in submission.attempts
            )
            least = 0 if maybe_by_http or maybe_published_twice else 1
            # Each time that its entry may have been lost, one more message may have been accepted.
            most = (0 if "accepted" in over_http else 1) + self._lost_entries(submission)
            if not least <= originals <= most:
                self.result.broken.append(
                    f"submission {submission.number}: {originals} of {len(confirmed)} messages were taken as the "
                    f"original, expected {least} to {most}; over HTTP {over_http}"
                )

    def check_quotas(self) -> None:
        """Check that every accepted task was charged, and no more than crashes and unknown outcomes explain.

        The charges of one side of a split cluster may be lost: those of tasks that were accepted meanwhile.
        """
        for cust_id in RICH:
            accepted = attempted = in_splits = 0
            for submission in self._history.submissions:
                if submission.cust_id == cust_id:
                    count = len([item for item in submission.items if self._task_ids[item]])
                    accepted += count
                    in_splits += count if self._splits(submission) else 0
                    attempted += len(submission.items) * len(submission.attempts)
            used = self._history.used[cust_id]
            self.result.overcharged += max(0, used - accepted)
            self.result.undercharged += max(0, accepted - used)
            if used < accepted - in_splits:
                self.result.broken.append(
                    f"{cust_id} was charged {used} tasks, {accepted} were accepted, {in_splits} of them in a split"
                )
            if used > accepted + attempted:
                self.result.broken.append(f"{cust_id} was charged {used} tasks for {accepted}")
        poor = sum(
            bool(self._task_ids[item])
            for submission in self._history.submissions
            if submission.cust_id == POOR and not self._splits(submission)
            for item in submission.items
        )
        # A claim whose process has crashed before it was charged is accepted nevertheless: it may have been published.
        if poor > self._history.quotas[POOR] + len(self._history.faults):
            self.result.broken.append(f"{POOR} got {poor} tasks accepted with a quota of {self._history.quotas[POOR]}")

    def check_feedback(self) -> None:
        """Check that the producer with a feedback queue was told of each of its rejections and duplicates."""
        told = {seen.event_id for seen in self._history.seen if seen.queue == FEEDBACK}
        reports = {
            seen.event_id: str(seen.data.get("message_id"))
            for seen in self._history.seen
            if seen.queue == SPY
            and seen.routing_key.startswith("submission.")
            and seen.routing_key.endswith(f".{WITH_QUEUES}")
        }
        missing = [message_id for event_id, message_id in reports.items() if event_id not in told]
        if missing:
            self.result.broken.append(f"{FEEDBACK} has no report about {', '.join(missing[:5])}")

    def _lost_entries(self, submission: Submission) -> int:
        """Return how often the submission's entry may have been lost."""
        return len(self._history.truncated) // 2 + self._splits(submission)

    def _splits(self, submission: Submission) -> int:
        """Return in how many splits of the store the submission was sent or accepted."""
        moments = [(at, at) for item in submission.items for at in self._seen_at[item]]
        moments += [(attempt.start, attempt.end) for attempt in submission.attempts]
        return sum(
            any(begin <= end and start <= finish for begin, finish in moments) for start, end in self._history.splits
        )

    def _expected_task_id(self, submission: Submission, index: int) -> str | None:
        own_key = submission.own_keys.get(index)
        if own_key is not None:
            return keyed_id(SubmissionKind.TASK, submission.cust_id, own_key)
        if submission.key is None:
            return None
        if submission.kind == "task":
            return keyed_id(SubmissionKind.TASK, submission.cust_id, submission.key)
        return item_id(keyed_id(SubmissionKind.BATCH, submission.cust_id, submission.key), index)

    def _rejected_keys(self) -> set[tuple[str, str | None]]:
        """Return (customer, key) of submissions rejected for an exhausted quota of which no event was seen."""
        rejected_messages = {
            (_customer(seen.data), str(seen.data.get("message_id")))
            for seen in self._history.seen
            if seen.queue == "ingest.dead" and seen.reason == "quota_exhausted"
        }
        return {
            (submission.cust_id, submission.key)
            for submission in self._history.submissions
            if any((submission.cust_id, attempt.message_id) in rejected_messages for attempt in submission.attempts)
            and not self._task_ids[submission.items[0]]
        }


def _customer(data: dict[str, object]) -> str:
    """Return the customer of an event or of a dead letter's submission."""
    return str(data.get("cust_id") or str(data.get("routing_key", "")).rpartition(".")[2])
