"""One hot upgrade or roll-back taken apart: what the polling threads' break was made of, and what the machine took.

A polling thread's break has four parts, between moments that the agent stamps: it waits until all others that are busy
stand still, while state is brought over, while words are replaced, and until it is let go.  Beside them stands what the
kernel recorded: for how long meanwhile somebody else had the processor of a polling thread, or that of the thread which
leads the stop.  Interrupts are not among it, and what the hypervisor takes the kernel does not see.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hotupgrade.errors import HotUpgradeError
from hotupgrade.target import abi
from hotupgrade.target import agent as agents
from hotupgrade.target.process import Process
from hotupgrade.vswitch.preemptions import Recorder, recording, total
from hotupgrade.vswitch.switch import Switch
from hotupgrade.vswitch.ticks import Clock

Document = dict[str, Any]
POLLING = "pmd-"
#: Parts of a polling thread's break, in their order.
PARTS = {"wait": "others stand", "sync": "state", "replace": "words", "go": "is let go"}
_HOT_PHASES = ("stop", "check", "sync", "replace", "start")


class Observer:
    """Knows when the kernel took processors from the threads of a switch; made by :func:`observing`."""

    def __init__(self, switch: Switch, recorder: Recorder | None) -> None:
        self._switch, self._recorder = switch, recorder
        self._clock = Clock()
        self._begin = time.monotonic_ns()

    @property
    def records(self) -> bool:
        """Whether the kernel gives any."""
        return self._recorder is not None

    def take(self, kind: str, document: Mapping[str, Any]) -> Document:
        """What the document of the last stop of the process says, and what was recorded of it.

        ``break_us``: of the polling thread that lost most, by its own clock; ``busy_max`` of the document also counts
        threads that only happened to be at work when the stop began.

        Raises:
            HotUpgradeError: no thread polls.
        """
        pollers = polling(document)
        slowest = max(pollers, key=lambda row: float(row["break_us"]))
        row = {
            "kind": kind,
            "break_us": slowest["break_us"],
            "parts_us": parts(document["phases_us"], slowest),
            "sleepers_us": max((one["break_us"] for one in document["threads"] if not one["busy"]), default=0.0),
            "attempts": document["attempts"],
            "tries": document["tries"],
            "preempted_us": None,
            "leader_preempted_us": None,
        }
        begin_ns = self.begin_ns()
        if self._recorder is not None and begin_ns is not None:
            self._recorder.look()
            span = tuple(begin_ns + round(1000 * slowest[edge]) for edge in ("parked_us", "released_us"))
            row["preempted_us"] = max(self._taken(one["tid"], *span) for one in pollers)
            leaders = [one["tid"] for one in document["threads"] if one["how"] == "leader"]
            row["leader_preempted_us"] = max((self._taken(tid, *span) for tid in leaders), default=0.0)
        return row

    def begin_ns(self) -> int | None:
        """When the last stop of the process began, by CLOCK_MONOTONIC; None if it has had none."""
        with Process(self._switch.pid) as process:
            agent = agents.find(process)
            ticks = int(agent.mailbox().stamps[abi.Stamp.BEGIN]) if agent else 0
        self._clock.look()
        return self._clock.ns(ticks) if ticks else None

    def control(self, length_us: float, count: int) -> Document | None:
        """What the machine did to the polling threads since the beginning, and to ``count`` spans of that length, which
        lie evenly in that time; None if nothing was recorded."""
        if self._recorder is None:
            return None
        self._recorder.look()
        end, length = time.monotonic_ns(), round(1000 * length_us)
        pollers = [tid for tid, name in self._switch.threads().items() if name.startswith(POLLING)]
        room = end - length - self._begin
        firsts = [self._begin + room * index // count for index in range(count)]
        taken = [self._taken(tid, first, first + length) for tid in pollers for first in firsts]
        seconds = (end - self._begin) / 1e9
        return {
            "share_taken": sum(self._taken(tid, self._begin, end) for tid in pollers) / 1e6 / seconds / len(pollers),
            "preemptions": sum(self._recorder.count(tid) for tid in pollers),
            "seconds": seconds,
            "windows": len(taken),
            "windows_hit": sum(value > 0 for value in taken),
            "records_lost": self._recorder.lost,
        }

    def _taken(self, tid: int, begin_ns: int, end_ns: int) -> float:
        """In µs."""
        assert self._recorder is not None
        return total(self._recorder.within(tid, begin_ns, end_ns)) / 1000


@contextmanager
def observing(switch: Switch) -> Iterator[Observer]:
    """From entering the context to leaving it, of the threads that there are now."""
    with recording(switch.threads()) as recorder:
        yield Observer(switch, recorder)


def polling(document: Mapping[str, Any]) -> list[Document]:
    """What the document says of each polling thread.

    Raises:
        HotUpgradeError: no thread polls.
    """
    found = [row for row in document["threads"] if row["name"].startswith(POLLING) and row["how"] != "absent"]
    if not found:
        raise HotUpgradeError("no polling thread was stopped: has the switch ports that are polled?")
    return found


def parts(phases_us: Mapping[str, float], thread: Mapping[str, Any]) -> dict[str, float]:
    """The break of a thread, in µs, cut at the moments between the phases.

    The phases of a document follow one another and end with the last thread's release: counted back from there, the
    words were replaced at the begin of "start", and all stood still at that of "sync".
    """
    end = sum(phases_us[name] for name in _HOT_PHASES)
    replaced = end - phases_us["start"]
    synced = replaced - phases_us["replace"]
    stopped = synced - phases_us["sync"]
    edges = [thread["parked_us"], stopped, synced, replaced, thread["released_us"]]
    return {name: max(edges[i + 1] - edges[i], 0.0) for i, name in enumerate(PARTS)}


def undisturbed(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The breaks in which no processor was taken from a polling thread or the leader, as far as that is known."""
    return [row["break_us"] for row in rows if not (row["preempted_us"] or row["leader_preempted_us"])]
