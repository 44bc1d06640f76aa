"""The load: tasks and batches, over HTTP and AMQP, with and without keys, replays and concurrent duplicates."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Literal

import httpx

from tests.chaos.history import Attempt, History, Submission
from tests.chaos.producer import Producer

RICH: Final = ("acme", "beta")
WITH_QUEUES: Final = RICH[1]
"""It has queues of its own as a direct producer."""
FEEDBACK: Final = f"feedback.{WITH_QUEUES}"
SPY: Final = "chaos.spy"
"""Bound to events that otherwise reach no queue, but not to `task.accepted`, which `rabbit-events-unroutable` needs."""
POOR: Final = "tiny"
POOR_QUOTA: Final = 15
WEBHOOK: Final = "https://example.com/hooks/asg"
_OUTSTANDING: Final = 150
_CROWD: Final = 40
_FLOOD: Final = 9
"""Batches of a flood. With 9 of 300 tasks, a customer has more than the 2,000 tasks from which on it is heavy."""
_FLOOD_SIZE: Final = 300
_TYPES: Final = ("image_classification", "text_classification", "sentiment", "moderation")
Channel = Literal["http", "amqp"]
Kind = Literal["task", "batch"]
_KINDS: Final[tuple[Kind, ...]] = ("task", "task", "batch")


class Workload:
    """Clients and direct producers.

    `callbacks` says whether new submissions may have a callback_url.

    Args:
        rate: submissions per second.
        shims: base URLs.
        keys: API keys by customer.
        ports: AMQP ports of the RabbitMQ nodes.
    """

    def __init__(
        self,
        history: History,
        rng: random.Random,
        rate: float,
        shims: list[str],
        keys: dict[str, str],
        ports: list[int],
    ) -> None:
        self._history = history
        self._rng = rng
        self._rate = rate
        self._shims = shims
        self._keys = keys
        self._http = httpx.AsyncClient(timeout=12, limits=httpx.Limits(max_connections=200))
        self._producers = {cust_id: Producer(cust_id, ports) for cust_id in keys}
        self._active = asyncio.Event()
        self._active.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.callbacks = True
        self.giving_up = False
        self.counts = {"unavailable": 0, "unknown": 0, "sent": 0, "skipped": 0}

    @property
    def successes(self) -> int:
        """How many attempts were answered with anything but "unavailable"."""
        return self.counts["sent"] - self.counts["unavailable"] - self.counts["unknown"]

    def pause(self) -> None:
        """Start no new submissions. Submissions in flight continue."""
        self._active.clear()

    def resume(self) -> None:
        self._active.set()

    async def run(self) -> None:
        """Send until cancelled."""
        choices: list[tuple[Callable[[], None], float]] = [
            (lambda: self._start_new("http", "task", keyed=True), 30),
            (lambda: self._start_new("http", "task", keyed=False), 10),
            (lambda: self._start_new("amqp", "task", keyed=True), 18),
            (lambda: self._start_new("http", "batch", keyed=True), 10),
            (lambda: self._start_new("http", "batch", keyed=False), 4),
            (lambda: self._start_new("amqp", "batch", keyed=True), 8),
            (self._start_replay, 12),
            (self._start_concurrent_duplicates, 5),
            (lambda: self._start_new(self._random_channel(), "task", keyed=True, cust_id=POOR), 3),
            (self._start_crowd, 0.5),
            (self._start_flood, 0.1),
        ]
        jobs, weights = [job for job, _ in choices], [weight for _, weight in choices]
        while True:
            await self._active.wait()
            await asyncio.sleep(self._rng.expovariate(self._rate))
            if len(self._tasks) >= _OUTSTANDING:
                self.counts["skipped"] += 1
                continue
            self._rng.choices(jobs, weights)[0]()

    async def finish(self, seconds: float) -> int:
        """Wait for the submissions in flight; return how many got no answer within `seconds`. These stop retrying."""
        pending = self._tasks
        if pending:
            _, pending = await asyncio.wait(self._tasks, timeout=seconds)
        self.giving_up = True
        if pending:
            await asyncio.wait(pending, timeout=30)
        return len(pending)

    async def close(self) -> None:
        await self._http.aclose()
        for producer in self._producers.values():
            await producer.close()

    async def idle(self, seconds: float) -> None:
        """Wait until no submission is in flight. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while self._tasks:
                await asyncio.wait(set(self._tasks))

    def new_single(self, cust_id: str, key: str | None) -> Submission:
        """Create a task and add it to the history."""
        return self._new_submission(cust_id, "task", key)

    async def post(self, submission: Submission, shim: int | None = None) -> Attempt:
        """Send one request to the shim with this index, or to a random one. Record the attempt and return it."""
        index = self._rng.randrange(len(self._shims)) if shim is None else shim
        attempt = Attempt("http", shim=index)
        submission.attempts.append(attempt)
        path = "/v1/tasks" if submission.kind == "task" else "/v1/tasks/batch"
        headers = {"Authorization": f"Bearer {self._keys[submission.cust_id]}"}
        if submission.key is not None and "idempotency_key" not in submission.body:
            headers["Idempotency-Key"] = submission.key
        try:
            answer = await self._http.post(f"{self._shims[index]}{path}", json=submission.body, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            attempt.finish("unavailable")  # the request was never sent
        except httpx.HTTPError:
            attempt.finish("unknown")
        else:
            self._record_answer(answer, attempt, submission.kind)
        self.counts["unavailable"] += attempt.outcome == "unavailable"
        self.counts["unknown"] += attempt.outcome == "unknown"
        self.counts["sent"] += 1
        return attempt

    async def produce(self, submission: Submission, message_id: str) -> Attempt:
        """Publish once, as a direct producer. Record the attempt and return it."""
        attempt = Attempt("amqp", message_id=message_id)
        submission.attempts.append(attempt)
        producer = self._producers[submission.cust_id]
        await producer.publish(submission.kind, submission.body, submission.timestamp, attempt)
        self.counts["unavailable"] += attempt.outcome == "unavailable"
        self.counts["unknown"] += attempt.outcome == "unknown"
        self.counts["sent"] += 1
        return attempt

    def _record_answer(self, answer: httpx.Response, attempt: Attempt, kind: str) -> None:
        body: dict[str, Any] = answer.json() if answer.content else {}
        submission_id = body.get("task_id" if kind == "task" else "batch_id", "")
        if answer.status_code in (200, 202) and not submission_id:
            self._history.complaints.append(f"{answer.status_code} without an id: {body}")
        outcomes: dict[int, Any] = {202: "accepted", 200: "replay", 409: "unavailable", 503: "unavailable"}
        if answer.status_code == 503 and "retry-after" not in answer.headers:
            self._history.complaints.append("503 without Retry-After")
        if answer.status_code >= 500 and answer.status_code != 503:
            self._history.complaints.append(f"{answer.status_code} from a shim: {answer.text[:200]}")
        if answer.status_code == 401:
            self._history.complaints.append("401 for a key that exists")
        attempt.finish(outcomes.get(answer.status_code, "refused"), answer.status_code, submission_id)

    def _random_channel(self) -> Channel:
        return "http" if self._rng.random() < 0.5 else "amqp"

    def _start_new(self, channel: Channel, kind: Kind, *, keyed: bool, cust_id: str | None = None) -> None:
        cust_id = cust_id or self._rng.choice(RICH)
        number = len(self._history.submissions)
        key = f"key-{number}" if keyed else None
        submission = self._new_submission(cust_id, kind, key)
        message_id = f"m-{number}"
        if channel == "amqp" and self._rng.random() < 0.5:
            message_id = submission.body.pop("idempotency_key")  # without it in the body, the message_id is the key
        self._spawn(self._submit_until_answered(submission, channel, message_id))

    def _start_concurrent_duplicates(self) -> None:
        """Submit the same three times at once: twice over HTTP and once straight to the broker."""
        number = len(self._history.submissions)
        cust_id = self._rng.choice(RICH)
        submission = self._new_submission(cust_id, self._rng.choice(_KINDS), f"key-{number}")
        self._spawn(self._submit_until_answered(submission, "http", ""))
        self._spawn(self._submit_until_answered(submission, "http", ""))
        self._spawn(self._submit_until_answered(submission, "amqp", f"copy-{number}"))

    def _start_crowd(self) -> None:
        """Post tasks of two customers to one shim at once, which it publishes in bundles."""
        shim = self._rng.randrange(len(self._shims))
        for number in range(_CROWD):
            submission = self._new_submission(RICH[number % 2], "task", f"key-{len(self._history.submissions)}")
            self._spawn(self._submit_until_answered(submission, "http", "", shim))

    def _start_flood(self) -> None:
        """Post so many tasks of one customer to one shim that the customer is heavy there for some seconds."""
        shim = self._rng.randrange(len(self._shims))
        for _ in range(_FLOOD):
            key = f"key-{len(self._history.submissions)}"
            submission = self._new_submission(RICH[0], "batch", key, _FLOOD_SIZE)
            self._spawn(self._submit_until_answered(submission, "http", "", shim))

    def _start_replay(self) -> None:
        """Submit again what was accepted earlier."""
        recent = [
            submission
            for submission in self._history.submissions[-400:]
            if submission.key and submission.known_accepted
        ]
        if recent:
            submission = self._rng.choice(recent)
            channel = self._random_channel() if "idempotency_key" in submission.body else "http"
            message_id = f"again-{len(submission.attempts)}-{submission.number}"
            self._spawn(self._submit_until_answered(submission, channel, message_id))

    def _new_submission(self, cust_id: str, kind: Kind, key: str | None, size: int | None = None) -> Submission:
        number = len(self._history.submissions)
        if size is None:
            size = 1 if kind == "task" else self._rng.choice((2, 3, 5, 10, 40, 120))
        items = [f"{number}-{index}" for index in range(size)]
        callback = self._rng.random() < 0.4 and self.callbacks
        tasks: list[dict[str, Any]] = [self._task(item) for item in items]
        own_keys = {}
        if kind == "batch" and self._rng.random() < 0.3:
            own_keys = {index: f"key-{number}-{index}" for index in range(0, size, 2)}
            for index, own_key in own_keys.items():
                tasks[index]["idempotency_key"] = own_key
        body: dict[str, Any] = tasks[0] if kind == "task" else {"tasks": tasks}
        if callback:
            body["callback_url"] = WEBHOOK
        if key is not None:
            body["idempotency_key"] = key
        timestamp = int(time.time()) if self._rng.random() < 0.5 else None
        submission = Submission(number, cust_id, kind, key, items, body, callback, own_keys, timestamp)
        self._history.submissions.append(submission)
        return submission

    def _task(self, item: str) -> dict[str, Any]:
        return {
            "type": self._rng.choice(_TYPES),
            "data_url": f"https://cdn.example.com/{item}",
            "label_spec": {"question": "Which?", "options": ["one", "two"]},
        }

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _submit_until_answered(
        self, submission: Submission, channel: Channel, message_id: str, shim: int | None = None
    ) -> None:
        """Submit as a client does: retry until there is an answer, but submit only once if there is no key.

        `shim`: the index of the one for the first attempt.
        """
        pause = 0.2
        while True:
            if channel == "http":
                attempt = await self.post(submission, shim)
            else:
                attempt = await self.produce(submission, message_id)
            shim = None
            if attempt.outcome not in ("unavailable", "unknown") or submission.key is None or self.giving_up:
                return
            await asyncio.sleep(pause * self._rng.uniform(0.5, 1.5))
            pause = min(pause * 1.7, 2.0)
