"""Restarts on the kernel's clock, so that they can be laid beside what the kernel recorded.

A restart's stamps are readings of the time-stamp counter; the kernel's records have CLOCK_MONOTONIC.  Both are read
together before and after, and in between one is calculated from the other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from hotupgrade.target import abi, native
from hotupgrade.target import agent as agents
from hotupgrade.target.clock import Reading
from hotupgrade.target.moves import find_moves
from hotupgrade.target.process import Process

_TRIES = 9


@dataclass(frozen=True, slots=True)
class Moments:
    """One thread's restart, in ns of CLOCK_MONOTONIC; 0 for what it did not do."""

    tid: int
    asked: int
    worked: int  # began its last work in the old code
    left: int
    entered: int
    arrived: int


class Clock:
    """From ticks of the counter to ns, between two moments."""

    def __init__(self) -> None:
        self._first = _read()
        self._last = self._first

    def look(self) -> None:
        """Read both clocks again: what lies before this is known well."""
        self._last = _read()

    def ns(self, ticks: int) -> int:
        first, last = self._first, self._last
        rate = (last.nanoseconds - first.nanoseconds) / (last.ticks - first.ticks)
        return round(last.nanoseconds + (ticks - last.ticks) * rate)


def moments(pid: int, clock: Clock) -> dict[int, Moments]:
    """The last restart of each thread of a process, by thread id."""
    with Process(pid) as process:
        agent = agents.find(process)
        table = find_moves(agent) if agent else None
        rows = table.rows() if table else []
    clock.look()
    latest: dict[int, abi.Move] = {}
    for row in rows:
        if row.asked and row.asked > getattr(latest.get(row.tid), "asked", 0):
            latest[row.tid] = row
    return {tid: _moments(row, clock) for tid, row in latest.items()}


def _moments(row: abi.Move, clock: Clock) -> Moments:
    ticks = (row.asked, row.worked, row.left, row.entered, row.arrived)
    return Moments(int(row.tid), *(clock.ns(int(tick)) if tick else 0 for tick in ticks))


def _read() -> Reading:
    """Both clocks at one moment: of some tries the one in which least lay between."""
    best, found = None, None
    for _ in range(_TRIES):
        begin = time.monotonic_ns()
        ticks = native.time_stamp()
        end = time.monotonic_ns()
        if best is None or end - begin < best:
            best, found = end - begin, Reading(ticks, (begin + end) // 2)
    assert found is not None
    return found
