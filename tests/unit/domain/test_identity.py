"""Properties of ids."""

import uuid

from hypothesis import example, given
from hypothesis import strategies as st
from typeid import TypeID

from ingest.domain.identity import MAX_ITEMS, SubmissionKind, batch_and_index, fresh_id, is_id, item_id, keyed_id
from ingest.domain.validation import MAX_BATCH

text = st.text(max_size=40)


@given(text, text)
def test_keyed_id_depends_only_on_kind_customer_and_key(cust_id: str, key: str) -> None:
    assert keyed_id(SubmissionKind.TASK, cust_id, key) == keyed_id(SubmissionKind.TASK, cust_id, key)
    assert keyed_id(SubmissionKind.TASK, cust_id, key)[4:] != keyed_id(SubmissionKind.BATCH, cust_id, key)[4:]


@given(text, text, text, text)
@example("ab", "c", "a", "bc")
@example("a", "", "", "a")
def test_different_customers_or_keys_have_different_ids(cust_a: str, key_a: str, cust_b: str, key_b: str) -> None:
    """This includes pairs whose concatenation is the same."""
    same = (cust_a, key_a) == (cust_b, key_b)
    assert (keyed_id(SubmissionKind.TASK, cust_a, key_a) == keyed_id(SubmissionKind.TASK, cust_b, key_b)) == same


@given(text, text, st.integers(0, 999))
def test_ids_are_valid_typeids(cust_id: str, key: str, index: int) -> None:
    """The reference implementation reads them. Computed ids are UUIDv8, fresh ones UUIDv7."""
    computed_batch, fresh_batch = keyed_id(SubmissionKind.BATCH, cust_id, key), fresh_id(SubmissionKind.BATCH)
    versions = {
        keyed_id(SubmissionKind.TASK, cust_id, key): 8,
        computed_batch: 8,
        item_id(computed_batch, index): 8,
        fresh_id(SubmissionKind.TASK): 7,
        fresh_batch: 7,
        item_id(fresh_batch, index): 7,
    }
    for typeid, version in versions.items():
        value = uuid.UUID(bytes=TypeID.from_string(typeid).uuid_bytes)
        assert value.version == version
        assert value.variant == uuid.RFC_4122


@given(text, text, st.integers(0, MAX_ITEMS - 1))
def test_item_id_contains_batch_id_and_index(cust_id: str, key: str, index: int) -> None:
    """`batch_and_index` is the inverse of `item_id`, for keyed and fresh batches."""
    for batch_id in (keyed_id(SubmissionKind.BATCH, cust_id, key), fresh_id(SubmissionKind.BATCH)):
        task_id = item_id(batch_id, index)
        assert is_id(SubmissionKind.BATCH, batch_id)
        assert is_id(SubmissionKind.TASK, task_id)
        assert batch_and_index(task_id) == (batch_id, index)


@given(st.text("0123456789abcdefghjkmnpqrstvwxyz", min_size=25, max_size=25), st.sampled_from("01234567"))
def test_every_task_id_has_exactly_one_batch_and_index(rest: str, first: str) -> None:
    """`item_id` is the inverse of `batch_and_index`, so two items never share an id."""
    task_id = f"tsk_{first}{rest}"
    batch_id, index = batch_and_index(task_id)
    assert is_id(SubmissionKind.BATCH, batch_id)
    assert item_id(batch_id, index) == task_id


@given(st.text(max_size=5), st.lists(st.text(max_size=5), max_size=20))
def test_ids_of_items_and_keyed_tasks_are_disjoint(cust_id: str, keys: list[str]) -> None:
    """This also holds if tasks and batches have the same keys."""
    tasks = {keyed_id(SubmissionKind.TASK, cust_id, key) for key in keys}
    batches = {keyed_id(SubmissionKind.BATCH, cust_id, key) for key in keys}
    indexes = range(0, MAX_ITEMS, 31)
    items = {item_id(batch_id, index) for batch_id in batches for index in indexes}
    assert len(items) == len(batches) * len(indexes)
    assert not tasks & items
    assert len({batch_and_index(task_id)[0] for task_id in tasks} | batches) == len(tasks) + len(batches)


def test_item_ids_of_largest_batch_are_distinct_and_sorted() -> None:
    batch_id = fresh_id(SubmissionKind.BATCH)
    ids = [item_id(batch_id, index) for index in range(MAX_BATCH)]
    assert len(set(ids)) == MAX_BATCH <= MAX_ITEMS
    assert ids == sorted(ids)


def test_fresh_ids_are_distinct() -> None:
    """10,000 ids include many of the same millisecond."""
    assert len({fresh_id(SubmissionKind.TASK) for _ in range(10_000)}) == 10_000


def test_is_id_checks_prefix_alphabet_and_length() -> None:
    task_id = fresh_id(SubmissionKind.TASK)
    assert is_id(SubmissionKind.TASK, task_id)
    assert not is_id(SubmissionKind.BATCH, task_id)
    assert not is_id(SubmissionKind.TASK, "tsk_")
    assert not is_id(SubmissionKind.TASK, task_id[:-1])
    assert not is_id(SubmissionKind.TASK, task_id[:-1] + "u")  # `u` is not in the alphabet
    assert not is_id(SubmissionKind.TASK, "tsk_8zzzzzzzzzzzzzzzzzzzzzzzzz")  # more than 128 bits
    assert not is_id(SubmissionKind.TASK, task_id + "\n")
