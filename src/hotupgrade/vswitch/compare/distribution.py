"""Many hot upgrades and roll-backs of a switch at full load, one after the other: how they are spread, and what the
slowest ones were made of.

A polling thread's break has four parts, between moments that the agent stamps: it waits until all others that are busy
stand still, while state is brought over, while words are replaced, and until it is let go.  Beside them stands what the
kernel recorded: for how long within the break somebody else had the processor of the polling thread, or that of the
thread which leads the stop.  Interrupts are not among it, and what the hypervisor takes the kernel does not see.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hotupgrade.errors import HotUpgradeError
from hotupgrade.target import abi
from hotupgrade.target import agent as agents
from hotupgrade.target.process import Process
from hotupgrade.vswitch import demo
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare import hot
from hotupgrade.vswitch.compare.cells import joined
from hotupgrade.vswitch.compare.spread import percentile, spread
from hotupgrade.vswitch.compare.ways import look
from hotupgrade.vswitch.preemptions import Recorder, recording, total
from hotupgrade.vswitch.switch import Switch
from hotupgrade.vswitch.ticks import Clock

Document = dict[str, Any]
Say = Callable[[str], None]
#: Parts of a polling thread's break, in their order.
PARTS = {"wait": "others stand", "sync": "state", "replace": "words", "go": "is let go"}
SLOWEST = 5
SHARES = (0.5, 0.9, 0.99, 1.0)
_WINDOWS = 50  # of quiet time for each command, as long as the median break: the control


@dataclass(frozen=True, slots=True)
class Settings:
    """``runs`` of upgrade and roll-back each."""

    runs: int = 200


def measure(old: SwitchBuild, new: SwitchBuild, settings: Settings, say: Say) -> Document:
    """Every break with its parts.

    Raises:
        HotUpgradeError: a command failed.
    """
    with Switch(old) as switch:
        demo.prepare(switch)
        look(switch, new)
        rate = switch.rate()
        with recording(switch.threads()) as recorder:
            clock = Clock()
            rows: list[Document] = []
            begin = time.monotonic_ns()
            for turn in range(settings.runs):
                rows.append(_one("upgrade", hot.upgrade(switch, new), switch, recorder, clock))
                rows.append(_one("roll_back", hot.roll_back(switch), switch, recorder, clock))
                if turn % 20 == 19:
                    say(f"distribution {turn + 1}/{settings.runs}: {_words(rows)}")
            machine = _machine(switch, recorder, begin, rows)
    return {
        "packets_per_second": rate.per_second,
        "records": recorder is not None,
        "machine": machine,
        "runs": rows,
        **{kind: _spread([row for row in rows if row["kind"] == kind]) for kind in ("upgrade", "roll_back")},
    }


def _one(kind: str, document: Document, switch: Switch, recorder: Recorder | None, clock: Clock) -> Document:
    """What one command's document says of the polling thread that lost most."""
    slowest = max(hot.polling(document), key=lambda row: row["break_us"], default=None)
    if slowest is None:
        raise HotUpgradeError("no polling thread was stopped: has the switch ports that are polled?")
    leader = next((row for row in document["threads"] if row["how"] == "leader"), None)
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
    begin_ns = _begin_ns(switch.pid, clock)
    if recorder is not None and begin_ns is not None:
        recorder.look()
        span = tuple(begin_ns + round(1000 * slowest[edge]) for edge in ("parked_us", "released_us"))
        row["preempted_us"] = total(recorder.within(slowest["tid"], *span)) / 1000
        if leader is not None:
            row["leader_preempted_us"] = total(recorder.within(leader["tid"], *span)) / 1000
    return row


def parts(phases_us: Mapping[str, float], thread: Mapping[str, Any]) -> dict[str, float]:
    """The break of a thread, in µs, cut at the moments between the phases.

    The phases of a document follow one another and end with the last thread's release: counted back from there, the
    words were replaced at the begin of "start", and all stood still at that of "sync".
    """
    hot_phases = ("stop", "check", "sync", "replace", "start")
    end = sum(phases_us[name] for name in hot_phases)
    replaced = end - phases_us["start"]
    synced = replaced - phases_us["replace"]
    stopped = synced - phases_us["sync"]
    edges = [thread["parked_us"], stopped, synced, replaced, thread["released_us"]]
    return {name: max(edges[i + 1] - edges[i], 0.0) for i, name in enumerate(PARTS)}


