"""Whether one moment goes on from another: each thing that can go wrong is told by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from hotupgrade.vswitch.datapaths.flows import DatapathFlow
from hotupgrade.vswitch.datapaths.moments import Moment, compare
from hotupgrade.vswitch.datapaths.streams import Tally
from hotupgrade.vswitch.statistics import Datapath


def flow(port: int, packets: int, used: float | None = 0.5, actions: str = "p2") -> DatapathFlow:
    return DatapathFlow("", f"in_port(p1),udp(src=9,dst={port})", actions, packets, used, False, "ovs")


def tally(sent: int, lost: int = 0, twice: int = 0, name: str = "plain →") -> Tally:
    first = (sent - 1,) if lost else ()
    return Tally(name, True, sent, sent - lost, lost, twice, first, {10_000: sent})


def moment(**changes: Any) -> Moment:
    made = Moment(
        at=100.0,
        pid=7,
        start_time=1234,
        threads=frozenset({(7, "ovs-vswitchd"), (8, "handler1")}),
        ports=frozenset({"br0: p1 1/2 (system)"}),
        indexes={"p1": 3, "vxlan_sys_4789": 4},
        datapath=Datapath(100, 10, 0, 2, ()),
        flows={"a": flow(10_000, 9), "b": flow(40_000, 1)},
        connections=frozenset({"udp,zone=7"}),
        filters={"p1 ip pref 3 handle 1 {'dst_port': 10003}": 5},
        states={"switch vx BFD": "up, remote up"},
        sessions={"switch vx BFD flaps": 1},
        exchanged={"switch l1 TX PDUs": 5},
        tallies=(tally(10),),
        wrong=(),
    )
    return dataclasses.replace(made, **changes)


LATER: dict[str, Any] = {
    "at": 110.0,
    "datapath": Datapath(190, 12, 0, 2, ()),
    "flows": {"a": flow(10_000, 19), "c": flow(40_001, 1)},
    "filters": {"p1 ip pref 3 handle 1 {'dst_port': 10003}": 15},
    "exchanged": {"switch l1 TX PDUs": 9},
    "tallies": (tally(20),),
}


def failed(**changes: Any) -> set[str]:
    return {fact.name for fact in compare(moment(), moment(**{**LATER, **changes})) if not fact.ok}


def test_what_goes_on() -> None:
    assert failed() == set()


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"pid": 8}, {"process, and when it started"}),
        ({"threads": frozenset({(7, "ovs-vswitchd"), (9, "handler1")})}, {"threads"}),
        ({"indexes": {"p1": 3, "vxlan_sys_4789": 9}}, {"interfaces and their indexes"}),
        ({"datapath": Datapath(190, 12, 1, 2, ())}, {"packets that no thread took (lost)"}),
        ({"flows": {"x": flow(10_000, 19)}}, {"flows in the datapath, by id"}),
        ({"flows": {"a": flow(10_000, 19, actions="drop")}}, {"flows in the datapath, by id"}),
        ({"flows": {"a": flow(10_000, 18)}}, {"flows that counted what was sent, to the packet"}),
        ({"flows": {"a": flow(10_000, 19, used=60.0)}}, {"times of last use that went on"}),
        ({"tallies": (tally(20, lost=1),)}, {"plain → (established flows)"}),
        ({"tallies": (tally(20, twice=1),)}, {"plain → (established flows)"}),
        ({"connections": frozenset()}, {"connections that are tracked"}),
        ({"filters": {}}, {"filters of traffic control", "packets that they count"}),
        ({"sessions": {"switch vx BFD flaps": 3}}, {"flaps and expiries"}),
        ({"states": {"switch vx BFD": "down, remote up"}}, {"states of BFD and LACP"}),
        ({"exchanged": {"switch l1 TX PDUs": 5}}, {"frames of LACP, each way and link"}),
        ({"wrong": ("|EMER|assertion failed",)}, {"complaints in the log"}),
    ],
)
def test_what_does_not(changes: dict[str, Any], names: set[str]) -> None:
    assert failed(**changes) == names


def test_a_flow_that_was_made_anew_counts_from_nothing() -> None:
    assert failed(flows={"a": flow(10_000, 3)}) == {
        "packets that they count",
        "flows that counted what was sent, to the packet",
    }


def test_a_flow_that_was_out_of_use_may_end() -> None:
    before = moment(flows={"a": flow(10_000, 9), "d": flow(10_001, 5, used=40.0)})
    assert [fact.name for fact in compare(before, moment(**LATER)) if not fact.ok] == []
