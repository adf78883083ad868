"""What a switch is, at one moment, and whether a later moment is the same switch going on.

Two kinds of facts: what an operator has configured and what the kernel knows must be *equal*; counters must have *gone
on*: no smaller than before, and larger where traffic flows.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotupgrade.vswitch.switch import Switch


@dataclass(frozen=True, slots=True)
class Baseline:
    """One moment.  ``rules`` and the counters are by bridge and rule, ``bridge: port`` and polling thread."""

    pid: int
    start_time: int | None
    threads: frozenset[tuple[int, str]]
    datapath_ids: Mapping[str, str]
    ports: frozenset[str]
    rules: frozenset[str]
    flow_packets: Mapping[str, int]
    port_packets: Mapping[str, int]
    pmd_packets: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of a comparison, in the words of a report."""

    name: str
    before: str
    after: str
    ok: bool


def take(switch: Switch) -> Baseline:
    """Read the switch; the traffic goes on meanwhile."""
    bridges = switch.bridges()
    flows = {f"{bridge}: {flow.rule}": flow.packets for bridge in bridges for flow in switch.flows(bridge)}
    ports = {
        f"{bridge}: {port.port}": port.received + port.sent
        for bridge in bridges
        for port in switch.port_counters(bridge)
    }
    pmds = {f"core {pmd.core}": pmd.packets for pmd in switch.pmd_statistics()}
    return Baseline(
        pid=switch.pid,
        start_time=switch.start_time,
        threads=frozenset(switch.threads().items()),
        datapath_ids=switch.datapath_ids(),
        ports=frozenset(switch.ports()),
        rules=frozenset(flows),
        flow_packets=flows,
        port_packets=ports,
        pmd_packets=pmds,
    )


def compare(before: Baseline, after: Baseline) -> tuple[Fact, ...]:
    """Every fact, whether it holds or not."""
    return (
        _equal("process id", before.pid, after.pid),
        _equal("started (ticks since boot)", before.start_time, after.start_time),
        _equal_sets("threads", before.threads, after.threads),
        _equal("datapath ids", _listed(before.datapath_ids), _listed(after.datapath_ids)),
        _equal_sets("ports", before.ports, after.ports),
        _equal_sets("OpenFlow flows", before.rules, after.rules),
        _went_on("packets counted by flows", before.flow_packets, after.flow_packets),
        _went_on("packets counted by ports", before.port_packets, after.port_packets),
        _went_on("packets counted by polling threads", before.pmd_packets, after.pmd_packets),
    )


def _equal(name: str, before: object, after: object) -> Fact:
    return Fact(name, str(before), str(after), before == after)


def _equal_sets(name: str, before: Set[object], after: Set[object]) -> Fact:
    """Shown by size; where they differ, the first that is gone or new."""
    differing = sorted(map(str, before ^ after))
    shown = f"{len(after)}" + (f" (differs: {differing[0]})" if differing else "")
    return Fact(name, str(len(before)), shown, not differing)


def _went_on(name: str, before: Mapping[str, int], after: Mapping[str, int]) -> Fact:
    """No counter went back or is gone, and their sum has grown."""
    back = [key for key, count in before.items() if after.get(key, -1) < count]
    total_before, total_after = sum(before.values()), sum(after.values())
    shown = f"{total_after:,}" + (f" (went back: {back[0]})" if back else "")
    return Fact(name, f"{total_before:,}", shown, not back and total_after > total_before)


def _listed(items: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(items.items()))
