"""Keys are the same in every run, whatever else has happened to the file."""

import json
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


def cut(tasks: Sequence[dict[str, Any]], namespace: str = "", size: int = 1000) -> list[Chunk]:
    return list(chunks([Row(number, each) for number, each in enumerate(tasks, 1)], namespace, size))


def keys(tasks: Sequence[dict[str, Any]], **options: Any) -> list[str]:
    return [item.task["idempotency_key"] for chunk in cut(tasks, **options) for item in chunk.items]


@given(names, st.integers(1, 7), st.integers(1, 7))
def test_chunks_do_not_matter(rows: list[str], size: int, other: int) -> None:
    """Law: the same file has the same keys, each another, however it is cut; two equal lines are two tasks."""
    tasks = [task(name) for name in rows]
    assert keys(tasks, size=size) == keys(tasks, size=other)
    assert len(set(keys(tasks))) == len(tasks)


@given(names, names, st.randoms())
def test_other_lines_do_not_matter(rows: list[str], more: list[str], random: Any) -> None:
    """Law: lines added, taken away or put in another order leave the keys of the others as they were."""
    before = Counter(keys([task(name) for name in rows]))
    mixed = [*rows, *more]
    random.shuffle(mixed)
    after = Counter(keys([task(name) for name in mixed]))
    assert before <= after


@given(st.lists(st.none() | st.integers(0, 3_000_000), max_size=30), st.integers(1, 10))
@settings(max_examples=30)
def test_chunks_are_whole(sizes: list[int | None], size: int) -> None:
    """Law: rows come out in order, good or not, none is lost, and no chunk is too large for one request."""
    rows = [
        Row(number, None, [("", "wrong")]) if length is None else Row(number, task("x" * length))
        for number, length in enumerate(sizes, 1)
    ]
    made = list(chunks(rows, "", size))
    numbers = [sorted([item.number for item in c.items] + [row.number for row in c.invalid]) for c in made]
    assert [number for each in numbers for number in each] == list(range(1, len(sizes) + 1))
    assert all(len(each) <= size for each in numbers)
    for chunk in made:
        assert sum(len(encode(item.task)) + 1 for item in chunk.items) < MAX_BYTES - 8_000


def test_layout_does_not_matter_and_own_keys_are_kept() -> None:
    """Key order is no difference; a key in the file is sent as it is; a namespace makes other tasks of the lines."""
    turned = dict(reversed(task("a").items()))
    assert keys([turned]) == keys([task("a")])
    assert keys([task("a", idempotency_key="mine")]) == ["mine"]
    assert keys([task("a")], namespace="again") != keys([task("a")])


def test_a_task_that_no_request_can_hold_is_a_wrong_row() -> None:
    """Its neighbours go on."""
    (chunk,) = cut([task("a"), task("x" * MAX_BYTES), task("b")])
    assert [item.number for item in chunk.items] == [1, 3]
    assert "a request takes 8 MiB" in chunk.invalid[0].faults[0][1]


def test_the_original_is_what_was_in_the_file() -> None:
    """For reports: a key that was made is not part of it, so a mended line gets its own."""
    (chunk,) = cut([task("a"), task("b", idempotency_key="mine")])
    assert [item.original() for item in chunk.items] == [task("a"), task("b", idempotency_key="mine")]


@given(st.lists(st.binary(max_size=2)))
def test_ordinals_count(digests: list[bytes]) -> None:
    """Law: as a dict would."""
    ordinals, seen = Ordinals(), Counter[bytes]()
    for digest in digests:
        assert ordinals.next(digest) == seen[digest]
        seen[digest] += 1
    ordinals.close()


def test_a_digest_tells_tasks_and_destination() -> None:
    """What one gateway has taken is not done for another."""
    (one,), (other,) = cut([task("a")]), cut([task("b")])
    assert len({one.digest("x"), one.digest("y"), other.digest("x")}) == 3
    assert json.dumps(one.items[0].task)
