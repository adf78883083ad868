"""The break against the number of threads and of changed functions, on a small program, by both clocks.

The inside clock is the one of the upgrade's document: a thread reads it when it arrives in the agent and when it
leaves.
The outside clock is the thread's own loop, which sees the signal's delivery and the return as well.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from samples import Effort, Result, Row, median
from stops import Target, breaks
from subject import Builds, Subject, build

from hotupgrade.binary.cache import Cache

PAUSES_US = (1000, 2000, 5000, 10000)
SLEEPERS = (2, 8, 32, 128)
BUSY = (1, 2, 3, 4)
FUNCTIONS = (1, 10, 100, 1000, 5000)
PLAIN = 10  # changed functions, where it is not them that are varied
QUIET_SECONDS = 0.1


def last_core() -> int:
    return max(os.sched_getaffinity(0))


# The meter.


def meter(directory: Path, effort: Effort) -> Result:
    """Whether the outside clock finds pauses whose length is known, and what it finds without any."""
    result = Result("meter")
    with Subject(build(PLAIN, directory), 2, (last_core(),)) as subject:
        (tid,) = subject.busy
        subject.prefer_busy()
        for _ in effort.turns():
            for wanted in PAUSES_US:
                true, gap = subject.pause_us(tid, wanted)
                result.take(f"true_{wanted}", "µs", true)
                result.take(f"pause_{wanted}", "µs", gap)
                result.take(f"ratio_{wanted}", "1", gap / true if gap else None)
            subject.ask("forget")
            time.sleep(QUIET_SECONDS)
            result.take("quiet", "µs", subject.largest_us(tid))
    for wanted in PAUSES_US:
        series, true, ratio = (result[f"{kind}_{wanted}"] for kind in ("pause", "true", "ratio"))
        # Another program that takes the core beside the pause makes the gap longer, never shorter.
        least = min(ratio.values, default=0.0)
        result.rows.append(
            Row(
                f"meter: a pause of {wanted / 1000:g} ms",
                f"{series.median / 1000:.3f} ms",
                f"by the program's other clock {true.median / 1000:.3f} ms",
                "smallest ratio ± 5 %",
                abs(least - 1) <= 0.05,
                len(series.values),
                f"gap ÷ pause from {least:.3f} to {max(ratio.values, default=0.0):.3f}",
            )
        )
    quiet = result["quiet"]
    result.rows.append(
        Row(
            f"meter: largest gap in {QUIET_SECONDS:g} s without a stop",
            f"{quiet.median:.1f} µs (p95 {quiet.p95:.1f} µs)",
            count=len(quiet.values),
            note="what the machine itself takes",
        )
    )
    return result


# The curves.


def sleepers(directory: Path, effort: Effort) -> Result:
    """2 to 128 sleeping threads beside one busy one."""
    result = Result("sleepers")
    builds = build(PLAIN, directory)
    for count in SLEEPERS:
        with Subject(builds, count, (last_core(),)) as subject:
            _measure(result, str(count), subject, directory, effort)
    _rows(result, "sleeping threads, 1 busy", SLEEPERS)
    return result


def busy(directory: Path, effort: Effort) -> Result:
    """1 to 4 busy threads: with more of them than cores, the break holds the wait for a core."""
    result = Result("busy")
    builds = build(PLAIN, directory)
    cores = sorted(os.sched_getaffinity(0), reverse=True)
    for count in BUSY:
        # From the last core on, so that the tool has one for itself as long as possible.
        places = [cores[index % len(cores)] for index in range(count)]
        with Subject(builds, 2, places) as subject:
            _measure(result, str(count), subject, directory, effort)
    _rows(result, "busy, 2 sleeping threads", BUSY)
    result.facts["cores"] = len(cores)
    for row, count in zip((row for row in result.rows if row.name.startswith("break")), BUSY, strict=True):
        if count >= len(cores):
            row.note = "no core is left to the tool; " + (row.note or "busy threads wait for a core")
    return result


def functions(directory: Path, effort: Effort) -> Result:
    """1 to 5000 changed functions."""
    result = Result("functions")
    for count in FUNCTIONS:
        with Subject(build(count, directory), 8, (last_core(),)) as subject:
            _measure(result, str(count), subject, directory, effort)
    _rows(result, "changed functions", FUNCTIONS)
    return result


def _measure(result: Result, label: str, subject: Subject, directory: Path, effort: Effort) -> None:
    """Empty stop, upgrade, empty stop, roll-back, in turn."""
    builds: Builds = subject.builds
    if len(subject.busy) < len(os.sched_getaffinity(0)):  # or nobody would be left to let them go
        subject.prefer_busy()
    target = Target(subject.pid, [builds.new], Cache(directory / "cache"))
    if subject.is_new():
        raise RuntimeError("the small program runs the new library before any upgrade")
    for _ in effort.turns():
        for kind, action in _actions(target):
            subject.ask("forget")
            begin = time.monotonic()
            document = action()
            lasted = time.monotonic() - begin
            _take_stop(result, f"{label}_{kind}", subject, target, document)
            if kind == "upgrade":
                result.take(f"{label}_prepare", "µs", document["phases_us"]["prepare"])
                result.facts[f"{label}_edits"] = document["edits"]
                if not subject.is_new():
                    raise RuntimeError("the new library does not run after the upgrade")
        subject.ask("forget")
        time.sleep(lasted)  # the control: as long a window, in which nobody is stopped
        result.take(f"{label}_no_stop_outside_largest", "µs", max(subject.largest_us(tid) for tid in subject.busy))
    result.facts.setdefault("not_now", []).extend(target.failures)
    if subject.is_new():
        raise RuntimeError("the new library still runs after the roll-back")


def _actions(target: Target) -> Sequence[tuple[str, Callable[[], dict[str, Any]]]]:
    return (
        ("empty", target.empty_stop),
        ("upgrade", lambda: target.upgrade(measure_empty=False)),
        ("rollback", target.rollback),
    )


def _take_stop(result: Result, name: str, subject: Subject, target: Target, document: dict[str, Any]) -> None:
    # A sleeper that waits for a core all the time is taken for busy too.
    tids = [row["tid"] for row in document["threads"] if row["busy"] and row["tid"] in subject.busy]
    result.take(f"{name}_attempts", "1", document["attempts"])
    result.take(f"{name}_sleepers_max", "µs", max(breaks(document, busy=False), default=0))
    result.take(f"{name}_sleepers_median", "µs", median(breaks(document, busy=False)))
    result.take(f"{name}_found_busy", "1", len(tids))
    if not tids:  # on a crowded machine none may have been seen to be busy all the time
        return
    result.take(f"{name}_inside", "µs", max(row["break_us"] for row in document["threads"] if row["tid"] in tids))
    gaps = [subject.gap_us(tid, target.moment_of(document, tid)) for tid in tids]
    result.take(f"{name}_outside", "µs", max((gap for gap in gaps if gap is not None), default=None))
    result.take(f"{name}_outside_largest", "µs", max(subject.largest_us(tid) for tid in tids))


def _rows(result: Result, words: str, points: Sequence[int]) -> None:
    for point in points:
        upgrade, empty = result[f"{point}_upgrade_inside"], result[f"{point}_empty_inside"]
        outside, control = result[f"{point}_upgrade_outside"], result[f"{point}_empty_outside"]
        count = len(upgrade.values)
        missed = len(result[f"{point}_upgrade_attempts"].values) - count
        result.rows += [
            Row(
                f"break, {point} {words}",
                f"{upgrade.median:.1f} µs (p95 {upgrade.p95:.1f} µs)",
                f"empty stop {empty.median:.1f} µs (p95 {empty.p95:.1f} µs)",
                count=count,
                note="; ".join(
                    part
                    for part in (
                        "the control is noisy" if empty.noisy else "",
                        f"{missed} stops found no busy thread" if missed else "",
                    )
                    if part
                ),
            ),
            Row(
                "  from outside",
                f"{outside.median:.1f} µs (p95 {outside.p95:.1f} µs)",
                f"empty stop {control.median:.1f} µs",
                count=len(outside.values),
                note=f"largest gap without a stop {result[f'{point}_no_stop_outside_largest'].median:.1f} µs",
            ),
            Row(
                "  sleeping threads, median and longest of each stop",
                f"{result[f'{point}_upgrade_sleepers_median'].median / 1000:.2f} and "
                f"{result[f'{point}_upgrade_sleepers_max'].median / 1000:.2f} ms",
                f"empty stop {result[f'{point}_empty_sleepers_max'].median / 1000:.2f} ms",
                count=count,
            ),
        ]
    result.facts["points"] = list(points)
    if result.facts["not_now"]:
        result.rows.append(Row("commands that gave up and were given again", str(len(result.facts["not_now"]))))
