"""Open vSwitch with DPDK at full load, between two builds whose loops differ: what restarting its threads costs.

Three controls stand in the same run beside each restart:

- a stop that changes nothing, for what holding the polling thread costs at all;
- rounds of the polling thread in which nothing is done, and which are as long as a restart: how many of them the
  machine itself interrupts, and for how long (:mod:`hotupgrade.vswitch.preemptions`);
- the same for the restarts themselves, which are all counted, and told apart only beside that.

Which round a restart falls into is no matter of chance.  The thread was just let go by the stop, so it is on its
processor; and some hundred microseconds later it is asked to leave.  If it is preempted in between, then the round that
it leaves from is just the one with the preemption in it.  So the control chooses its rounds in the same way.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moments import Moments, moments
from samples import Effort, Result, Row, Series, median
from stops import Target

from hotupgrade.binary.cache import default_cache
from hotupgrade.errors import HotUpgradeError
from hotupgrade.report.restarts import groups, restarts
from hotupgrade.vswitch import demo
from hotupgrade.vswitch.builds import find_build
from hotupgrade.vswitch.preemptions import Recorder, involuntary_switches, recording, total
from hotupgrade.vswitch.switch import Switch
from hotupgrade.vswitch.ticks import Clock
from ovs import observe

Document = dict[str, Any]

BUILDS = Path("build/ovs")
BUILD_LOOPS = ("scripts/build-ovs", "loops", "--from", "fixed", "tests/ovs/patches/loops.patch")
QUIET_SECONDS, WINDOWS = 0.1, 40  # in each turn: how long nothing is done, and how many windows are laid into that
RATE_WINDOWS = 8
GAP_US, GAP_P95_US, GROUP_US = 60, 200, 500  # what is asked for


def run(efforts: dict[str, Effort], wanted: Callable[[str], bool], say: Callable[[str], None]) -> list[Result]:
    """The benchmark, if it is wanted; the second build is made if it is not there."""
    if not wanted("restarts"):
        return []
    done = subprocess.run(BUILD_LOOPS, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(BUILD_LOOPS)}:\n{done.stdout}{done.stderr}")
    old, new = find_build("fixed", BUILDS), find_build("loops", BUILDS)
    files = [new.library(name) for name in demo.LIBRARIES]
    begin = time.monotonic()
    with Switch(old) as switch:
        demo.prepare(switch)
        say(f"restarts: switch {switch.pid} runs")
        target = Target(switch.pid, files, default_cache())
        result = measure(switch, target, efforts["restarts"])
    result.seconds = time.monotonic() - begin
    return [result]


@dataclass
class Bench:
    """One run: what is measured, with what, and where it goes."""

    switch: Switch
    target: Target
    recorder: Recorder | None
    clock: Clock
    result: Result
    quiet: list[tuple[int, int]] = field(default_factory=list)  # when nothing was done, in ns of CLOCK_MONOTONIC
    documents: list[tuple[float, Document]] = field(default_factory=list)  # each with its longest gap

    @property
    def pid(self) -> int:
        return self.switch.pid


def measure(switch: Switch, target: Target, effort: Effort) -> Result:
    """Empty stop, upgrade, rollback and nothing at all, in turn."""
    result = Result("restarts")
    pollers = [tid for tid, name in switch.threads().items() if name.startswith("pmd-")]
    target.upgrade(measure_empty=False)  # the first brings the agent, the images and the table of moves
    target.rollback()
    with recording(pollers) as recorder:
        counted = sum(involuntary_switches(switch.pid, tid) for tid in pollers)
        bench = Bench(switch, target, recorder, Clock(), result)
        result.facts["switches_recorded"] = recorder is not None
        before = _rates(switch)
        for turn in effort.turns():
            try:
                _turn(bench, pollers)
            except HotUpgradeError as error:
                if not turn:
                    raise
                result.facts["ended_by"] = str(error)  # what was measured until then is not thrown away
                break
        after = _rates(switch)
        result.facts["rate_ratio"] = median(after) / median(before)
        result.facts["rate_control"] = median(before[1::2]) / median(before[::2])
        _control(bench, pollers)
        counted = sum(involuntary_switches(switch.pid, tid) for tid in pollers) - counted
        result.facts["switches"] = {"counted": counted, "recorded": _recorded(recorder, pollers)}
        result.facts["records_lost"] = recorder.lost if recorder else None
    result.facts["not_now"] = target.failures
    result.facts["documents"] = _pictured(bench)
    result.rows = rows(result, effort)
    return result


def _recorded(recorder: Recorder | None, pollers: list[int]) -> int | None:
    if recorder is None:
        return None
    recorder.look()
    return sum(recorder.count(tid) for tid in pollers)


def _turn(bench: Bench, pollers: list[int]) -> None:
    result = bench.result
    result.take("empty_stop", "µs", bench.target.empty_stop()["break_us"]["busy_max"])
    for kind, action in (
        ("upgrade", lambda: bench.target.upgrade(measure_empty=False)),
        ("rollback", bench.target.rollback),
    ):
        counted = {tid: involuntary_switches(bench.pid, tid) for tid in pollers}
        document = action()
        switches = sum(involuntary_switches(bench.pid, tid) - count for tid, count in counted.items())
        result.take("switches_during_command", "1", switches)
        _take(bench, kind, document)
    begin = time.monotonic_ns()
    time.sleep(QUIET_SECONDS)
    bench.quiet.append((begin, time.monotonic_ns()))
    if bench.recorder:
        bench.recorder.look()


def _take(bench: Bench, kind: str, document: Document) -> None:
    """Everything of one upgrade or rollback; ``document`` learns what the machine took of each gap."""
    known = moments(bench.pid, bench.clock)
    if bench.recorder:
        bench.recorder.look()
        for row in document["threads"]:
            _note_preemptions(bench.recorder, row, known)
    result = bench.result
    result.take("unseen", "1", sum(_complete(row) for row in document["threads"]))
    found = restarts(document)
    gaps = [one for one in found if one.gap is not None]
    if not gaps:
        raise RuntimeError(f"no polling thread was restarted: {json.dumps(document['threads'])}")
    released = {str(row["tid"]): row["released_us"] for row in document["threads"]}
    for one in gaps:
        assert one.gap is not None
        result.take("gap", "µs", one.gap)
        result.take(f"gap_{kind}", "µs", one.gap)
        result.take("taken", "µs", one.taken_us)
        parts = {part.kind: part.length for part in one.parts()}
        result.take("in", "µs", parts.get("in", 0.0))
        result.take("out", "µs", one.gap - parts.get("in", 0.0))
        result.take("on", "µs", parts.get("on", 0.0))
        result.take("stop", "µs", one.parked)
        result.take("asked_after", "µs", (one.asked or 0.0) - released[one.tid])
        result.take("settle", "µs", one.settle)
        result.take("lost", "µs", one.lost)
    for group in groups(found):
        if len(group.members) > 1:
            result.take("group", "µs", group.lasted)
            result.take("group_out", "µs", group.left - group.asked)
            result.take("group_in", "µs", group.arrived - group.left)
    for state in ("arrived", "sleeping"):
        result.take(f"threads_{state}", "1", sum(one.state == state for one in found))
    bench.documents.append((max(one.gap for one in gaps if one.gap is not None), document))


def _complete(row: Document) -> bool:
    """Whether the last work of a polling thread was not seen, as it was asked before it worked again after the stop.

    Then its break goes on from that of the stop: it lost all from when that let it go.
    """
    restart = row.get("restart")
    if not restart or not row["busy"] or restart["gap_us"] is not None or restart["in_us"] is None:
        return False
    restart["gap_us"] = restart["begin_us"] + restart["out_us"] + restart["in_us"] - row["released_us"]
    return True


def _note_preemptions(recorder: Recorder, row: Document, known: dict[int, Moments]) -> None:
    """Put into a thread's row, in µs since the stop began, when it was preempted between being asked and arriving."""
    restart, when = row.get("restart"), known.get(row["tid"])
    if not restart or restart["begin_us"] is None or when is None:
        return

    def since_stop(moment: int) -> float:
        return float(restart["begin_us"]) + (moment - when.asked) / 1000

    begin = min(when.asked, when.worked or when.asked)
    spans = recorder.within(row["tid"], begin, when.arrived)
    restart["taken_us"] = [[since_stop(span.begin), since_stop(span.end)] for span in spans]


