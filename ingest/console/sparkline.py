"""Small charts of a value over time, as SVG."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

import msgspec

WIDTH: Final = 120
HEIGHT: Final = 24
_MARGIN: Final = 2


class Chart(msgspec.Struct, frozen=True):
    """A chart: its lines, each the `points` of an SVG polyline, and the highest value; None if no value is known."""

    lines: list[str]
    highest: float | None


def chart(values: Sequence[tuple[float, float | None]], span: float) -> Chart:
    """Return the chart of a value. Where it is not known, the line is interrupted.

    Args:
        values: age in seconds and value, oldest first. What is new is at the right.
        span: the age for which the chart has room.
    """
    highest = max((value for _, value in values if value is not None), default=None)
    placed = [None if value is None else (_x(age / span), _y(value / (highest or 1))) for age, value in values]
    return Chart(list(_lines(placed)), highest)


def _lines(placed: Sequence[tuple[float, float] | None]) -> Iterator[str]:
    for is_known, run in groupby(placed, lambda point: point is not None):
        if is_known:
            line = [f"{x:.1f},{y:.1f}" for x, y in filter(None, run)]
            yield " ".join(line if len(line) > 1 else line * 2)  # one point is a dot


def _x(share: float) -> float:
    return WIDTH - _MARGIN - (WIDTH - 2 * _MARGIN) * share


def _y(share: float) -> float:
    return HEIGHT - _MARGIN - (HEIGHT - 2 * _MARGIN) * share
