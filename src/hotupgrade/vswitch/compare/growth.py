"""How the hot upgrade's break grows with what the switch holds, beside an empty switch in the same minutes.

Two switches run, one loaded and one empty; while one is upgraded and rolled back the other stands still, and in each
turn both have theirs.  What the machine does to one of them it so does to both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare import hot
from hotupgrade.vswitch.compare.apart import Observer, observing, undisturbed
from hotupgrade.vswitch.compare.cells import failed, joined
from hotupgrade.vswitch.compare.loads import CONNECTIONS, ENOUGH, FLOWS, PORTS, Load
from hotupgrade.vswitch.compare.needs import program
from hotupgrade.vswitch.compare.network import Network, network, packet_sockets
from hotupgrade.vswitch.compare.spread import median, ratio, spread
from hotupgrade.vswitch.compare.ways import look
from hotupgrade.vswitch.switch import Switch, SwitchOptions

Document = dict[str, Any]
Say = Callable[[str], None]
PAIRS = (("send", "into"), ("receive", "outof"))
RING = 8192  # frames: what fills the switch comes fast
RULES = ("table=0,priority=1,in_port=1,actions=output:2", "table=0,priority=1,in_port=2,actions=output:1")
#: Megaflows without packets stay so long, in ms, and there may be so many of them; and so often, in ms, are all looked
#: at.  If that takes long, as it does if the switch stood still meanwhile, it lowers the second, and if it takes longer
#: than half of the third it takes megaflows out that have few packets.  Source: Open vSwitch 3.1,
#: ofproto/ofproto-dpif-upcall.c (udpif_revalidator, revalidate, should_revalidate).
IDLE_MS, FLOW_LIMIT, LOOK_MS = 3_600_000, 10_000_000, 120_000
COMMAND_SECONDS = 240.0
SETTLE_S = 0.3  # until a switch that stood still has caught up
#: What is promised: a break no longer than that of the empty switch by more than this part.
MOST = 0.10
CERTAIN = ("yes", "no")  # what is said of it if the interval is clear of that
_PMDS = "pmds"


@dataclass(frozen=True, slots=True)
class Axis:
    """One thing that grows; ``load`` is None where it is the polling threads themselves."""

    key: str
    title: str
    points: tuple[int, ...]
    load: Load | None = None

    def count(self, switch: Switch) -> int:
        """How many there are now, by the switch's own count."""
        return self.load.count(switch) if self.load else len(switch.pmd_statistics())


