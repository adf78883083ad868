"""What became of each thread of a stop: only parked, restarted and by which door, or restarted when its sleep ends.

Reads the ``threads`` of ``upgrade`` and ``rollback`` documents (see ``upgrade/documents.py``).  All times are in µs; a
moment counts from the begin of the stop, by the same time-stamp counter as a thread's break.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hotupgrade.report.document import Document, duration, names, number, plural, rows, section, text

ARRIVED, SLEEPING, STAYED, GONE = "arrived", "sleeping", "stayed", "gone"
#: How a thread that was restarted got out of its loop, by the profile's ``door``.
DOORS = {
    "fields": "by its own door",
    "latch": "by its group's latch",
    "flag": "by its safe point",
    "sleep": "as its sleep ended",
}
UNMOVED = {
    SLEEPING: "restarts when its sleep ends",
    STAYED: "did not leave its loop",
    GONE: "ended by itself",
}
PARKED = "only parked"


@dataclass(frozen=True, slots=True)
class Part:
    """A span of a restart: ``kind`` is a key of :data:`KINDS`."""

    kind: str
    begin: float
    end: float

    @property
    def length(self) -> float:
        return self.end - self.begin


#: Parts of a restart in their order, and what the thread does meanwhile.
KINDS = {
    "on": "works on, or waits for its processor",
    "out": "leaves the old loop",
    "wait": "waits for its group",
    "in": "enters the new loop",
}


@dataclass(frozen=True, slots=True)
class Restart:
    """The restart of one thread.

    ``settle`` is its break in the further stop that gives the loop's calls back what they were; ``gap`` is what its
    work lost: from the begin of the last in the old code to that of the first in the new.  ``taken`` are spans in which
    the machine had given its processor to somebody else; they are known only if somebody looked.
    """

    name: str
    tid: str
    busy: bool
    function: str
    door: str
    state: str
    parked: float | None
    asked: float | None
    left: float | None
    arrived: float | None
    gap: float | None
    settle: float | None
    skipped: tuple[str, ...]
    taken: tuple[tuple[float, float], ...]

    @property
    def moved(self) -> bool:
        """Whether all of its way is known."""
        return self.asked is not None and self.left is not None and self.arrived is not None

    @property
    def worked(self) -> float | None:
        """When its last work in the old code began."""
        return self.arrived - self.gap if self.arrived is not None and self.gap is not None else None

    @property
    def lost(self) -> float | None:
        """What this thread lost in all: parked, restarted, and parked once more."""
        if self.gap is None:
            return None
        return self.gap + (self.parked or 0.0) + (self.settle or 0.0)

    @property
    def taken_us(self) -> float:
        """How much of the gap the machine had taken."""
        if self.worked is None or self.arrived is None:
            return 0.0
        return sum(max(0.0, min(end, self.arrived) - max(begin, self.worked)) for begin, end in self.taken)

    def parts(self, group_left: float | None = None) -> list[Part]:
        """Its way without gaps, from being asked to work in the new loop; ``group_left``: when the last of its group
        had left."""
        if self.asked is None or self.left is None or self.arrived is None:
            return []
        leaves = self.asked if self.worked is None else min(max(self.worked, self.asked), self.left)
        waited = min(max(self.left, group_left or self.left), self.arrived)
        moments = (self.asked, leaves, self.left, waited, self.arrived)
        spans = zip(KINDS, itertools.pairwise(moments), strict=True)
        return [Part(kind, begin, end) for kind, (begin, end) in spans if end > begin]


@dataclass(frozen=True, slots=True)
class Group:
    """Threads that left together."""

    members: tuple[Restart, ...]

    @property
    def asked(self) -> float:
        return min(member.asked for member in self.members if member.asked is not None)

    @property
    def left(self) -> float:
        """When the last had left; the others wait until then."""
        return max(member.left for member in self.members if member.left is not None)

    @property
    def arrived(self) -> float:
        return max(member.arrived for member in self.members if member.arrived is not None)

    @property
    def lasted(self) -> float:
        """From the first being asked to the last in the new code: having entered it or, if it tells, at work in it."""
        return self.arrived - self.asked


def restarts(document: Document) -> list[Restart]:
    """Of every thread that was in a loop that changed, in the document's order."""
    return [_restart(thread) for thread in rows(document, "threads") if section(thread, "restart")]


