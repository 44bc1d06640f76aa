"""`POST /v1/tasks` and `POST /v1/tasks/batch`: from a body to the contract's answer."""

import asyncio
from email.utils import formatdate
from functools import lru_cache
from typing import Final

import msgspec
import structlog

from ingest.admission import Admission, Decision, Request, Verdict
from ingest.domain import events
from ingest.domain.customers import Customer
from ingest.domain.errors import InvalidSubmission, ParserFailed, Reason, StoreUnavailable
from ingest.domain.identity import SubmissionKind
from ingest.domain.ledger import Entry
from ingest.domain.parsing import Unparsed
from ingest.domain.ports import Publisher
from ingest.domain.submissions import Submission
from ingest.domain.trace import trace_of_http
from ingest.domain.validation import validate_key
from ingest.fair_queue import QueueFull
from ingest.parsing.parser import SubmissionParser
from ingest.shim import problems
from ingest.shim.batcher import MicroBatcher
from ingest.shim.pipeline import SubmissionPipeline
from ingest.shim.problems import Header
from ingest.shim.traffic import TrafficRouter
from ingest.waiting import Backoff

_CONTENDED_WAIT: Final = 2.0
"""Seconds to wait for another request with the same key before the answer is 409."""
_CONTENDED_PAUSES: Final = (0.01, 0.2)
"""First and longest pause in between, in seconds."""
_MAX_UNPARSED: Final = 1000
"""Bodies that wait to be parsed. Their memory is bounded by `BodyMemoryBudget`."""

_log = structlog.get_logger(__name__)
_encode = msgspec.json.encode
_rfc3339 = lru_cache(maxsize=1024)(events.rfc3339)

Answer = tuple[int, bytes, list[Header]]
"""Status, body, headers."""


class Submitter:
    """Answers submissions.

    Args:
        admission: claims and charges.
        publisher: publishes to the ingest queues.
        deadline: time limit for parsing, and for one pass through the pipeline, in seconds. A contended request makes
            further passes for up to 2 s, so it can take 2 s longer.
        parser: for tests; by default one of its own.
        router: chooses the queues; by default one of its own.
    """

    def __init__(
        self,
        admission: Admission,
        publisher: Publisher,
        deadline: float,
        parser: SubmissionParser | None = None,
        router: TrafficRouter | None = None,
    ) -> None:
        self._parser = parser or SubmissionParser(_MAX_UNPARSED, deadline)
        self._admission = admission
        run = SubmissionPipeline(admission, publisher, router).run
        # Two batchers, so that a single task never waits behind batches of a thousand.
        self._batchers: dict[SubmissionKind, MicroBatcher[Request, Decision]] = {
            SubmissionKind.TASK: MicroBatcher(
                run,
                max_batch=512,
                max_concurrency=4,
                min_batch=64,
                max_queue=20_000,
                deadline=deadline,
                customer_of=_customer_of,
            ),
            SubmissionKind.BATCH: MicroBatcher(
                run, max_batch=4, max_concurrency=2, max_queue=64, deadline=deadline, customer_of=_customer_of
            ),
        }

    async def submit(
        self, kind: SubmissionKind, body: bytes, headers: dict[bytes, bytes], customer: Customer, request_id: str
    ) -> Answer:
        """Return the answer to a submission. Raises Problem for every answer that is not 2xx."""
        try:
            submission = await self._parse(kind, body, headers.get(b"idempotency-key"), customer)
        except InvalidSubmission as error:
            raise problems.invalid(error) from None
        request = Request(submission, customer, trace=trace_of_http(headers), request_id=request_id)
        decision = await self._decide(request)
        return _answer(decision, _wants_representation(headers))

    async def drain(self) -> None:
        """Wait for the requests in progress, and a little for what the store has not recorded yet."""
        for batcher in self._batchers.values():
            await batcher.drain()
        await self._admission.close()
        await self._parser.close()

    async def _parse(
        self, kind: SubmissionKind, body: bytes, key_header: bytes | None, customer: Customer
    ) -> Submission:
        """Return the submission in a body. Raises InvalidSubmission, Problem."""
        key = None
        if key_header is not None:
            # Clients send ASCII, or UTF-8 as in the body. Other bytes become characters that a key must not contain.
            key = validate_key(key_header.decode("utf-8", "replace"), "Idempotency-Key")
        try:
            submission = await self._parser.parse(Unparsed(kind, body, customer.cust_id, customer.webhooks, key))
        except QueueFull:
            raise problems.overloaded() from None
        except TimeoutError:
            raise problems.deadline_exceeded() from None
        except ParserFailed as error:
            _log.error("parsing_failed", cust_id=customer.cust_id, error=str(error), bytes=len(body))
            raise problems.parser_failed() from None
        if key is not None and submission.key != key:
            raise InvalidSubmission(Reason.INVALID, "idempotency_key and the Idempotency-Key header must be equal")
        return submission

    async def _decide(self, request: Request) -> Decision:
        """Return an ADMITTED decision, confirmed by the broker, or a REPLAY. Raises Problem for every other verdict."""
        batcher = self._batchers[request.submission.kind]
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _CONTENDED_WAIT
        backoff = Backoff(*_CONTENDED_PAUSES)
        while True:
            try:
                decision = await batcher.submit(request)
            except QueueFull:
                raise problems.overloaded() from None
            except TimeoutError:
                raise problems.deadline_exceeded() from None
            except StoreUnavailable:
                raise problems.store_unavailable() from None
            match decision.verdict:
                case Verdict.ADMITTED | Verdict.REPLAY:
                    return decision
                case Verdict.QUOTA_EXHAUSTED:
                    raise problems.quota_exhausted()
                case Verdict.UNCONFIRMED:
                    raise problems.broker_unavailable()
                case Verdict.UNDECIDED:
                    raise problems.store_unavailable()
            pause = backoff.next()
            if loop.time() + pause > give_up:
                raise problems.contended()
            await asyncio.sleep(pause)


