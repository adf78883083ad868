"""What a stop is asked to do, and what it reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hotupgrade.errors import NotNow
from hotupgrade.target.agent import Operation
from hotupgrade.target.backtrace import Unwinder
from hotupgrade.target.process import ThreadState
from hotupgrade.target.suspended import Coroutines

#: Code of the reason why a mover cannot yet say how a thread is led out: it is to be asked again soon.
LOOP_AT_WORK = "loop-at-work"


@dataclass(frozen=True, slots=True)
class Forbidden:
    """A range (low, high) in which no thread may stand, with a name to report.

    ``loop``: 0, or the number of a loop whose threads may, because they are led out of it.
    """

    low: int
    high: int
    name: str
    loop: int = 0


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


@dataclass(frozen=True, slots=True)
class Standing:
    """How a thread stands that is to be led out of its loop: in the ranges of ``loop``; and, if ``live`` is not 0, with
    its stack pointer at or below that, inside the call that it sleeps in."""

    loop: int
    live: int = 0


@dataclass(frozen=True)
class Departure:
    """What one attempt at a stop does besides, for threads that are led out of their loops.

    ``words`` are return addresses on their stacks; ``after`` is made as soon as the others are let go, and takes at
    most ``patience`` seconds: by the main thread if ``hold_main``, else by any that is not led out itself.
    """

    standing: Mapping[int, Standing] = field(default_factory=dict)  # by thread id
    words: Sequence[Word] = ()
    after: Sequence[Operation] = ()
    patience: float = 0.0
    hold_main: bool = False


class Mover(Protocol):
    """Says, at each attempt, which threads are to be led out of their loops, and how."""

    def depart(self, threads: Sequence[ThreadState]) -> Departure:
        """Raises NotNow if a thread is not where it can be led out."""

    def explain(self, problem: NotNow) -> NotNow:
        """A better reason why the stop was not to be had, if there is one."""


@dataclass(frozen=True)
class Bystander:
    """Says how threads stand, as the mover does, but has nobody led anywhere: for a stop that changes nothing."""

    mover: Mover

    def depart(self, threads: Sequence[ThreadState]) -> Departure:
        return Departure(self.mover.depart(threads).standing)

    def explain(self, problem: NotNow) -> NotNow:
        return self.mover.explain(problem)


@dataclass(frozen=True)
class StopRequest:
    """What one stop is to do.  ``data`` words are written before ``code`` words, ``hooks`` called before both; one that
    returns something else than 0 ends the stop.  ``coroutines``: how the process switches stacks, if it does.
    ``after``: calls that the main thread makes as soon as the others are let go, whatever becomes of the tool.
    ``unwinder``: asked when a word on a sleeping thread's stack looks like a return address again and again.
    ``mover``: leads threads out of their loops."""

    data: Sequence[Word] = ()
    code: Sequence[Word] = ()
    forbidden: Sequence[Forbidden] = ()
    hooks: Sequence[Hook] = ()
    coroutines: Coroutines | None = None
    after: Sequence[Operation] = ()
    unwinder: Unwinder | None = None
    mover: Mover | None = None


def merge(ranges: Iterable[Forbidden]) -> list[tuple[int, int]]:
    """Sorted and disjoint, as searches need them."""
    merged: list[tuple[int, int]] = []
    for item in sorted(ranges, key=lambda r: (r.low, r.high)):
        if merged and item.low < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], item.high))
        else:
            merged.append((item.low, item.high))
    return merged


def merged_by_loop(ranges: Sequence[Forbidden]) -> list[tuple[int, int, int]]:
    """(low, high, loop): :func:`merge` for each loop by itself.  What is forbidden to all stays so within a loop."""
    strict = merge(r for r in ranges if not r.loop)
    found = [(low, high, 0) for low, high in strict]
    for loop in sorted({r.loop for r in ranges} - {0}):
        for low, high in merge(r for r in ranges if r.loop == loop):
            found += [(first, last, loop) for first, last in _without(low, high, strict)]
    return sorted(found)


def _without(low: int, high: int, others: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is left of a range; all bounds are exclusive."""
    left = []
    for first, last in others:
        if first >= high or last <= low:
            continue
        if low + 1 <= first:
            left.append((low, first + 1))
        low = last - 1
    if low + 1 < high:
        left.append((low, high))
    return left
