"""Results of the comparison, made up: what each part's document looks like."""

from __future__ import annotations

from typing import Any

from hotupgrade.vswitch.compare import distribution, growth, run
from hotupgrade.vswitch.compare.apart import PARTS
from hotupgrade.vswitch.compare.applications import APPLICATIONS
from hotupgrade.vswitch.compare.spread import spread
from hotupgrade.vswitch.compare.ways import Works
from unit.vswitch.compare.rows import row

Document = dict[str, Any]
MACHINE = {
    "processor": "Some Processor",
    "hypervisor": True,
    "cores": 2,
    "memory_mib": 24_576,
    "kernel": "6.1.0",
    "load": 0.25,
}
VERSIONS = {
    "hotupgrade": "0.1.0",
    "openvswitch": "3.1.0",
    "dpdk": "22.11.7",
    "python": "3.11.2",
    "old": "vulnerable",
    "new": "fixed",
}


def entry(result: Document, command: str = "hotupgrade compare") -> Document:
    return {
        "time": "2026-01-02T03:04:05Z",
        "seconds": 600.0,
        "stolen_s": 1.25,
        "command": command,
        "machine": MACHINE,
        "versions": VERSIONS,
        "result": result,
    }


def point(wanted: int, loaded: float) -> Document:
    breaks = [
        {"switch": name, "kind": kind, "break_us": base, "preempted_us": 1.0, "leader_preempted_us": 0.0}
        for name, base in (("loaded", loaded), ("empty", 20.0))
        for kind in ("upgrade", "roll_back")
    ]
    return {"wanted": wanted, "there": wanted + 1, "runs": breaks, **growth.summary(breaks)}


def ways(flows: int = 0, key: str = "hot", title: str = "Hot upgrade") -> Document:
    found = [row()]
    works = Works("yes", "yes", "not tried").document()
    return {
        "settings": {"runs": 1, "pps": 10_000, "flows": flows, "ring": 512},
        "meter": [
            {
                "bed": "bed",
                "pause_ms": 5.0,
                "gap_ms": 5.1,
                "break_ms": 5.0,
                "lost": 0,
                "sender_gap_ms": 0.2,
                "delay_ms": [0.1],
            }
        ],
        "ovs_as_secondary": {"starts": False, "forwards": False, "says": "DPDK said no", "log": []},
        "way": {"key": key, "title": title, "note": "A note.", "works": works, "runs": found, **run.summary(found)},
    }


def applications() -> Document:
    application = next(one for one in APPLICATIONS if one.key == "idle")
    figures = [[figure.key, figure.title, figure.digits] for figure in application.figures]
    done = {key: spread([1000.0, 990.0]) for key, _, _ in figures}
    return {
        "title": application.title,
        "figures": figures,
        "window_s": None,
        "ring": 512,
        "ways": [
            {"key": "hot", "title": "Hot upgrade", "runs": [{}, {}], "figures": done},
            {"key": "other", "title": "Other", "runs": [], "failed": "it | broke\nat length"},
        ],
    }


def slow(kind: str, preempted: float | None) -> Document:
    return {
        "kind": kind,
        "break_us": 812.5,
        "parts_us": dict.fromkeys(PARTS, 203.125),
        "preempted_us": preempted,
        "leader_preempted_us": None,
        "sleepers_us": 4000.0,
        "attempts": 2,
    }


def spread_of(rows: list[Document]) -> Document:
    breaks = [row["break_us"] for row in rows]
    return {
        **spread(breaks),
        "shares": {str(share): breaks[0] for share in distribution.SHARES},
        "undisturbed": None,
        "parts": {name: spread([1.0]) for name in PARTS},
    }


def distributed() -> Document:
    rows = [slow("upgrade", 790.0), slow("roll_back", None)]
    machine = {"share_taken": 0.0123, "preemptions": 4321, "seconds": 60.0, "windows": 1000, "windows_hit": 5}
    return {
        "packets_per_second": 21.5e6,
        "machine": machine,
        "runs": rows,
        "upgrade": spread_of(rows[:1]),
        "roll_back": spread_of(rows[1:]),
    }