def _customer_of(request: Request) -> str:
    return request.customer.cust_id


def _wants_representation(headers: dict[bytes, bytes]) -> bool:
    return b"return=representation" in headers.get(b"prefer", b"").lower().replace(b" ", b"")


def _answer(decision: Decision, represent: bool) -> Answer:
    entry = decision.entry
    replay = decision.verdict is Verdict.REPLAY
    headers: list[Header] = []
    if replay:
        headers.append((b"idempotent-replayed", b"true"))
        if decision.mismatch:
            _log.warning("payload_mismatch", cust_id=entry.cust_id, id=entry.id)
            if decision.request.customer.strict:
                raise problems.key_conflict()
            headers.append((b"idempotency-payload-mismatch", b"true"))
    if decision.request.submission.key is not None:
        headers.append((b"idempotency-key-expires", _http_date(entry.created_at // 1000 + entry.retention)))
    status = 200 if replay else 202
    # Only on debug: at thousands of requests a second the metrics tell more for less.
    _log.debug("submission_answered", status=status, cust_id=entry.cust_id, id=entry.id)
    if decision.request.submission.kind is SubmissionKind.TASK:
        return status, task_body(entry, replay), headers
    if represent:
        headers.append((b"preference-applied", b"return=representation"))
    return status, batch_body(entry, replay, _replayed(decision) if represent else None), headers


def _replayed(decision: Decision) -> int:
    """Return how many of a batch's tasks are not new: accepted before, or with the key of an earlier task in it."""
    entry = decision.entry
    if decision.verdict is Verdict.REPLAY:
        return entry.task_count
    keyed_ids = entry.keyed_item_ids.values()
    return len(keyed_ids) - len(set(keyed_ids).difference(decision.replayed))


def task_body(entry: Entry, replay: bool) -> bytes:
    """Return the contract's success body of a task."""
    return b'{"task_id":"%b","status":"pending","created_at":"%b"%b}' % (
        entry.id.encode(),
        _rfc3339(entry.created_at // 1000 * 1000).encode(),
        b',"idempotent":true' if replay else b"",
    )


def batch_body(entry: Entry, replay: bool, replayed: int | None) -> bytes:
    """Return the contract's success body of a batch; with `replayed` also that number, and the task ids in order."""
    body: dict[str, object] = {"batch_id": entry.id, "task_count": entry.task_count, "status": "accepted"}
    if replayed is not None:
        body["task_ids"] = entry.task_ids
        body["replayed"] = replayed
    if replay:
        body["idempotent"] = True
    return _encode(body)


@lru_cache(maxsize=1024)
def _http_date(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode()
