"""How packets fared around an event, one short span of time after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hotupgrade.vswitch.compare.packets import Seen

MS = 1_000_000  # ns
SPAN_MS = 10


@dataclass(frozen=True, slots=True)
class Series:
    """One number for each span of :data:`SPAN_MS`, of the packets that were *sent* in it.

    ``begin_ms``: when the first span begins, after the event's begin (so it is negative).  ``delay_ms``: the longest
    that one of those that came took; None if none came.  ``lost``: how many never came.
    """

    begin_ms: int
    delay_ms: tuple[float | None, ...]
    lost: tuple[int, ...]

    def document(self) -> dict[str, Any]:
        """Delays to the microsecond: there are many."""
        delays = [None if delay is None else round(delay, 3) for delay in self.delay_ms]
        return {"span_ms": SPAN_MS, "begin_ms": self.begin_ms, "delay_ms": delays, "lost": list(self.lost)}


def series(sent: Seen, received: Seen, event_ns: int) -> Series:
    """All that was sent, before and after the event.

    Args:
        sent: in the order of sending, each number once.
        received: in the order of arrival.
        event_ns: when the event began, in ns since the epoch.
    """
    if not len(sent.number):
        return Series(0, (), ())
    came, first = np.unique(received.number, return_index=True)
    rows = np.minimum(np.searchsorted(came, sent.number), max(len(came) - 1, 0))
    arrived = came[rows] == sent.number if len(came) else np.zeros(len(sent.number), np.bool_)
    spans = (sent.at_ns - event_ns) // (SPAN_MS * MS)
    begin = int(spans[0])
    places = spans - begin
    count = int(places[-1]) + 1
    longest = np.full(count, -1.0)
    delays = (received.at_ns[first[rows[arrived]]] - sent.at_ns[arrived]) / MS
    np.maximum.at(longest, places[arrived], delays)
    lost = np.bincount(places[~arrived], minlength=count)
    return Series(
        begin * SPAN_MS,
        tuple(None if value < 0 else value for value in longest.tolist()),
        tuple(lost.tolist()),
    )