def groups(found: Iterable[Restart]) -> list[Group]:
    """Those that left together, in the order in which they were asked.

    All of a group are asked before any is waited for, and the next group is asked when all of this one have arrived:
    who was asked before the last of a group had left belongs to it.
    """
    moved = [restart for restart in found if restart.moved]
    result: list[list[Restart]] = []
    for restart in sorted(moved, key=lambda one: one.asked or 0.0):
        if result and (restart.asked or 0.0) < Group(tuple(result[-1])).left:
            result[-1].append(restart)
        else:
            result.append([restart])
    return [Group(tuple(members)) for members in result]


def became(thread: Document) -> str:
    """What became of the thread of a row, in a few words."""
    restart = section(thread, "restart")
    if not restart:
        return PARKED
    state, door = text(restart, "state"), text(restart, "door")
    if state == ARRIVED:
        return f"restarted {DOORS.get(door, '')}".rstrip()
    return UNMOVED.get(state, state or "not known")


def summary(document: Document) -> str:
    """``3 threads restarted, 4 restart when their sleep ends; the busy ones lost at most 43.4 µs by it``."""
    found = restarts(document)
    if not found:
        return ""
    counts = {state: sum(one.state == state for one in found) for state in (ARRIVED, SLEEPING, STAYED, GONE)}
    parts = [
        f"{plural(counts[ARRIVED], 'thread')} restarted" if counts[ARRIVED] else "",
        _asleep(counts[SLEEPING], counts[ARRIVED]),
        f"{plural(counts[STAYED], 'thread')} did not leave" if counts[STAYED] else "",
        f"{plural(counts[GONE], 'thread')} ended" if counts[GONE] else "",
    ]
    words = ", ".join(part for part in parts if part)
    gap = longest_gap(found)
    return words + (f"; a busy one lost at most {duration(gap)} by it" if gap is not None else "")


def longest_gap(found: Sequence[Restart]) -> float | None:
    """The longest that work was interrupted by a restart; None if no thread tells when it works."""
    return max((one.gap for one in found if one.gap is not None), default=None)


def _asleep(count: int, beside: int) -> str:
    if not count:
        return ""
    who = f"{count}" if beside else plural(count, "thread")
    return f"{who} {'restarts when its' if count == 1 else 'restart when their'} sleep ends"


def _restart(thread: Document) -> Restart:
    row = section(thread, "restart")
    asked, out, into = (number(row, key) for key in ("begin_us", "out_us", "in_us"))
    left = asked + out if asked is not None and out is not None else None
    return Restart(
        name=text(thread, "name") or f"thread {thread.get('tid', '?')}",
        tid=str(thread.get("tid", "?")),
        busy=thread.get("busy") is True,
        function=text(row, "function"),
        door=text(row, "door"),
        state=text(row, "state"),
        parked=number(thread, "break_us"),
        asked=asked,
        left=left,
        arrived=left + into if left is not None and into is not None else None,
        gap=number(row, "gap_us"),
        settle=number(thread, "settle_us"),
        skipped=tuple(names(row, "skipped")),
        taken=tuple(_spans(row.get("taken_us"))),
    )


def _spans(found: object) -> list[tuple[float, float]]:
    pairs = found if isinstance(found, Sequence) and not isinstance(found, str | bytes) else []
    spans = [(number({"at": pair[0]}, "at"), number({"at": pair[1]}, "at")) for pair in pairs if _is_pair(pair)]
    return [(begin, end) for begin, end in spans if begin is not None and end is not None and begin <= end]


def _is_pair(found: object) -> bool:
    return isinstance(found, Sequence) and not isinstance(found, str | bytes) and len(found) == 2
