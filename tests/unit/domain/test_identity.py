"""Laws of identity."""

import uuid

from hypothesis import given
from hypothesis import strategies as st
from typeid import TypeID

from ingest.domain.identity import fresh_id, is_id, item_id, keyed_id

text = st.text(max_size=40)


@given(text, text)
def test_a_keyed_id_is_a_function_of_customer_and_key(cust_id: str, key: str) -> None:
    """Equal in, equal out; a task's is never a batch's."""
    assert keyed_id("task", cust_id, key) == keyed_id("task", cust_id, key)
    assert keyed_id("task", cust_id, key)[4:] != keyed_id("batch", cust_id, key)[4:]


@given(text, text, text, text)
def test_different_in_different_out(cust_a: str, key_a: str, cust_b: str, key_b: str) -> None:
    """Also where the concatenation is the same."""
    same = (cust_a, key_a) == (cust_b, key_b)
    assert (keyed_id("task", cust_a, key_a) == keyed_id("task", cust_b, key_b)) == same


@given(text, text, st.integers(0, 999))
def test_ids_are_typeids(cust_id: str, key: str, index: int) -> None:
    """The reference implementation reads them: UUIDv8 where computed, UUIDv7 where fresh."""
    batch_id = keyed_id("batch", cust_id, key)
    for id_, version in ((batch_id, 8), (item_id(batch_id, index), 8), (fresh_id("task"), 7)):
        parsed = TypeID.from_string(id_)
        value = uuid.UUID(bytes=parsed.uuid_bytes) if hasattr(parsed, "uuid_bytes") else uuid.UUID(str(parsed.uuid))
        assert value.version == version
        assert value.variant == uuid.RFC_4122


def test_items_of_a_batch_are_distinct() -> None:
    """A thousand items, a thousand ids."""
    assert len({item_id("bat_x", index) for index in range(1000)}) == 1000


def test_fresh_ids_are_distinct() -> None:
    """Also many in one millisecond."""
    assert len({fresh_id("task") for _ in range(10_000)}) == 10_000


def test_is_id_knows_the_kinds() -> None:
    """Prefix, alphabet, length."""
    assert is_id("task", fresh_id("task"))
    assert not is_id("batch", fresh_id("task"))
    assert not is_id("task", "tsk_")
    assert not is_id("task", "tsk_8zzzzzzzzzzzzzzzzzzzzzzzzz")
    assert not is_id("task", fresh_id("task") + "\n")
