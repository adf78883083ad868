"""Who runs where: threads that poll have cores that nobody else of us uses, as operators isolate them."""

from __future__ import annotations

import os

_ENOUGH = 3  # cores for two threads that poll, and all others


def polling(place: int = 0) -> int:
    """The core of the thread that polls; of a second one, ``place`` 1, the same if there are too few."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[-1 - place] if len(usable) >= _ENOUGH else usable[-1]


def others() -> tuple[int, ...]:
    """Where all else runs; everywhere if there is one core only."""
    usable = sorted(os.sched_getaffinity(0))
    return tuple(core for core in usable if core not in (polling(0), polling(1))) or tuple(usable)


def aside() -> tuple[str, ...]:
    """What, put before a command, keeps it off the cores of those that poll."""
    return "taskset", "--cpu-list", ",".join(map(str, others()))
