"""The same switch, going on; or not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hotupgrade.vswitch.baseline import Baseline, compare

BEFORE = Baseline(
    pid=10,
    start_time=500,
    threads=frozenset({(10, "ovs-vswitchd"), (11, "pmd-c01")}),
    datapath_ids={"br0": "0001"},
    ports=frozenset({"br0: null1 1/1 (dpdk)"}),
    rules=frozenset({"br0: a", "br0: b"}),
    flow_packets={"br0: a": 5, "br0: b": 0},
    port_packets={"br0: 1": 7},
    pmd_packets={"core 1": 7},
)
AFTER = replace(
    BEFORE,
    flow_packets={"br0: a": 6, "br0: b": 0},
    port_packets={"br0: 1": 8},
    pmd_packets={"core 1": 9},
)


def wrong(after: Baseline) -> list[str]:
    return [fact.name for fact in compare(BEFORE, after) if not fact.ok]


def test_going_on() -> None:
    assert wrong(AFTER) == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"pid": 12}, "process id"),
        ({"start_time": 501}, "started (ticks since boot)"),
        ({"threads": frozenset({(10, "ovs-vswitchd"), (12, "pmd-c01")})}, "threads"),
        ({"datapath_ids": {"br0": "0002"}}, "datapath ids"),
        ({"ports": frozenset()}, "ports"),
        ({"rules": frozenset({"br0: a"})}, "OpenFlow flows"),
        ({"flow_packets": BEFORE.flow_packets}, "packets counted by flows"),
        ({"flow_packets": {"br0: a": 4, "br0: b": 9}}, "packets counted by flows"),
        ({"port_packets": {"br0: 2": 99}}, "packets counted by ports"),
        ({"pmd_packets": {"core 1": 3}}, "packets counted by polling threads"),
    ],
)
def test_every_difference_is_named(changes: dict[str, object], name: str) -> None:
    assert wrong(replace(AFTER, **changes)) == [name]  # type: ignore[arg-type]


def test_the_first_difference_is_shown() -> None:
    fact = next(fact for fact in compare(BEFORE, replace(AFTER, rules=frozenset({"br0: a"}))) if not fact.ok)
    assert (fact.before, fact.after) == ("2", "1 (differs: br0: b)")
    fact = next(fact for fact in compare(BEFORE, replace(AFTER, pmd_packets={"core 1": 3})) if not fact.ok)
    assert (fact.before, fact.after) == ("7", "3 (went back: core 1)")
