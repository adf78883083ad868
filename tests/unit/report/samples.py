"""Documents as the command line writes them, for the tests of the report."""

from __future__ import annotations

from typing import Any


def thread(name: str, parked: float, released: float, *, busy: bool = False, how: str = "signal") -> dict[str, Any]:
    return {
        "tid": 100,
        "name": name,
        "how": how,
        "busy": busy,
        "break_us": released - parked,
        "parked_us": parked,
        "released_us": released,
    }


def restarted(
    row: dict[str, Any],
    function: str,
    door: str,
    begin: float | None = None,
    out: float | None = None,
    into: float | None = None,
    gap: float | None = None,
    *,
    state: str = "arrived",
    settle: float | None = 9.0,
) -> dict[str, Any]:
    """A thread's row with a restart."""
    skipped = ["cache_uninit", "detach"] if gap is not None else []
    row["restart"] = {
        "function": function,
        "door": door,
        "state": state,
        "begin_us": begin,
        "out_us": out,
        "in_us": into,
        "gap_us": gap,
        "skipped": skipped,
    }
    row["settle_us"] = settle
    return row


def upgrade_with_restarts(pollers: int = 2) -> dict[str, Any]:
    """Pollers one after the other, a group of two, one that sleeps, one that was only parked; as from a real switch."""
    document = upgrade(sleepers=0, busy=0)
    pmds = [
        restarted(
            thread(f"pmd-c{number:02}", 32.0, 50.0, busy=True),
            "poll",
            "fields",
            400.0 + 300 * number,
            240.0,
            10.0,
            40.0,
        )
        for number in range(pollers)
    ]
    document["threads"] = [
        thread("main", 30.0, 90.0, how="leader"),
        *pmds,
        restarted(thread("handler6", 2.0, 54.0), "handle", "latch", 100.0, 20.0, 90.0),
        restarted(thread("revalidator7", 2.1, 54.0), "revalidate", "latch", 101.0, 70.0, 45.0),
        restarted(thread("watchdog", 2.2, 54.0), "watch", "sleep", state="sleeping"),
    ]
    for number, row in enumerate(document["threads"]):
        row["tid"] = 100 + number
    document["settle_us"] = {"busy_max": 9.0, "max": 400.0}
    document["break_us"] = {"busy_max": 18.0, "max": 60.0}
    return document


def upgrade(sleepers: int = 3, busy: int = 1, stop: float = 40.0) -> dict[str, Any]:
    threads = [thread(f"pmd-c{i:02}", stop - 8, stop + 10, busy=True) for i in range(busy)]
    threads += [thread(f"handler{i}", 2.0 + i * 0.1, stop + 14) for i in range(sleepers)]
    return {
        "version": 1,
        "command": "upgrade",
        "ok": True,
        "outcome": "done",
        "exit_code": 0,
        "pid": 4242,
        "name": "switch",
        "time": "2026-01-02T03:04:05Z",
        "generation": 1,
        "reasons": [],
        "notes": [{"code": "init-only", "subject": "f", "text": "applies to objects created from now on"}],
        "modules": [
            {
                "name": "libsample.so.1",
                "old": {"build_id": "aa" * 20, "path": "/lib/old.so"},
                "new": {"build_id": "bb" * 20, "path": "/lib/new.so"},
                "functions": {"changed": ["parse"], "dragged": [], "added": [], "removed": [], "placed": 1},
                "objects": {"new": [], "resized": [], "initial_changed": [], "constants_updated": [], "kept": 7},
                "memory_bytes": 8192,
                "constructors": [],
            }
        ],
        "phases_us": {
            "prepare": 1_500_000.0,
            "stop": stop,
            "check": 5.0,
            "sync": 0.1,
            "replace": 1.5,
            "start": 9.0,
            "cleanup": 30_000.0,
        },
        "threads": threads,
        "break_us": {"busy_max": 18.0 if busy else None, "max": stop + 12},
        "empty_stop_us": {"busy_max": 17.0, "max": 60.0},
        "attempts": 1,
        "edits": {"count": 1, "bytes": 8, "pages": 1},
        "functions": {"changed": 1, "dragged": 0, "added": 0, "removed": 0, "placed": 1},
        "objects": {"new": 0, "resized": 0, "initial_changed": 0, "constants_updated": 0, "kept": 7},
        "memory_bytes": 8192,
    }


def report() -> dict[str, Any]:
    return {
        "version": 1,
        "title": "A switch, upgraded",
        "machine": {"cpus": 2, "kernel": "6.1"},
        "facts": [
            {"name": "process id", "before": 4242, "after": 4242, "ok": True},
            {"name": "flows", "before": 12, "after": 12, "ok": True},
        ],
        "steps": [{"title": "upgrade under load", "document": upgrade()}],
    }
