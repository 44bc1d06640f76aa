"""Charts: the last value is at the right edge, the highest at the top, and a gap interrupts the line."""

import pytest

from ingest.console.sparkline import HEIGHT, WIDTH, Chart, chart


def coordinates(points: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (point.split(",") for point in points.split())]


def test_highest_value_is_at_the_top_and_the_last_at_the_right_edge() -> None:
    drawn = chart([(20, 0), (10, 5), (0, 10)], 20)
    (line,) = drawn.lines
    assert drawn.highest == 10
    assert coordinates(line) == [(2, HEIGHT - 2), (WIDTH / 2, HEIGHT / 2), (WIDTH - 2, 2)]


def test_values_are_placed_by_their_age() -> None:
    (line,) = chart([(300, 1), (100, 1)], 1000).lines
    right = WIDTH - 2
    assert [x for x, _ in coordinates(line)] == pytest.approx(
        [right - 0.3 * (WIDTH - 4), right - 0.1 * (WIDTH - 4)], abs=0.1
    )


def test_unknown_value_interrupts_the_line_and_a_single_one_is_a_dot() -> None:
    before, after = chart([(3, 1), (2, 2), (1, None), (0, 3)], 4).lines
    assert len(coordinates(before)) == 2
    assert coordinates(after) == [(WIDTH - 2, 2)] * 2


def test_line_of_zeros_is_at_the_bottom() -> None:
    (line,) = chart([(1, 0), (0, 0)], 2).lines
    assert [y for _, y in coordinates(line)] == [HEIGHT - 2] * 2


def test_nothing_is_drawn_without_a_known_value() -> None:
    assert chart([], 10) == chart([(1, None), (0, None)], 10) == Chart([], None)