def _rates(switch: Switch) -> list[float]:
    """Packets per kilocycle on a processor, in some windows: what others take is none of an upgrade's doing."""
    found = [observe(switch) for _ in range(RATE_WINDOWS)]
    return [one.rate.per_kilocycle / one.on_processor for one in found]


# Controls.


def _control(bench: Bench, pollers: list[int]) -> None:
    """Rounds without a restart: as long as one, and hit upon like one, while nothing was done."""
    if not bench.recorder:
        return
    length_ns, delays = round(1000 * _undisturbed(bench.result).median), bench.result["asked_after"].values
    chance = random.Random(1)  # the same rounds of the same quiet times
    for begin, end in bench.quiet:
        for tid in pollers:
            for moment in (chance.randrange(begin, end) for _ in range(WINDOWS)):
                asked = moment + round(1000 * chance.choice(delays))
                if bench.recorder.around(tid, moment) or asked > end:
                    continue  # whom a stop lets go is on its processor
                taken = _taken(bench.recorder, tid, asked, length_ns)
                bench.result.take("window", "µs", (length_ns + taken) / 1000)
                bench.result.take("window_taken", "µs", taken / 1000)
            spans = bench.recorder.within(tid, begin, end)
            bench.result.take("quiet_share_taken", "1", total(spans) / (end - begin))


