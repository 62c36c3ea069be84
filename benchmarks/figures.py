"""Figures: what they are called, and what is done with the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Figure", "Goal", "median", "percentile", "ratios", "shown"]


@dataclass(frozen=True)
class Figure:
    """Something that is measured. ``key`` is its name in the results."""

    key: str
    unit: str
    better: Literal["more", "less"]

    def is_better(self, one: float, other: float) -> bool:
        return one > other if self.better == "more" else one < other


@dataclass(frozen=True)
class Goal:
    """What we want to reach: a figure, or its ratio to that of the best peer, of the first floor or of a contender."""

    key: str
    at_least: float | None = None
    at_most: float | None = None
    versus: str | None = None
    """``"peers"``, ``"floor"``, the name of a contender, or ``None``: the figure itself."""
    ours: str | None = None
    """The contender; by default the first of ours."""

    def reached(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


def percentile(values: Iterable[float], percent: float) -> float:
    """Between the two nearest values in proportion. Raises ``ValueError`` when there is none."""
    # Not the standard library's statistics, which would be a good part of what the measured process imports.
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def median(values: Iterable[float]) -> float:
    return percentile(values, 50)


def ratios(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float]:
    """Round by round, where there are both: what slows down the machine for a while slows down both."""
    return [a / b for a, b in zip(ours, theirs, strict=False) if a is not None and b]


def shown(value: float) -> str:
    """Three digits that count, two of what is small, thousands apart: ``"312,000"``, ``"4.05"``, ``"0.0012"``."""
    if value == 0:
        return "0"
    if abs(value) < 0.1:
        return f"{value:.2g}"
    digits = f"{value:.3g}"
    number = float(digits)
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:,.{1 if abs(number) >= 10 else 2}f}"