def _begin_ns(pid: int, clock: Clock) -> int | None:
    """When the last stop of the process began, by the kernel's clock."""
    with Process(pid) as process:
        agent = agents.find(process)
        ticks = int(agent.mailbox().stamps[abi.Stamp.BEGIN]) if agent else 0
    clock.look()
    return clock.ns(ticks) if ticks else None


def _machine(switch: Switch, recorder: Recorder | None, begin: int, rows: Sequence[Document]) -> Document | None:
    """What the machine does to the polling threads all the time, and to spans as long as a break: the control."""
    if recorder is None:
        return None
    recorder.look()
    end = time.monotonic_ns()
    length = round(1000 * percentile([row["break_us"] for row in rows], 0.5))
    pollers = [tid for tid, name in switch.threads().items() if name.startswith(hot.POLLING)]
    count = _WINDOWS * len(rows)
    taken = []
    for tid in pollers:
        for index in range(count):
            first = begin + (end - length - begin) * index // count
            taken.append(total(recorder.within(tid, first, first + length)) / 1000)
    return {
        "share_taken": sum(total(recorder.within(tid, begin, end)) for tid in pollers) / (end - begin) / len(pollers),
        "preemptions": sum(recorder.count(tid) for tid in pollers),
        "seconds": (end - begin) / 1e9,
        "windows": len(taken),
        "windows_hit": sum(value > 0 for value in taken),
        "records_lost": recorder.lost,
    }


def _spread(rows: Sequence[Document]) -> Document:
    breaks = [row["break_us"] for row in rows]
    undisturbed = [row["break_us"] for row in rows if not (row["preempted_us"] or row["leader_preempted_us"])]
    return {
        **spread(breaks),
        "shares": {str(share): percentile(breaks, share) for share in SHARES},
        "undisturbed": spread(undisturbed) if undisturbed else None,
        "parts": {name: spread([row["parts_us"][name] for row in rows]) for name in PARTS},
    }


def _words(rows: Sequence[Document]) -> str:
    found = spread([row["break_us"] for row in rows])
    return f"median {found['median']:.1f} µs, 99th percentile {found['p99']:.1f} µs, longest {found['max']:.1f} µs"


KINDS = {"upgrade": "hot upgrade", "roll_back": "roll-back"}


def markdown(document: Document) -> str:
    """How the breaks are spread, and the slowest with their parts, in µs."""
    heads = ("", "n", "median", "90 %", "99 %", "longest", "of those without a preemption: n", "99 %", "longest")
    return joined(heads, (_row(title, document[kind]) for kind, title in KINDS.items())) + "\n" + _slowest(document)


def _row(title: str, found: Document) -> list[str]:
    rest = found["undisturbed"]
    alone = [str(rest["count"]), f"{rest['p99']:.1f}", f"{rest['max']:.1f}"] if rest else ["0", "", ""]
    return [title, str(found["count"]), *(f"{found['shares'][str(share)]:.1f}" for share in SHARES), *alone]


def _slowest(document: Document) -> str:
    rows = []
    for kind, title in KINDS.items():
        found = document[kind]
        typical = [f"{found['parts'][name]['median']:.1f}" for name in PARTS]
        rows.append([f"{title}, medians", f"{found['median']:.1f}", *typical, "", "", "", ""])
    rows += [
        [
            KINDS[row["kind"]],
            f"{row['break_us']:.1f}",
            *(f"{row['parts_us'][name]:.1f}" for name in PARTS),
            _known(row["preempted_us"]),
            _known(row["leader_preempted_us"]),
            str(row["attempts"]),
            f"{row['sleepers_us']:.0f}",
        ]
        for row in sorted(document["runs"], key=lambda row: -row["break_us"])[:SLOWEST]
    ]
    heads = ("", "break", *PARTS.values(), "PMD preempted", "leader preempted", "stops tried", "sleepers")
    return joined(heads, rows)


def _known(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1f}"
