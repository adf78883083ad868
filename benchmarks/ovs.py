"""Open vSwitch with DPDK at full load: how long its polling thread is away, and what it does afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import preparations
from samples import Effort, Result, Row, percentile
from stops import Target, breaks

from hotupgrade.binary.cache import default_cache
from hotupgrade.plan.options import PlanOptions
from hotupgrade.vswitch import demo
from hotupgrade.vswitch.builds import SwitchBuild, find_build
from hotupgrade.vswitch.statistics import Rate
from hotupgrade.vswitch.switch import Switch

BUILDS = Path("build/ovs")
MODULES = demo.LIBRARIES
WINDOW_SECONDS = 0.2


def run(efforts: dict[str, Effort], wanted: Callable[[str], bool], say: Callable[[str], None]) -> list[Result]:
    """Every benchmark on the switch.  Those of preparing come first: they want a process that was never upgraded."""
    vulnerable, fixed = find_build("vulnerable", BUILDS), find_build("fixed", BUILDS)
    results = []
    parts: list[tuple[str, Callable[[Switch, SwitchBuild, Effort], Result]]] = [
        ("prepare", prepare),
        ("patches", patches),
        ("whole", whole),
        ("imports", imports),
    ]
    # One switch for each part: what one part has placed must not be there for the next.
    for name, part in parts:
        if not wanted(name):
            continue
        with Switch(vulnerable) as switch:
            demo.prepare(switch)
            say(f"{name}: switch {switch.pid} runs")
            begin = time.monotonic()
            result = part(switch, fixed, efforts[name])
            result.seconds = time.monotonic() - begin
            results.append(result)
    return results


# Preparing.


def prepare(switch: Switch, fixed: SwitchBuild, effort: Effort) -> Result:
    """How long it takes to plan the upgrade of libopenvswitch, with an empty cache and with a full one."""
    library = fixed.library(MODULES[0])
    result = preparations.measure("prepare", switch.pid, library, effort)
    document = demo.run_hotupgrade(["upgrade", str(switch.pid), str(library), "--json"])  # fills the tool's own cache
    result.facts["first_upgrade_phases_us"] = document["phases_us"]
    for _ in range(min(effort.count, 3)):
        demo.run_hotupgrade(["rollback", str(switch.pid), "--json"])
        document = demo.run_hotupgrade(["upgrade", str(switch.pid), str(library), "--json"])
        result.take("command_prepare", "s", document["phases_us"]["prepare"] / 1e6)
    demo.run_hotupgrade(["rollback", str(switch.pid), "--json"])
    result.rows = preparations.rows(result, "libopenvswitch", 2.5, 0.5)
    again = result["command_prepare"]
    result.rows.append(
        Row("prepare, by a real upgrade command, image there already", f"{again.median:.2f} s", count=len(again.values))
    )
    return result


# Stopping.


def patches(switch: Switch, fixed: SwitchBuild, effort: Effort) -> Result:
    """The three security patches: the break, the rate before and after, the memory."""
    result = Result("patches")
    target = _target(switch, fixed)
    before = _memory(switch.pid)
    time.sleep(1)
    idle = _memory(switch.pid)
    document = target.upgrade()
    _take_memory(result, before, idle, _memory(switch.pid), document)
    result.facts["functions"] = document["functions"]
    target.rollback()
    last = None
    for _ in effort.turns():
        # Four windows a turn: old, old, new, new.  Neighbours of one kind are the control of neighbours of two kinds.
        first, second = observe(switch), observe(switch)
        if last is not None:
            _take_ratio(result, "rate_ratio", last, first)  # new ÷ old, across a roll-back
        _take_upgrade(result, target.upgrade())
        third, last = observe(switch), observe(switch)
        _take_ratio(result, "rate_ratio", third, second)
        _take_ratio(result, "rate_control", second, first)
        _take_ratio(result, "rate_control", last, third)
        for window in (first, second, third, last):
            result.take("rate", "packets/s", window.rate.per_second)
            result.take("on_processor", "1", window.on_processor)
        _take_rollback(result, target.rollback())
    after = _memory(switch.pid)
    result.facts["private_growth_of_all_turns_bytes"] = after - before
    result.facts["not_now"] = target.failures
    _break_rows(result, effort, "three patches", 60, ratio=1.3)
    result.rows += _rate_rows(result)
    memory = result.facts["memory"]
    result.rows.append(_memory_row("three patches", memory))
    return result


def whole(switch: Switch, fixed: SwitchBuild, effort: Effort) -> Result:
    """Every function of both libraries."""
    return _breaks(switch, fixed, effort, "whole", PlanOptions(whole=True), "every function (--whole)", 200)


def imports(switch: Switch, fixed: SwitchBuild, effort: Effort) -> Result:
    """The classical method in addition: the other modules' import slots."""
    return _breaks(switch, fixed, effort, "imports", PlanOptions(imports=True), "import slots too (--imports)", None)


def _breaks(
    switch: Switch, fixed: SwitchBuild, effort: Effort, name: str, options: PlanOptions, words: str, limit: float | None
) -> Result:
    result = Result(name)
    target = _target(switch, fixed)
    before = _memory(switch.pid)
    time.sleep(1)
    idle = _memory(switch.pid)
    for turn in effort.turns():
        document = target.upgrade(options)
        if turn == 0:
            _take_memory(result, before, idle, _memory(switch.pid), document)
        _take_upgrade(result, document)
        _take_rollback(result, target.rollback())
    result.facts["not_now"] = target.failures
    _break_rows(result, effort, words, limit)
    result.rows.append(_memory_row(words, result.facts["memory"]))
    return result


