"""Time-stamp counter against the kernel's monotonic clock."""

from __future__ import annotations

import time
from dataclasses import dataclass

from hotupgrade.target import native


@dataclass(frozen=True, slots=True)
class Reading:
    """Both clocks at one moment."""

    ticks: int
    nanoseconds: int


def read_clocks() -> Reading:
    return Reading(native.time_stamp(), time.monotonic_ns())


def ticks_per_us(since: Reading) -> float:
    """Ticks of the time-stamp counter in a microsecond, measured since an earlier reading (for at least 20 ms)."""
    wait = 20_000_000 - (time.monotonic_ns() - since.nanoseconds)
    if wait > 0:
        time.sleep(wait / 1e9)
    now = read_clocks()
    return (now.ticks - since.ticks) / ((now.nanoseconds - since.nanoseconds) / 1000)
