"""Classifies deliveries: admitted by the shim, sent by a direct producer, or rejected."""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import msgspec
import structlog

from ingest.admission import Request
from ingest.domain import addresses, admitted, bundles
from ingest.domain.addresses import Address
from ingest.domain.admitted import Admitted
from ingest.domain.content import content_problem
from ingest.domain.customers import Customer, is_cust_id
from ingest.domain.errors import InvalidSubmission, Reason, StoreUnavailable, UnregisteredWebhook
from ingest.domain.identity import SubmissionKind
from ingest.domain.ledger import UNDECIDED
from ingest.domain.messages import JSON, Delivery
from ingest.domain.parsing import Unparsed
from ingest.domain.ports import Registry
from ingest.domain.redrives import NONE, Redrives, redrives_of
from ingest.domain.submissions import MAX_BODY
from ingest.domain.topology import DELIVERY_LIMIT
from ingest.domain.trace import trace_of
from ingest.domain.validation import validate_key
from ingest.parsing.parser import SubmissionParser, is_large
from ingest.waiting import TimeSlices
from ingest.worker.customers import CustomerCache, CustomerLookups
from ingest.worker.rejections import Rejection, rejection

_WARNING_INTERVAL: Final = 30.0
"""Seconds between two log lines about a user who is not trusted."""
UNTRUSTED_FOR: Final = 30.0
"""Seconds after its last attempted submission for which a user is reported as not trusted."""
_MAX_ADDRESSES: Final = 10_000
_NORMAL_PRIORITY: Final = 4
"""The priority of a message without one, in a quorum queue of RabbitMQ 4."""
_log = structlog.get_logger(__name__)


class Classified(msgspec.Struct, eq=False):
    """Deliveries, grouped by the work that they need."""

    admitted: list[tuple[Delivery, Admitted]] = msgspec.field(default_factory=list)
    untrusted: list[Delivery] = msgspec.field(default_factory=list)
    """Sent by another user of the service, it seems, whom INGEST_TRUSTED_USERS does not name."""
    direct: list[tuple[Delivery, Request]] = msgspec.field(default_factory=list)
    revoked: list[tuple[Request, Rejection]] = msgspec.field(default_factory=list)
    """Direct submissions whose webhook or customer is unknown, or whose customer is disabled: rejected, unless they
    were admitted before."""
    rejected: list[Rejection] = msgspec.field(default_factory=list)
    undecided: list[Delivery] = msgspec.field(default_factory=list)
    """Direct submissions whose customer could not be looked up; `failure` is the latest error."""
    failure: StoreUnavailable | None = None