def _taken(recorder: Recorder, tid: int, asked: int, length_ns: int) -> int:
    """What the machine takes of a round of ``length_ns`` in which the thread is asked."""
    span = recorder.around(tid, asked)
    begin = span.begin if span else asked
    return recorder.finish_of(tid, begin, length_ns) - begin - length_ns


def _undisturbed(result: Result) -> Series:
    """The gaps in which the machine took nothing; all of them if that is not known."""
    pairs = zip(result["gap"].values, result["taken"].values, strict=True)
    return Series("µs", [gap for gap, taken in pairs if taken == 0.0])


def _pictured(bench: Bench) -> dict[str, Document]:
    """The upgrades to be drawn: one with a median gap, and the one with the longest."""
    ordered = sorted(bench.documents, key=lambda pair: pair[0])
    return {"median": ordered[len(ordered) // 2][1], "longest": ordered[-1][1]}


# Rows.


def rows(result: Result, effort: Effort) -> list[Row]:
    return [*_gap_rows(result, effort), *_part_rows(result), *_group_rows(result), *_rest_rows(result)]


def _gap_rows(result: Result, effort: Effort) -> list[Row]:
    gap, empty, window = result["gap"], result["empty_stop"], result["window"]
    free, hit = _undisturbed(result), [taken for taken in result["taken"].values if taken > 0]
    left = Series("µs", [g - t for g, t in zip(gap.values, result["taken"].values, strict=True)])
    recorded = bool(result.facts["switches_recorded"])
    control = f"as long, without a restart: {_spread(window)}" if recorded else "not known: no records of switches"
    found = [
        Row(
            "PMD's break by its restart, median",
            f"{gap.median:.1f} µs",
            control,
            f"≤ {GAP_US} µs",
            gap.median <= GAP_US,
            len(gap.values),
            effort.shortfall(len(result["empty_stop"].values)),
        ),
        Row(
            "PMD's break by its restart, p95",
            f"{gap.p95:.1f} µs (max {_most(gap):.1f} µs)",
            f"without a restart p95 {window.p95:.1f} µs (max {_most(window):.1f} µs)" if recorded else "",
            f"≤ {GAP_P95_US} µs",
            gap.p95 <= GAP_P95_US,
            len(gap.values),
            f"of the upgrades {_spread(result['gap_upgrade'])}; of the rollbacks {_spread(result['gap_rollback'])}",
        ),
        Row(
            "  ÷ empty stop",
            f"× {gap.median / empty.median:.2f}",
            f"empty stop {_spread(empty)}",
            count=len(empty.values),
            note="the PMD's break in a stop without edits, by its own clock; noisy" if empty.noisy else "",
        ),
    ]
    if recorded:
        windows = [taken for taken in result["window_taken"].values if taken > 0]
        switches = result.facts["switches"]
        others = (
            f"others had {100 * result['quiet_share_taken'].median:.0f} % of its core; the kernel counted "
            f"{switches['counted']} preemptions in all, {switches['recorded']} were recorded"
        )
        found += [
            Row(
                "  preempted meanwhile by the machine",
                f"{len(hit)} of {len(gap.values)} ({100 * len(hit) / len(gap.values):.1f} %)",
                f"without a restart {len(windows)} of {len(window.values)} "
                f"({100 * len(windows) / max(len(window.values), 1):.1f} %)",
                count=len(gap.values),
                note=(f"took {median(hit):.0f} µs in the median, {max(hit):.0f} at most; " if hit else "") + others,
            ),
            Row("  of those that were not", _spread(free), count=len(free.values)),
            Row(
                "  of all, what the machine took subtracted, p95",
                f"{left.p95:.1f} µs (median {left.median:.1f} µs, max {_most(left):.1f} µs)",
                "",
                f"≤ {GAP_P95_US} µs",
                left.p95 <= GAP_P95_US,
                len(left.values),
                f"{result.facts['records_lost']} times records were lost: too little is known"
                if result.facts["records_lost"]
                else "",
            ),
        ]
    return found


def _part_rows(result: Result) -> list[Row]:
    stop, empty = result["stop"], result["empty_stop"]
    return [
        Row("  out: last work in old code to having left", _spread(result["out"]), count=len(result["out"].values)),
        Row("  in: from there to the first work in new code", _spread(result["in"]), count=len(result["in"].values)),
        Row(
            "  before: worked on in old code after it was asked",
            _spread(result["on"]),
            count=len(result["on"].values),
            note="nothing is lost by it: it sees it after each round, if it is on its processor",
        ),
        Row(
            "PMD's break by the stop itself",
            _spread(stop),
            f"empty stop {_spread(empty)}",
            count=len(stop.values),
        ),
        Row("PMD's break by the settling stop", _spread(result["settle"]), count=len(result["settle"].values)),
        Row("PMD's breaks, all three together", _spread(result["lost"]), count=len(result["lost"].values)),
    ]


def _group_rows(result: Result) -> list[Row]:
    group = result["group"]
    above = sum(value > GROUP_US for value in group.values)
    parts = f"out {_spread(result['group_out'])}, in {_spread(result['group_in'])}"
    return [
        Row(
            "handlers and revalidators, first asked to last in the new code, p95",
            f"{group.p95:.0f} µs (median {group.median:.0f} µs, max {_most(group):.0f} µs)",
            "",
            f"≤ {GROUP_US} µs",
            group.p95 <= GROUP_US,
            len(group.values),
            f"{above} of {len(group.values)} above; {parts}",
        )
    ]


def _rest_rows(result: Result) -> list[Row]:
    gave_up = len(result.facts["not_now"])
    ended = result.facts.get("ended_by")
    return [
        *([Row("ended early by an error", ended, holds=False)] if ended else []),
        Row(
            "threads restarted, and to be when their sleep ends",
            f"{result['threads_arrived'].median:.0f} and {result['threads_sleeping'].median:.0f}",
            count=len(result["threads_arrived"].values),
            note=f"{gave_up} commands gave up and were given again; in {sum(result['unseen'].values):.0f} restarts the "
            "PMD left before it worked again: there the break counts from the end of the stop",
        ),
        Row(
            "PMD's speed after all of them ÷ before",
            f"× {result.facts['rate_ratio']:.3f}",
            f"× {result.facts['rate_control']:.3f} between windows before",
            count=RATE_WINDOWS,
            note="packets per time on its processor",
        ),
    ]


def _spread(series: Series) -> str:
    if not series.values:
        return "–"
    return f"{series.median:.1f} µs (p95 {series.p95:.1f}, max {_most(series):.1f})"


def _most(series: Series) -> float:
    return max(series.values, default=float("nan"))
