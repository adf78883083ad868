"""What is said about many numbers: true for numbers of which it is known."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotupgrade.vswitch.compare.spread import median, percentile, ratio, spread

NUMBERS = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=300)


@given(NUMBERS, st.floats(0, 1))
def test_percentiles(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)


def test_of_few_runs_the_99th_percentile_is_the_longest() -> None:
    values = [float(number) for number in range(1, 21)]
    assert percentile(values, 0.99) == 20
    assert spread(values) == {"count": 20, "median": 10.5, "p99": 20, "min": 1, "max": 20}


@given(NUMBERS)
def test_the_same_numbers_have_the_ratio_one(values: list[float]) -> None:
    found = ratio(values, values)
    assert found["ratio"] == 1
    assert found["low"] <= 1 <= found["high"]


def test_an_interval_holds_the_ratio_and_narrows() -> None:
    chance = random.Random(7)
    widths = []
    for count in (10, 200):
        control = [chance.gauss(20, 2) for _ in range(count)]
        found = ratio([1.5 * chance.gauss(20, 2) for _ in range(count)], control)
        assert found["low"] <= found["ratio"] <= found["high"]
        assert found["ratio"] == pytest.approx(1.5, rel=0.15)
        widths.append(found["high"] - found["low"])
    assert widths[1] < widths[0] / 2


def test_the_same_samples_give_the_same_numbers() -> None:
    values, control = [1.0, 2.0, 3.0, 9.0], [1.0, 1.5, 2.5, 4.0]
    assert ratio(values, control) == ratio(values, control)
    assert median(values) == 2.5
