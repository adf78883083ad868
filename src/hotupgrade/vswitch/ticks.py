"""From the time-stamp counter to the kernel's clock, so that a stop can be laid beside what the kernel recorded.

A stop's stamps are readings of the time-stamp counter; the kernel's records have CLOCK_MONOTONIC.  Both are read
together before and after, and in between one is calculated from the other.
"""

from __future__ import annotations

import time

from hotupgrade.target import native
from hotupgrade.target.clock import Reading

_TRIES = 9


class Clock:
    """From ticks of the counter to ns, between two moments."""

    def __init__(self) -> None:
        self._first = _read()
        self._last = self._first

    def look(self) -> None:
        """Read both clocks again: what lies before this is known well."""
        self._last = _read()

    def ns(self, ticks: int) -> int:
        """The moment at which the counter stood there, in ns of CLOCK_MONOTONIC; after the first :meth:`look`."""
        first, last = self._first, self._last
        rate = (last.nanoseconds - first.nanoseconds) / (last.ticks - first.ticks)
        return round(last.nanoseconds + (ticks - last.ticks) * rate)


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
