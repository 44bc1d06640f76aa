"""What operators see of customers: a list with this month's usage, or one with its API keys."""

from collections.abc import Awaitable, Callable

import msgspec

from ingest.admission.charging import month_of
from ingest.domain.customers import ApiKey, Customer
from ingest.domain.ports import Store
from ingest.domain.rates import RateLimit

OpenStore = Callable[[], Awaitable[Store]]
"""Opens the store, as `StoreBackend.open_to_read`."""


class CustomerSummary(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A customer in a list.

    `used` is the number of tasks charged this month, `keys` that of API keys that are not revoked, and `webhooks` that
    of registered URLs. The other fields are those of `Customer`.
    """

    cust_id: str
    disabled: bool
    monthly_quota: int | None
    used: int
    rate: RateLimit | None
    weight: float
    keys: int
    webhooks: int


class CustomerList(msgspec.Struct, frozen=True, kw_only=True):
    """Customers by cust_id.

    `at` is the time of the reading in Unix seconds, and `month` that of `used` (`YYYY-MM`, UTC). `has_more`: there are
    further ones, which were not read.
    """

    at: float
    month: str
    customers: list[CustomerSummary]
    has_more: bool


class KeySummary(msgspec.Struct, frozen=True, kw_only=True):
    """An API key without its hash. The fields are those of `ApiKey`."""

    key_id: str
    name: str
    created_at: int
    last_used_at: int | None
    revoked: bool


class CustomerDetails(msgspec.Struct, frozen=True, kw_only=True):
    """A customer with everything that belongs to it.

    `used` is the number of tasks charged in `month` (`YYYY-MM`, UTC). `has_own_queues`: it is a direct producer with
    queues of its own.
    """

    customer: Customer
    month: str
    used: int
    keys: list[KeySummary]
    has_own_queues: bool


async def list_customers(open_store: OpenStore, at: float, limit: int, prefix: str = "") -> CustomerList:
    """Return the customers whose cust_id begins with `prefix`; at most the first `limit`.

    `at` is the time in Unix seconds. Raises ConfigurationError, StoreUnavailable.
    """
    month = month_of(int(at * 1000))
    store = await open_store()
    try:
        customers = await store.customers(prefix, limit + 1)
        has_more = len(customers) > limit
        del customers[limit:]
        cust_ids = [customer.cust_id for customer in customers]
        used, keys = await store.used_by(cust_ids, month), await store.key_counts(cust_ids)
    finally:
        await store.close()
    summaries = [_summary(*row) for row in zip(customers, used, keys, strict=True)]
    return CustomerList(at=at, month=month, customers=summaries, has_more=has_more)


async def find_customer(open_store: OpenStore, at: float, cust_id: str) -> CustomerDetails | None:
    """Return a customer; None if it does not exist. Arguments and errors as `list_customers`."""
    store = await open_store()
    try:
        customer = await store.customer(cust_id)
        if customer is None or customer.cust_id != cust_id:  # Aerospike's client ends a key at a NUL
            return None
        return await customer_details(store, customer, at)
    finally:
        await store.close()


async def customer_details(store: Store, customer: Customer, at: float) -> CustomerDetails:
    """Return what belongs to a customer. `at` is the time in Unix seconds. Raises StoreUnavailable."""
    month = month_of(int(at * 1000))
    return CustomerDetails(
        customer=customer,
        month=month,
        used=await store.used(customer.cust_id, month),
        keys=[_without_hash(key) for key in await store.keys(customer.cust_id)],
        has_own_queues=customer.cust_id in await store.producers(),
    )


def _summary(customer: Customer, used: int, keys: int) -> CustomerSummary:
    return CustomerSummary(
        cust_id=customer.cust_id,
        disabled=customer.disabled,
        monthly_quota=customer.monthly_quota,
        used=used,
        rate=customer.rate,
        weight=customer.weight,
        keys=keys,
        webhooks=len(customer.webhooks),
    )


def _without_hash(key: ApiKey) -> KeySummary:
    return KeySummary(**{name: getattr(key, name) for name in KeySummary.__struct_fields__})
