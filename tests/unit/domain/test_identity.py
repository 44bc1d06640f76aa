"""Laws of identity."""

import uuid

from hypothesis import given
from hypothesis import strategies as st
from typeid import TypeID

from ingest.domain.identity import MAX_ITEMS, SubmissionKind, batch_and_index, fresh_id, is_id, item_id, keyed_id
from ingest.domain.validation import MAX_BATCH

text = st.text(max_size=40)


@given(text, text)
def test_a_keyed_id_is_a_function_of_customer_and_key(cust_id: str, key: str) -> None:
    """Equal in, equal out; a task's is never a batch's."""
    assert keyed_id(SubmissionKind.TASK, cust_id, key) == keyed_id(SubmissionKind.TASK, cust_id, key)
    assert keyed_id(SubmissionKind.TASK, cust_id, key)[4:] != keyed_id(SubmissionKind.BATCH, cust_id, key)[4:]


@given(text, text, text, text)
def test_different_in_different_out(cust_a: str, key_a: str, cust_b: str, key_b: str) -> None:
    """Also where the concatenation is the same."""
    same = (cust_a, key_a) == (cust_b, key_b)
    assert (keyed_id(SubmissionKind.TASK, cust_a, key_a) == keyed_id(SubmissionKind.TASK, cust_b, key_b)) == same


@given(text, text, st.integers(0, 999))
def test_ids_are_typeids(cust_id: str, key: str, index: int) -> None:
    """The reference implementation reads them: UUIDv8 where computed, UUIDv7 where fresh."""
    batch_id, fresh = keyed_id(SubmissionKind.BATCH, cust_id, key), fresh_id(SubmissionKind.BATCH)
    made = {keyed_id(SubmissionKind.TASK, cust_id, key): 8, batch_id: 8, item_id(batch_id, index): 8}
    made |= {fresh_id(SubmissionKind.TASK): 7, fresh: 7, item_id(fresh, index): 7}
    for id_, version in made.items():
        parsed = TypeID.from_string(id_)
        value = uuid.UUID(bytes=parsed.uuid_bytes) if hasattr(parsed, "uuid_bytes") else uuid.UUID(str(parsed.uuid))
        assert value.version == version
        assert value.variant == uuid.RFC_4122


@given(text, text, st.integers(0, MAX_ITEMS - 1))
def test_an_item_tells_its_batch_and_index(cust_id: str, key: str, index: int) -> None:
    """`batch_and_index` is the inverse of `item_id`, for keyed and fresh batches alike."""
    for batch_id in (keyed_id(SubmissionKind.BATCH, cust_id, key), fresh_id(SubmissionKind.BATCH)):
        id_ = item_id(batch_id, index)
        assert is_id(SubmissionKind.BATCH, batch_id)
        assert is_id(SubmissionKind.TASK, id_)
        assert batch_and_index(id_) == (batch_id, index)


@given(st.text("0123456789abcdefghjkmnpqrstvwxyz", min_size=25, max_size=25), st.sampled_from("01234567"))
def test_every_task_id_has_one_place(rest: str, first: str) -> None:
    """The other way round: what `batch_and_index` says makes the same id again, so no two places share an id."""
    task_id = f"tsk_{first}{rest}"
    batch_id, index = batch_and_index(task_id)
    assert is_id(SubmissionKind.BATCH, batch_id)
    assert item_id(batch_id, index) == task_id


@given(st.text(max_size=5), st.lists(st.text(max_size=5), max_size=20))
def test_items_are_no_keyed_tasks(cust_id: str, keys: list[str]) -> None:
    """Ids of keyed tasks and of the items of keyed batches do not meet, whatever the keys have in common."""
    tasks = {keyed_id(SubmissionKind.TASK, cust_id, key) for key in keys}
    batches = {keyed_id(SubmissionKind.BATCH, cust_id, key) for key in keys}
    items = {item_id(batch_id, index) for batch_id in batches for index in range(0, MAX_ITEMS, 31)}
    assert len(items) == len(batches) * 34
    assert not tasks & items
    assert len({batch_and_index(task_id)[0] for task_id in tasks} | batches) == len(tasks) + len(batches)


def test_items_of_a_batch_are_distinct() -> None:
    """A thousand items, a thousand ids, in order; the largest batch has room."""
    batch_id = fresh_id(SubmissionKind.BATCH)
    ids = [item_id(batch_id, index) for index in range(MAX_BATCH)]
    assert len(set(ids)) == MAX_BATCH <= MAX_ITEMS
    assert ids == sorted(ids)


def test_fresh_ids_are_distinct() -> None:
    """Also many in one millisecond."""
    assert len({fresh_id(SubmissionKind.TASK) for _ in range(10_000)}) == 10_000


def test_is_id_knows_the_kinds() -> None:
    """Prefix, alphabet, length."""
    assert is_id(SubmissionKind.TASK, fresh_id(SubmissionKind.TASK))
    assert not is_id(SubmissionKind.BATCH, fresh_id(SubmissionKind.TASK))
    assert not is_id(SubmissionKind.TASK, "tsk_")
    assert not is_id(SubmissionKind.TASK, "tsk_8zzzzzzzzzzzzzzzzzzzzzzzzz")
    assert not is_id(SubmissionKind.TASK, fresh_id(SubmissionKind.TASK) + "\n")
