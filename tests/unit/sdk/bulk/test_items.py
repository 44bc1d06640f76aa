"""Chunks and generated keys. A task has the same key in every run, even if other lines of the file change."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from asg_gateway._bulk.items import Chunk, Ordinals, chunks
from asg_gateway._bulk.sources import Row
from asg_gateway._tasks import MAX_BYTES, encode
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sdk.bulk.gateway import task

names = st.lists(st.sampled_from("abcd"), max_size=30)


def chunks_of(tasks: Sequence[dict[str, Any]], namespace: str = "", size: int = 1000) -> list[Chunk]:
    return list(chunks([Row(number, fields) for number, fields in enumerate(tasks, 1)], namespace, size))


def keys(tasks: Sequence[dict[str, Any]], **options: Any) -> list[str]:
    return [item.task["idempotency_key"] for chunk in chunks_of(tasks, **options) for item in chunk.items]


@given(names, st.integers(1, 7), st.integers(1, 7))
def test_keys_are_distinct_and_do_not_depend_on_chunk_size(rows: list[str], size: int, other_size: int) -> None:
    """Property: two equal lines are two tasks, with two keys."""
    tasks = [task(name) for name in rows]
    assert keys(tasks, size=size) == keys(tasks, size=other_size)
    assert len(set(keys(tasks))) == len(tasks)


@given(names, names, st.randoms())
def test_keys_do_not_depend_on_other_lines(rows: list[str], added_rows: list[str], random: Any) -> None:
    """Property: added, removed or reordered lines do not change the keys of the others."""
    before = Counter(keys([task(name) for name in rows]))
    shuffled = [*rows, *added_rows]
    random.shuffle(shuffled)
    after = Counter(keys([task(name) for name in shuffled]))
    assert before <= after


@given(st.lists(st.none() | st.integers(0, 3_000_000), max_size=30), st.integers(1, 10))
@settings(max_examples=30)
def test_chunks_contain_every_row_in_order_and_fit_into_a_request(lengths: list[int | None], size: int) -> None:
    """Property: this includes invalid rows, for which the length is `None`."""
    rows = [
        Row(number, None, [("", "wrong")]) if length is None else Row(number, task("x" * length))
        for number, length in enumerate(lengths, 1)
    ]
    line_numbers: list[int] = []
    for chunk in chunks(rows, "", size):
        line_numbers += sorted([item.number for item in chunk.items] + [row.number for row in chunk.invalid])
        assert len(chunk.items) + len(chunk.invalid) <= size
        assert sum(len(encode(item.task)) + 1 for item in chunk.items) < MAX_BYTES - 8_000
    assert line_numbers == list(range(1, len(lengths) + 1))


def test_key_does_not_depend_on_the_order_of_fields() -> None:
    reordered = dict(reversed(task("a").items()))
    assert keys([reordered]) == keys([task("a")])


def test_key_in_the_file_is_kept() -> None:
    assert keys([task("a", idempotency_key="mine")]) == ["mine"]


def test_key_depends_on_namespace() -> None:
    """With another namespace, the same line is another task."""
    assert keys([task("a")], namespace="other") != keys([task("a")])


def test_task_that_exceeds_the_request_size_is_invalid_and_others_are_kept() -> None:
    (chunk,) = chunks_of([task("a"), task("x" * MAX_BYTES), task("b")])
    assert [item.number for item in chunk.items] == [1, 3]
    assert "the task is too large" in chunk.invalid[0].faults[0][1]


def test_original_task_is_without_its_generated_key() -> None:
    """Reports contain the original, so that a corrected line gets a key of its own."""
    (chunk,) = chunks_of([task("a"), task("b", idempotency_key="mine")])
    assert [item.original() for item in chunk.items] == [task("a"), task("b", idempotency_key="mine")]


@given(st.lists(st.binary(max_size=2)))
def test_ordinals_count_earlier_occurrences(digests: list[bytes]) -> None:
    ordinals, occurrences = Ordinals(), Counter[bytes]()
    for digest in digests:
        assert ordinals.next(digest) == occurrences[digest]
        occurrences[digest] += 1
    ordinals.close()


def test_chunk_digest_depends_on_tasks_and_destination() -> None:
    """A chunk that one gateway accepted still has to be sent to another one."""
    (first,), (other,) = chunks_of([task("a")]), chunks_of([task("b")])
    (first_again,) = chunks_of([task("a")])
    assert len({first.digest("x"), first.digest("y"), other.digest("x")}) == 3
    assert first_again.digest("x") == first.digest("x")
