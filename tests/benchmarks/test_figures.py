"""Medians, ratios, bounds, and how numbers are shown."""

from __future__ import annotations

import pytest

from benchmarks.compare import Comparison
from benchmarks.figures import Figure, Goal, median, percentile, ratios, shown
from benchmarks.measures import list_schedule
from benchmarks.runner import Measurement, Status

RATE = Figure("rate", "tasks/s", "more")
TIME = Figure("time", "ms", "less")


def test_a_median_is_the_middle_one_or_between_the_two() -> None:
    assert median([9, 1, 5]) == 5
    assert median([1, 2, 3, 10]) == 2.5
    with pytest.raises(ValueError, match="no values"):
        median([])


def test_a_percentile_is_in_proportion() -> None:
    assert percentile(range(101), 99) == 99
    assert percentile([0, 10], 25) == 2.5


def test_ratios_are_taken_round_by_round_where_there_are_both() -> None:
    assert ratios([2, 3, None, 8], [1, None, 5, 4]) == [2, 2]


def test_three_digits_are_shown() -> None:
    assert [shown(x) for x in (0, 0.0123, 1.0, 4.05, 99.96, 312_345, 0.5)] == [
        "0",
        "0.012",
        "1.00",
        "4.05",
        "100",
        "312,000",
        "0.50",
    ]


def test_a_goal_is_a_bound() -> None:
    assert Goal("rate", at_least=4).reached(4)
    assert not Goal("rate", at_least=4).reached(3.9)
    assert Goal("rate", at_most=4).reached(4)
    assert not Goal("rate", at_most=4).reached(4.1)


def test_a_list_schedule_gives_each_task_to_who_is_free_first() -> None:
    assert list_schedule([3, 1, 1, 1], 2) == 3
    assert list_schedule([1, 1, 1, 3], 2) == 4


def compared(figure: Figure, base: list[float], head: list[float]) -> Comparison:
    return Comparison(figure, *([Measurement(Status.OK, {figure.key: x}) for x in xs] for xs in (base, head)))


BASE = [100.0, 101.0, 99.0, 100.0, 102.0]


@pytest.mark.parametrize(
    ("figure", "factor", "verdict"),
    [
        (RATE, 1.0, "same"),
        (RATE, 0.95, "same"),
        (RATE, 0.8, "SLOWER"),
        (RATE, 1.3, "faster"),
        (TIME, 0.8, "faster"),
        (TIME, 1.3, "SLOWER"),
    ],
)
def test_beyond_the_threshold_it_is_slower(figure: Figure, factor: float, verdict: str) -> None:
    # Both were disturbed in one of the rounds.
    disturbed = [*BASE[:4], 20.0]
    assert compared(figure, disturbed, [x * factor for x in disturbed]).verdict(0.1) == verdict
    assert compared(figure, BASE, [x * factor for x in reversed(BASE)]).verdict(0.1) == verdict


def test_noise_is_not_taken_for_a_loss() -> None:
    head = [60.0, 130.0, 80.0, 45.0, 110.0]
    assert compared(RATE, BASE, head).verdict(0.1) == "same, as far as the noise lets see"


def test_two_rounds_say_nothing() -> None:
    assert compared(RATE, BASE[:2], [50.0, 50.0]).verdict(0.1).startswith("same")


def test_a_new_failure_is_worse_than_slow_and_an_old_one_is_not() -> None:
    well, failed = Measurement(Status.OK, {"rate": 1.0}), Measurement(Status.LOSES, detail="1 of 2")
    absent = Measurement(Status.UNAVAILABLE)
    assert Comparison(RATE, [well, well], [well, failed]).verdict(0.1) == "FAILS: loses tasks"
    assert Comparison(RATE, [failed, well], [well, failed]).verdict(0.1) == "fails in both: loses tasks"
    assert Comparison(RATE, [absent], [well]).verdict(0.1) == "not in base"
    assert Comparison(RATE, [well], [absent]).verdict(0.1) == "NOT IN HEAD"
    assert Comparison(RATE, [absent], [absent]).verdict(0.1) == "in neither"
