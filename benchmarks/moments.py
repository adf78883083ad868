"""Restarts on the kernel's clock, so that they can be laid beside what the kernel recorded."""

from __future__ import annotations

from dataclasses import dataclass

from hotupgrade.target import abi
from hotupgrade.target import agent as agents
from hotupgrade.target.moves import find_moves
from hotupgrade.target.process import Process
from hotupgrade.vswitch.ticks import Clock


@dataclass(frozen=True, slots=True)
class Moments:
    """One thread's restart, in ns of CLOCK_MONOTONIC; 0 for what it did not do."""

    tid: int
    asked: int
    worked: int  # began its last work in the old code
    left: int
    entered: int
    arrived: int


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
