"""Charts: the last value is at the right edge, the highest at the top, and a gap interrupts the line."""

import pytest

from ingest.console.sparkline import HEIGHT, WIDTH, Chart, chart


def coordinates(points: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (point.split(",") for point in points.split())]


def test_highest_value_is_at_the_top_and_the_last_at_the_right_edge() -> None:
    drawn = chart([0, 5, 10], 3)
    (line,) = drawn.lines
    assert drawn.highest == 10
    assert coordinates(line) == [(2, HEIGHT - 2), (WIDTH / 2, HEIGHT / 2), (WIDTH - 2, 2)]


def test_few_values_are_at_the_right() -> None:
    (line,) = chart([1, 1], 101).lines
    assert [x for x, _ in coordinates(line)] == pytest.approx([WIDTH - 2 - (WIDTH - 4) / 100, WIDTH - 2], abs=0.1)


def test_unknown_value_interrupts_the_line_and_a_single_one_is_a_dot() -> None:
    before, after = chart([1, 2, None, 3], 4).lines
    assert len(coordinates(before)) == 2
    assert coordinates(after) == [(WIDTH - 2, 2)] * 2


def test_line_of_zeros_is_at_the_bottom() -> None:
    (line,) = chart([0, 0], 2).lines
    assert [y for _, y in coordinates(line)] == [HEIGHT - 2] * 2


def test_nothing_is_drawn_without_a_known_value() -> None:
    assert chart([], 10) == chart([None, None], 10) == Chart([], None)