def _target(switch: Switch, fixed: SwitchBuild) -> Target:
    return Target(switch.pid, [fixed.library(name) for name in MODULES], default_cache())


def _take_upgrade(result: Result, document: dict[str, Any]) -> None:
    result.take("break", "µs", document["break_us"]["busy_max"])
    result.take("empty_stop", "µs", document["empty_stop_us"]["busy_max"])
    sleepers = breaks(document, busy=False)
    result.take("sleepers", "µs", max(sleepers, default=0))
    result.take("attempts", "1", document["attempts"])
    result.facts["edits"] = document["edits"]
    for phase, value in document["phases_us"].items():
        result.take(f"phase_{phase}", "µs", value)


def _take_rollback(result: Result, document: dict[str, Any]) -> None:
    result.take("rollback_break", "µs", document["break_us"]["busy_max"])


def _break_rows(result: Result, effort: Effort, words: str, limit: float | None, ratio: float | None = None) -> None:
    series, empty, back = result["break"], result["empty_stop"], result["rollback_break"]
    result.facts["break_ratio"] = series.median / empty.median
    result.rows.append(
        Row(
            f"PMD's break, {words}",
            f"{series.median:.1f} µs (p95 {series.p95:.1f} µs)",
            f"empty stop {empty.median:.1f} µs (p95 {empty.p95:.1f} µs)",
            "" if limit is None else f"< {limit:g} µs",
            None if limit is None else series.median < limit,
            len(series.values),
            "; ".join(
                filter(None, [effort.shortfall(len(series.values)), "the control is noisy" if empty.noisy else ""])
            ),
        )
    )
    result.rows.append(
        Row(
            f"  ÷ empty stop, {words}",
            f"× {series.median / empty.median:.2f}",
            f"difference {series.median - empty.median:.1f} µs",
            "" if ratio is None else f"≤ {ratio}",
            None if ratio is None else series.median <= ratio * empty.median,
            len(series.values),
            "by the thread's own clock, without the signal's delivery",
        )
    )
    result.rows.append(Row(f"  roll-back, {words}", f"{back.median:.1f} µs", count=len(back.values)))
    again = sum(1 for attempts in result["attempts"].values if attempts > 1)
    result.rows.append(
        Row(
            f"  sleeping threads, longest of each stop, {words}",
            f"{result['sleepers'].median / 1000:.2f} ms",
            count=len(series.values),
            note=f"{again} stops needed more than one attempt, {len(result.facts['not_now'])} commands gave up",
        )
    )


# Rates.


@dataclass(frozen=True)
class Window:
    """What the polling threads did in a window, and which share of it they were on a processor at all."""

    rate: Rate
    on_processor: float

    def ratio_to(self, earlier: Window) -> float:
        """Per time on a processor: what other programs take away is none of an upgrade's doing."""
        return self.rate.ratio_to(earlier.rate) * earlier.on_processor / self.on_processor


def observe(switch: Switch) -> Window:
    ran, begin = _processor_ns(switch), time.monotonic_ns()
    rate = switch.rate(WINDOW_SECONDS)
    return Window(rate, max(_processor_ns(switch) - ran, 1) / (time.monotonic_ns() - begin))


def _processor_ns(switch: Switch) -> int:
    """Time that the polling threads have spent on a processor."""
    tids = [tid for tid, name in switch.threads().items() if name.startswith("pmd-")]
    return sum(int(Path(f"/proc/{switch.pid}/task/{tid}/schedstat").read_text().split()[0]) for tid in tids)


def _take_ratio(result: Result, name: str, later: Window, earlier: Window) -> None:
    result.take(name, "1", later.ratio_to(earlier))
    result.take(f"{name}_raw", "1", later.rate.ratio_to(earlier.rate))


def _rate_rows(result: Result) -> list[Row]:
    rows = []
    share = result["on_processor"]
    parts = (
        ("", "rate after ÷ before, per time on a processor", 0.99),
        ("_raw", "  the same, per time", None),
    )
    for suffix, words, limit in parts:
        ratio, control = result[f"rate_ratio{suffix}"], result[f"rate_control{suffix}"]
        rows.append(
            Row(
                words,
                f"× {ratio.median:.4f}",
                f"× {control.median:.4f} without an upgrade between",
                "" if limit is None else f"≥ {limit}",
                None if limit is None else ratio.median >= limit,
                len(ratio.values),
                f"control from × {percentile(control.values, 0.05):.2f} to {control.p95:.2f} (5 % to 95 %)",
            )
        )
    rows[0].note += f"; {result['rate'].median / 1e6:.1f} million packets/s"
    rows[1].note += f"; others took {100 * (1 - share.median):.0f} % of the PMD's processor"
    return rows


# Memory.


def _memory(pid: int) -> int:
    """Bytes that the process has for itself alone."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("Private_Clean", "Private_Dirty"):
            total += int(value.split()[0]) * 1024
    return total


def _take_memory(result: Result, before: int, idle: int, after: int, document: dict[str, Any]) -> None:
    result.facts["memory"] = {
        "document_bytes": document["memory_bytes"],
        "private_growth_bytes": after - idle,
        "private_growth_without_upgrade_bytes": idle - before,
    }


def _memory_row(words: str, memory: dict[str, int]) -> Row:
    most = max(memory["document_bytes"], memory["private_growth_bytes"])
    megabyte = 1e6
    return Row(
        f"memory in the target, first upgrade, {words}",
        f"{memory['private_growth_bytes'] / megabyte:.2f} MB private",
        f"{memory['private_growth_without_upgrade_bytes'] / megabyte:.2f} MB in a second without",
        "≤ 4 MB",
        most <= 4_000_000,
        1,
        f"the document says {memory['document_bytes'] / megabyte:.2f} MB",
    )
