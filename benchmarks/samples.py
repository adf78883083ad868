"""Numbers that were measured, and what is said about them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

#: A series whose 95th percentile is so many times its median says more about the machine than about us.
NOISY = 3.0


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of all values do not exceed."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass
class Series:
    """Samples of one thing, in the order in which they were taken."""

    unit: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def p95(self) -> float:
        return percentile(self.values, 0.95)

    @property
    def noisy(self) -> bool:
        return len(self.values) > 4 and self.p95 > NOISY * self.median

    def document(self) -> dict[str, Any]:
        if not self.values:
            return {"unit": self.unit, "count": 0, "values": []}
        return {
            "unit": self.unit,
            "count": len(self.values),
            "median": self.median,
            "p95": self.p95,
            "min": min(self.values),
            "max": max(self.values),
            "noisy": self.noisy,
            "values": self.values,
        }


@dataclass
class Row:
    """One line of the table: what was measured, the control of the same run, what is asked for and whether it holds."""

    name: str
    measured: str
    control: str = ""
    criterion: str = ""
    holds: bool | None = None
    count: int = 0
    note: str = ""


@dataclass
class Result:
    """What one benchmark found."""

    name: str
    series: dict[str, Series] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def take(self, name: str, unit: str, *values: float | None) -> None:
        """Add samples to a series; what could not be measured is left out."""
        series = self.series.setdefault(name, Series(unit))
        series.values.extend(float(value) for value in values if value is not None)

    def __getitem__(self, name: str) -> Series:
        return self.series.get(name, Series(""))

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "seconds": self.seconds,
            "rows": [asdict(row) for row in self.rows],
            "facts": self.facts,
            "series": {name: series.document() for name, series in self.series.items()},
        }


@dataclass(frozen=True)
class Effort:
    """How much of something is done: ``count`` times, or fewer when ``seconds`` are over."""

    count: int
    seconds: float
    least: int = 2

    def turns(self) -> Iterator[int]:
        limit = time.monotonic() + self.seconds
        for turn in range(self.count):
            if turn >= self.least and time.monotonic() > limit:
                return
            yield turn

    def shortfall(self, done: int) -> str:
        """Words for a table, if not everything was done."""
        return f"only {done} of {self.count}: time was up" if done < self.count else ""
