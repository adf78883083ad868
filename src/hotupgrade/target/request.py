"""What a stop is asked to do, and what it reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hotupgrade.target.agent import Operation
from hotupgrade.target.backtrace import Unwinder
from hotupgrade.target.suspended import Coroutines


@dataclass(frozen=True, slots=True)
class Forbidden:
    """A range (low, high) in which no thread may stand, with a name to report."""

    low: int
    high: int
    name: str


@dataclass(frozen=True, slots=True)
class Hook:
    """A function of the target that is called with every thread parked, before the first word is replaced."""

    operation: Operation
    name: str


@dataclass(frozen=True, slots=True)
class Word:
    """An aligned 64-bit word to be replaced."""

    address: int
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class ThreadBreak:
    """What one thread lost, by its own time-stamp counter."""

    tid: int
    name: str
    how: str  # signal, redirect, leader, absent
    busy: bool
    break_us: float
    parked_us: float
    released_us: float


@dataclass(frozen=True)
class StopReport:
    """One successful stop."""

    phases_us: dict[str, float]
    threads: tuple[ThreadBreak, ...]
    attempts: int

    @property
    def busy_max_us(self) -> float | None:
        return max((t.break_us for t in self.threads if t.busy), default=None)

    @property
    def max_us(self) -> float:
        return max((t.break_us for t in self.threads), default=0.0)


@dataclass(frozen=True)
class StopRequest:
    """What one stop is to do.  ``data`` words are written before ``code`` words, ``hooks`` called before both; one that
    returns something else than 0 ends the stop.  ``coroutines``: how the process switches stacks, if it does.
    ``after``: calls that the main thread makes as soon as the others are let go, whatever becomes of the tool.
    ``unwinder``: asked when a word on a sleeping thread's stack looks like a return address again and again."""

    data: Sequence[Word] = ()
    code: Sequence[Word] = ()
    forbidden: Sequence[Forbidden] = ()
    hooks: Sequence[Hook] = ()
    coroutines: Coroutines | None = None
    after: Sequence[Operation] = ()
    unwinder: Unwinder | None = None


def merge(ranges: Sequence[Forbidden]) -> list[tuple[int, int]]:
    """Sorted and disjoint, as the agent's search needs them."""
    merged: list[tuple[int, int]] = []
    for item in sorted(ranges, key=lambda r: (r.low, r.high)):
        if merged and item.low < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], item.high))
        else:
            merged.append((item.low, item.high))
    return merged
