"""The promises of `domain.ports.Registry`, tested on every store: customers, keys, producers."""

import uuid

import msgspec

from ingest.domain.customers import ApiKey, Customer, hash_api_key, key_id_of, new_api_key
from ingest.domain.ports import Store
from ingest.domain.rates import RateLimit


async def test_saving_a_customer_replaces_every_field(store: Store) -> None:
    """The second customer has no quota and no rate, which means that both are unlimited."""
    name = f"c-{uuid.uuid4().hex[:8]}"
    hooks = frozenset({"https://a.example/ü"})
    first = Customer(cust_id=name, monthly_quota=5, strict=True, webhooks=hooks, rate=RateLimit(600, 60), weight=2.5)
    await store.save_customer(first)
    assert await store.customer(name) == first
    second = Customer(cust_id=name, retention=60, disabled=True)
    await store.save_customer(second)
    assert await store.customer(name) == second
    assert second in await store.customers()
    assert await store.customer("unknown") is None


async def test_customers_are_listed_by_the_beginning_of_their_id(store: Store) -> None:
    """In the order of their ids, and only the first ones if there is a limit."""
    prefix = f"c-{uuid.uuid4().hex[:8]}"
    names = [prefix, f"{prefix}-a", f"{prefix}-b", f"{prefix}ü"]
    for name in (*reversed(names), f"x{prefix}"):
        await store.save_customer(Customer(cust_id=name))
    assert [found.cust_id for found in await store.customers(prefix)] == names
    assert [found.cust_id for found in await store.customers(prefix, 1)] == names[:1]
    assert [found.cust_id for found in await store.customers(f"{prefix}-", 5)] == names[1:3]
    assert await store.customers(f"{prefix}*") == []
    everybody = [found.cust_id for found in await store.customers()]
    assert everybody == sorted(everybody)
    assert {*names, f"x{prefix}"} <= set(everybody)


async def test_keys_that_are_not_revoked_are_counted_by_customer(store: Store) -> None:
    first, second, without = (f"c-{uuid.uuid4().hex[:8]}" for _ in range(3))
    keys = [
        ApiKey(key_id=key_id_of(hashed), cust_id=cust_id, key_hash=hashed, created_at=5)
        for cust_id in (first, first, second)
        for hashed in [hash_api_key(new_api_key())]
    ]
    for key in keys:
        await store.save_key(key)
    assert await store.key_counts([without, first, second]) == [0, 2, 1]
    await store.revoke_key(keys[0].key_id)
    assert await store.key_counts([first, second]) == [1, 1]
    assert await store.key_counts([]) == []


async def test_customer_is_found_by_key_hash_until_the_key_is_revoked(store: Store) -> None:
    customer = Customer(cust_id=f"c-{uuid.uuid4().hex[:8]}")
    hashed = hash_api_key(new_api_key())
    key = ApiKey(key_id=key_id_of(hashed), cust_id=customer.cust_id, key_hash=hashed, created_at=5)
    await store.save_customer(customer)
    await store.save_key(key)
    assert await store.keys(customer.cust_id) == [key]
    assert await store.customer_by_key(hashed) == customer
    assert await store.customer_by_key(hash_api_key(new_api_key())) is None
    assert await store.revoke_key(key.key_id)
    assert await store.customer_by_key(hashed) is None
    assert not await store.revoke_key("key_000000000000")


async def test_producers_with_own_queues_are_added_and_removed(store: Store) -> None:
    """Each has the weight of its customer, also if that changes later."""
    first, second = (f"p-{uuid.uuid4().hex[:8]}" for _ in range(2))
    await store.save_customer(Customer(cust_id=second, weight=2.5))
    for cust_id in (first, second, second):
        await store.add_producer(cust_id)
    saved = await store.producers()
    assert (saved[first], saved[second]) == (1.0, 2.5)
    await store.save_customer(Customer(cust_id=second, weight=0.5))
    assert (await store.producers())[second] == 0.5
    for _ in range(2):
        await store.remove_producer(first)
    assert {first, second} & (await store.producers()).keys() == {second}
    await store.remove_producer(second)


async def test_key_keeps_its_name_and_the_time_of_its_last_use(store: Store) -> None:
    """A use changes nothing else, also of a revoked key. Ids of unknown keys are ignored."""
    cust_id = f"c-{uuid.uuid4().hex[:8]}"
    hashes = [hash_api_key(new_api_key()) for _ in range(3)]
    keys = [
        ApiKey(key_id=key_id_of(hashed), cust_id=cust_id, key_hash=hashed, created_at=number, name=f"job {number}")
        for number, hashed in enumerate(hashes)
    ]
    for key in keys:
        await store.save_key(key)
    assert await store.keys(cust_id) == keys
    await store.revoke_key(keys[0].key_id)
    await store.record_key_use([keys[0].key_id, keys[2].key_id, "key_000000000000"], 1_775_000_000_123)
    used = {"last_used_at": 1_775_000_000_123}
    assert await store.keys(cust_id) == [
        msgspec.structs.replace(keys[0], revoked=True, **used),
        keys[1],
        msgspec.structs.replace(keys[2], **used),
    ]
    await store.record_key_use([keys[2].key_id], 1_775_000_000_124)
    assert (await store.keys(cust_id))[2].last_used_at == 1_775_000_000_124