def axes() -> tuple[Axis, ...]:
    """All of them; polling threads are bound to one core each, so that there are at most as many as cores."""
    return (
        Axis(FLOWS.key, FLOWS.title, (10, 1_000, 10_000, 100_000), FLOWS),
        Axis(CONNECTIONS.key, CONNECTIONS.title, (10, 10_000, 100_000, 1_000_000), CONNECTIONS),
        Axis(PORTS.key, PORTS.title, (10, 100, 1_000), PORTS),
        Axis(_PMDS, "polling threads", tuple(range(1, len(os.sched_getaffinity(0)) + 1))),
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """``runs``: upgrades, and roll-backs, of either switch at each point; ``most``: no point beyond that.

    Where so many runs cannot tell whether the promise holds, there are as many again, up to ``rounds`` times ``runs``.
    """

    runs: int = 20
    axes: tuple[str, ...] = ()
    most: int = 1_000_000
    rounds: int = 1


def measure(old: SwitchBuild, new: SwitchBuild, settings: Settings, say: Say) -> Iterator[tuple[str, Document]]:
    """One axis after the other: its key, and each point.  One that cannot be had here is there with the reason.

    Raises:
        HotUpgradeError: there can be no such switch here at all.
    """
    program("tcpreplay")
    for axis in axes():
        if settings.axes and axis.key not in settings.axes:
            continue
        points = []
        for count in (point for point in axis.points if point <= settings.most):
            try:
                points.append(_point(axis, count, (old, new), settings, say))
            except HotUpgradeError as error:
                points.append({"wanted": count, "failed": str(error)})
            say(f"{axis.key} {count:,}: {_words(points[-1])}")
        yield axis.key, {"title": axis.title, "points": points}


def _point(axis: Axis, count: int, builds: tuple[SwitchBuild, SwitchBuild], settings: Settings, say: Say) -> Document:
    old, new = builds
    with (
        switch_between(old, cores(count if axis.key == _PMDS else 1)) as (loaded, made),
        switch_between(old, cores(1)) as (empty, _),
    ):
        with hot.held([empty.pid]):
            begin = time.monotonic()
            if axis.load:
                axis.load.fill(loaded, made, PAIRS[0][0], count)
            there = axis.count(loaded)
            filled_s = time.monotonic() - begin
            say(f"{axis.key} {count:,}: {there:,} there after {filled_s:.0f} s")
            look(loaded, new)
        with hot.held([loaded.pid]):
            look(empty, new)
        with observing(loaded) as one, observing(empty) as other:
            both = (("loaded", loaded, one), ("empty", empty, other))
            rows = repeated(lambda turn: _turn(both if turn % 2 else both[::-1], new), settings)
        with hot.held([empty.pid]):
            left = axis.count(loaded)
        memory = _resident_kb(loaded.pid), _resident_kb(empty.pid)
    if left < ENOUGH * there:
        raise HotUpgradeError(f"of {there:,} only {left:,} were left in the end: the figures are not those of so many")
    return {"wanted": count, "there": there, "filled_s": filled_s, "resident_kb": memory, "runs": rows, **summary(rows)}


def repeated(turn: Callable[[int], Iterable[Document]], settings: Settings) -> list[Document]:
    """What ``turn`` gives, as often as is wanted, or until it can be told whether the promise holds."""
    rows: list[Document] = []
    for _ in range(settings.rounds):
        if rows and holds(summary(rows)["upgrade"]) in CERTAIN:
            break
        for number in range(settings.runs):
            rows += turn(number)
    return rows


def _turn(switches: Sequence[tuple[str, Switch, Observer]], new: SwitchBuild) -> Iterator[Document]:
    """Each switch upgraded and rolled back in its turn, while the others stand still."""
    for name, switch, observer in switches:
        with hot.held([other.pid for _, other, __ in switches if other is not switch]):
            keep_flows(switch)
            time.sleep(SETTLE_S)
            yield {"switch": name, **observer.take("upgrade", hot.upgrade(switch, new))}
            yield {"switch": name, **observer.take("roll_back", hot.roll_back(switch))}


def summary(rows: Sequence[Document]) -> Document:
    """For upgrades and roll-backs: both switches' breaks, their ratio, and the loaded one's without preemptions."""
    found: Document = {}
    for kind in ("upgrade", "roll_back"):
        of_kind = [row for row in rows if row["kind"] == kind]
        by_switch = {name: [row for row in of_kind if row["switch"] == name] for name in ("loaded", "empty")}
        breaks = {name: [row["break_us"] for row in chosen] for name, chosen in by_switch.items()}
        rest = undisturbed(by_switch["loaded"])
        found[kind] = {
            **{name: spread(values) for name, values in breaks.items()},
            **ratio(breaks["loaded"], breaks["empty"]),
            "undisturbed": spread(rest) if rest else None,
        }
    return found


def cores(count: int) -> tuple[int, ...]:
    """Of so many polling threads: from the last core on, which leaves the first to the main thread if that can be."""
    return tuple(sorted(os.sched_getaffinity(0), reverse=True)[:count])


@contextmanager
def switch_between(build: SwitchBuild, polling: tuple[int, ...]) -> Iterator[tuple[Switch, Network]]:
    """A switch that holds nothing and forgets nothing, with polling threads on those cores, between two interfaces."""
    with network(PAIRS) as made:
        devices = packet_sockets((inner for _, inner in PAIRS), RING)
        options = SwitchOptions(
            devices=devices,
            network_of=made.pid,
            rules=RULES,
            pmd_cores=polling,
            other_config={
                "max-idle": str(IDLE_MS),
                "flow-limit": str(FLOW_LIMIT),
                "max-revalidator": str(LOOK_MS),
            },
            command_timeout=COMMAND_SECONDS,
        )
        with Switch(build, options) as switch:
            keep_flows(switch)
            yield switch, made


def keep_flows(switch: Switch) -> None:
    """Whatever the switch has made of its limit of megaflows, it is :data:`FLOW_LIMIT` again."""
    switch.appctl("upcall/set-flow-limit", str(FLOW_LIMIT))


def _resident_kb(pid: int) -> int:
    return sum(
        int(line.split()[1])
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmRSS:")
    )


def _words(point: Document) -> str:
    if "failed" in point:
        return str(point["failed"])
    found = point["upgrade"]
    return f"{found['loaded']['median']:.1f} µs, empty {found['empty']['median']:.1f} µs, × {found['ratio']:.3f}"


HEADS = (
    "there",
    "n",
    "empty, µs",
    "loaded, µs",
    "ratio",
    "within 10 %",
    "preempted, µs",
    "without preemptions: n",
    "loaded, µs",
    "roll-back, ratio",
)


def markdown(document: Document) -> str:
    """A table for each axis; "median / 99th percentile", ratios with their 95 % interval."""
    return "\n".join(joined((axis["title"], *HEADS), map(_row, axis["points"])) for axis in document.values())


def _row(point: Document) -> list[str]:
    wanted = f"{point['wanted']:,}"
    if "failed" in point:
        return [wanted, "", "0", *failed(point["failed"], len(HEADS) - 2)]
    up, back = point["upgrade"], point["roll_back"]
    count, both = str(up["loaded"]["count"]), [_two(up[name]) for name in ("empty", "loaded")]
    rest = up["undisturbed"]
    alone = [str(rest["count"]), _two(rest)] if rest else ["0", ""]
    taken = _preempted(point["runs"])
    return [wanted, f"{point['there']:,}", count, *both, _interval(up), holds(up), taken, *alone, _interval(back)]


def _preempted(rows: Sequence[Document]) -> str:
    """The median of what was taken of the loaded switch's breaks."""
    values = [row["preempted_us"] for row in rows if row["switch"] == "loaded" and row["kind"] == "upgrade"]
    return "not known" if None in values else f"{median(values):.1f}"


def holds(found: Document) -> str:
    """Whether the promise holds: by the interval of the ratio, or that it cannot be told from so many runs."""
    if found["high"] <= 1 + MOST:
        return CERTAIN[0]
    if found["low"] > 1 + MOST:
        return CERTAIN[1]
    return "yes, not for certain" if found["ratio"] <= 1 + MOST else "no, not for certain"


def _two(found: Document) -> str:
    return f"{found['median']:.1f} / {found['p99']:.1f}"


def _interval(found: Document) -> str:
    return f"× {found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
