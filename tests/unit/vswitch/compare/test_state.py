"""What counts as kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hotupgrade.vswitch.baseline import Baseline
from hotupgrade.vswitch.compare.controller import Session
from hotupgrade.vswitch.compare.state import State, kept, went_on

SOCKET = Path("/run/br0.mgmt")
BASELINE = Baseline(
    pid=1,
    start_time=2,
    threads=frozenset(),
    datapath_ids={"br0": "1"},
    ports=frozenset({"br0: p"}),
    rules=frozenset({"a"}),
    flow_packets={"a": 10},
    port_packets={"p": 10},
    pmd_packets={"core 1": 10},
)
LATER = replace(BASELINE, flow_packets={"a": 110}, port_packets={"p": 210}, pmd_packets={"core 1": 110})
BEFORE = State(BASELINE, {"f": 10, "idle": 1}, frozenset({"c"}), Session(SOCKET, 1, True, 1))
AFTER = State(LATER, {"f": 110, "idle": 1, "new": 5}, frozenset({"c", "d"}), Session(SOCKET, 1, True, 2))


def test_all_is_kept() -> None:
    assert all(kept(BEFORE, AFTER, 100).values())


@pytest.mark.parametrize(
    ("after", "lost"),
    [
        (replace(AFTER, baseline=replace(LATER, pid=9)), "process id"),
        (replace(AFTER, baseline=replace(LATER, flow_packets={"a": 4})), "packets counted by flows"),
        (replace(AFTER, baseline=replace(LATER, flow_packets={"a": 100})), "packets counted by flows"),
        (replace(AFTER, baseline=replace(LATER, port_packets={"p": 200})), "packets counted by ports"),
        (replace(AFTER, baseline=replace(LATER, pmd_packets={"core 2": 500})), "packets counted by polling threads"),
        (replace(AFTER, megaflows={"f": 110}), "megaflows"),
        (replace(AFTER, connections=frozenset({"d"})), "tracked connections"),
        (replace(AFTER, session=Session(SOCKET, 2, True, 5)), "controller connection"),
    ],
)
def test_one_thing_is_lost(after: State, lost: str) -> None:
    assert [name for name, ok in kept(BEFORE, after, 100).items() if not ok] == [lost]


def test_without_polling_threads_their_counters_are_no_fact() -> None:
    before = replace(BEFORE, baseline=replace(BASELINE, pmd_packets={}))
    after = replace(AFTER, baseline=replace(LATER, pmd_packets={}))
    facts = kept(before, after, 100)
    assert "packets counted by polling threads" not in facts
    assert all(facts.values())


def test_a_counter_that_began_anew() -> None:
    """It may be as large as before, or larger; but the first of those that passed are missing."""
    assert went_on({"f": 500}, {"f": 1500}, 1000)
    assert went_on({"f": 500}, {"f": 1501}, 1000)
    assert not went_on({"f": 500}, {"f": 700}, 1000)
    assert not went_on({"f": 10}, {"f": 990}, 1000)
    assert not went_on({"f": 10, "g": 5}, {"f": 2000, "g": 4}, 1000)
    assert not went_on({"f": 10, "g": 0}, {"f": 2000}, 1000)