class DeliveryClassifier:
    """Classifies deliveries.

    Args:
        registry: looks customers up.
        trusted_users: the service's own AMQP users. Only they may say that a submission was admitted, and they may
            submit for any customer: one of them publishes redriven dead letters.
        parser: parses direct submissions.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        registry: Registry,
        trusted_users: frozenset[str],
        parser: SubmissionParser,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.customers = CustomerCache(registry, clock)
        self._parser = parser
        self._trusted = trusted_users
        self._clock = clock
        self._next_warning = 0.0
        self._untrusted: dict[str, float] = {}
        """User to the time of the last attempt at one of its submissions."""

    @property
    def untrusted_users(self) -> list[str]:
        """Users who, it seems, belong to the service, and whose submissions wait because they are not trusted."""
        latest = self._clock() - UNTRUSTED_FOR
        self._untrusted = {user: time for user, time in self._untrusted.items() if time > latest}
        return sorted(self._untrusted)

    def redrives(self, delivery: Delivery) -> Redrives:
        """Return the redrives of a submission. Headers of a direct producer do not count."""
        return redrives_of(delivery.headers) if delivery.user_id in self._trusted else NONE

    async def classify(self, deliveries: Sequence[Delivery]) -> Classified:
        """Classify deliveries. Raises ParserFailed if one of them has a large body.

        A delivery that `waits_for_parser` should be the only one, because it may take seconds.
        """
        classified = Classified()
        lookups = CustomerLookups(self.customers)
        slices = TimeSlices()
        if self.customers.unreadable:  # these come last, because another failure may end the look-ups
            deliveries = sorted(deliveries, key=self._is_unreadable)
        for delivery in deliveries:
            await slices.between()
            cust_id = ""
            try:
                if delivery.type == bundles.TYPE:  # otherwise it would have been delivered as its submissions
                    address = addresses.parse(delivery.routing_key)
                    cust_id = address.cust_id if address else ""
                    if self._is_untrusted_service_user(delivery, cust_id):
                        classified.untrusted.append(delivery)
                        continue
                    raise self._unusable(delivery)
                kind, cust_id, route = _address(delivery.routing_key)
                _check_attempts(delivery)
                if delivery.type == admitted.TYPE:
                    if self._is_untrusted_service_user(delivery, cust_id):
                        classified.untrusted.append(delivery)
                        continue
                    classified.admitted.append((delivery, self._admitted(delivery, cust_id)))
                elif route and delivery.user_id not in self._trusted:
                    # Queues of the shim: its traffic would wait behind that of a producer with loose permissions.
                    raise _bad_routing_key()
                else:
                    await self._classify_direct(classified, lookups, delivery, kind, cust_id)
            except InvalidSubmission as error:
                classified.rejected.append(rejection(delivery, error, cust_id))
        classified.failure = lookups.failure
        return classified

    def _is_unreadable(self, delivery: Delivery) -> bool:
        return delivery.routing_key.rpartition(".")[2] in self.customers.unreadable

    def _is_untrusted_service_user(self, delivery: Delivery, cust_id: str) -> bool:
        """Return whether an admitted submission comes from neither a trusted user nor its customer.

        A direct producer can publish only under the name of its customer. So this is probably a shim that has another
        AMQP user than this worker, and its clients were answered 202.
        """
        user = delivery.user_id
        if user is None or user == cust_id or user in self._trusted:
            return False
        now = self._untrusted[user] = self._clock()
        if now >= self._next_warning:
            self._next_warning = now + _WARNING_INTERVAL
            _log.error(
                "untrusted_service_user",
                user=user,
                action="if this user belongs to the service, add it to INGEST_TRUSTED_USERS of the workers",
            )
        return True

    def _unusable(self, bundle: Delivery) -> InvalidSubmission:
        """Return why a bundle was not unpacked."""
        if bundle.user_id in self._trusted:
            return InvalidSubmission(Reason.MALFORMED, "body is not a bundle of submissions")
        return _forged(bundles.TYPE)

    def _admitted(self, delivery: Delivery, cust_id: str) -> Admitted:
        if delivery.user_id is None or delivery.user_id not in self._trusted:
            raise _forged(admitted.TYPE)
        message = admitted.from_body(delivery.body)
        if message.submission.cust_id != cust_id:
            raise InvalidSubmission(Reason.FORGED_ADMISSION, "the body and the routing key name different customers")
        return message

    async def _classify_direct(
        self,
        classified: Classified,
        lookups: CustomerLookups,
        delivery: Delivery,
        kind: SubmissionKind,
        cust_id: str,
    ) -> None:
        if delivery.user_id not in (None, cust_id) and delivery.user_id not in self._trusted:
            raise InvalidSubmission(Reason.USER_MISMATCH, f"the AMQP user must be {cust_id}, as in the routing key")
        message_id = delivery.message_id
        if not message_id:
            raise InvalidSubmission(Reason.MISSING_MESSAGE_ID, "property message_id is required: it makes a retry safe")
        _check_priority(delivery)
        _check_content(delivery)
        key = validate_key(message_id, "message_id")
        customer = await lookups.customer(cust_id)
        if customer is UNDECIDED:
            classified.undecided.append(delivery)
            return
        created_at = None if delivery.timestamp is None else delivery.timestamp * 1000
        trace = trace_of(delivery.headers)
        try:
            if customer is None:
                raise InvalidSubmission(Reason.UNKNOWN_CUSTOMER, f"customer {cust_id} does not exist")
            if customer.disabled:
                raise InvalidSubmission(Reason.CUSTOMER_DISABLED, f"customer {cust_id} is disabled")
            submission = await self._parser.parse(Unparsed(kind, delivery.body, cust_id, customer.webhooks, key))
            request = Request(submission, customer, origin=message_id, trace=trace, created_at=created_at)
            classified.direct.append((delivery, request))
        except InvalidSubmission as error:
            if not _may_have_been_admitted(error):
                raise
            rejected = rejection(delivery, error, cust_id)
            # A customer that was deleted is charged for nothing new.
            customer = customer or Customer(cust_id=cust_id, monthly_quota=0)
            try:
                submission = await self._parser.parse(Unparsed(kind, delivery.body, cust_id, None, key))
            except InvalidSubmission:
                classified.rejected.append(rejected)
            else:
                request = Request(submission, customer, origin=message_id, trace=trace, created_at=created_at)
                classified.revoked.append((request, rejected))


def _may_have_been_admitted(error: InvalidSubmission) -> bool:
    """Return whether the submission may have been correct when an earlier attempt admitted it."""
    return isinstance(error, UnregisteredWebhook) or error.reason in (
        Reason.UNKNOWN_CUSTOMER,
        Reason.CUSTOMER_DISABLED,
    )


def waits_for_parser(delivery: Delivery) -> bool:
    """Return whether classifying a delivery waits for the process that parses large bodies."""
    return delivery.type != admitted.TYPE and is_large(delivery.body)


@lru_cache(maxsize=_MAX_ADDRESSES)
def _address(routing_key: str) -> Address:
    """Return kind and customer. Raises InvalidSubmission (BAD_ROUTING_KEY)."""
    address = addresses.parse(routing_key)
    if address is None or not is_cust_id(address.cust_id):
        raise _bad_routing_key()
    return address


def _forged(type_: str) -> InvalidSubmission:
    return InvalidSubmission(
        Reason.FORGED_ADMISSION, f"type {type_} is for the service's own users only: leave the `type` property out"
    )


def _bad_routing_key() -> InvalidSubmission:
    return InvalidSubmission(
        Reason.BAD_ROUTING_KEY,
        "the routing key must be task.submitted.<cust_id> or batch.submitted.<cust_id>; a cust_id has 1 to 64 "
        "characters: letters, digits, _ and -",
    )


def _check_attempts(delivery: Delivery) -> None:
    # This check comes before any work, because the delivery may be what kills workers. RabbitMQ up to 4.2 dead-letters
    # it earlier, at the queue's own limit.
    if delivery.deliveries > DELIVERY_LIMIT:
        raise InvalidSubmission(
            Reason.DELIVERY_LIMIT, f"the message was delivered {delivery.deliveries} times before and never finished"
        )


def _check_priority(delivery: Delivery) -> None:
    # Since RabbitMQ 4, quorum queues deliver a higher priority before the messages of other customers. That cannot be
    # turned off, so a producer must gain nothing from it. Lower priorities delay only the producer's own messages.
    if delivery.priority is not None and delivery.priority > _NORMAL_PRIORITY:
        raise InvalidSubmission(
            Reason.BAD_PROPERTY,
            f"property priority must be at most {_NORMAL_PRIORITY}, it is {delivery.priority}: leave it out",
        )


def _check_content(delivery: Delivery) -> None:
    problem = content_problem(
        delivery.content_type or JSON,
        delivery.content_encoding or "",
        "property content_type",
        "property content_encoding",
    )
    if problem is not None:
        raise InvalidSubmission(Reason.UNSUPPORTED_CONTENT_TYPE, problem)
    if len(delivery.body) > MAX_BODY:
        raise InvalidSubmission(
            Reason.TOO_LARGE, f"the body has {len(delivery.body):,} bytes, at most {MAX_BODY:,} are allowed"
        )
