"""What is said about many numbers of one thing."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Any

Document = dict[str, Any]
RESAMPLES = 2000
CONFIDENCE = 0.95


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of all values do not exceed; values must not be empty."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def spread(values: Sequence[float]) -> Document:
    """Count, median, 99th percentile and extremes."""
    return {
        "count": len(values),
        "median": median(values),
        "p99": percentile(values, 0.99),
        "min": min(values),
        "max": max(values),
    }


def ratio(values: Sequence[float], control: Sequence[float]) -> Document:
    """The ratio of the medians, and between which two numbers it lies with 95 % confidence.

    Source: the percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13); drawn with a
    seed, so that the same samples give the same numbers.
    """
    chance = random.Random(1)
    drawn = sorted(
        median(chance.choices(values, k=len(values))) / median(chance.choices(control, k=len(control)))
        for _ in range(RESAMPLES)
    )
    tail = (1 - CONFIDENCE) / 2
    return {
        "ratio": median(values) / median(control),
        "low": percentile(drawn, tail),
        "high": percentile(drawn, 1 - tail),
    }
