"""Runs become one row, and ways are chosen."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest

from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare.catalogue import ALL_WAYS
from hotupgrade.vswitch.compare.run import Settings, chosen, inside_us, summary
from hotupgrade.vswitch.compare.ways import WAYS
from unit.vswitch.compare.rows import row

LOOPS = SwitchBuild(Path("/loops"))


def test_keys_are_unique_and_beds_follow_one_another() -> None:
    """A bed is made once for all ways on it."""
    keys = [way.key for way in ALL_WAYS]
    assert len(set(keys)) == len(keys)
    beds = [bed for bed, _ in groupby(way.bed for way in ALL_WAYS)]
    assert len(set(beds)) == len(beds)


def test_ways_on_one_switch_share_its_bed() -> None:
    assert {way.bed for way in WAYS} == {WAYS[0].bed}


def test_without_the_build_nothing_brings_it_in() -> None:
    assert chosen(Settings()) == [way for way in ALL_WAYS if not way.loops]
    assert chosen(Settings(loops=LOOPS)) == list(ALL_WAYS)
    assert [way.key for way in chosen(Settings(only=("hot", "hot-loops"), loops=LOOPS))] == ["hot", "hot-loops"]


def test_what_has_no_flows_is_seen_once() -> None:
    """It would be the same with any number of them."""
    assert {way.key for way in ALL_WAYS} - {way.key for way in chosen(Settings(flows=1, loops=LOOPS))} == {
        "secondary",
        "standby",
    }


@pytest.mark.parametrize(
    ("own", "longest"),
    [
        ({}, None),
        ({"break_us": {"busy_max": 20.0}, "threads": [{"restart": None}]}, 20.0),
        ({"break_us": {"busy_max": None}}, None),
        (
            {
                "break_us": {"busy_max": 20.0},
                "threads": [
                    {"restart": {"door": "fields", "gap_us": 30.0}},
                    {"restart": {"door": "fields", "gap_us": None}},
                    {"restart": {"door": "sleep", "gap_us": 9999.0}},  # it would have slept anyway
                ],
            },
            30.0,
        ),
    ],
)
def test_the_break_inside(own: dict[str, object], longest: float | None) -> None:
    assert inside_us(own) == longest


def test_a_summary() -> None:
    rows = [row(break_ms=float(number), lost=number) for number in range(1, 21)]
    rows[3]["kept"]["megaflows"] = False
    found = summary(rows)
    assert found["break_ms"] == [11.0, 20.0, 20.0]
    assert found["lost"] == [11, 20, 20]
    assert found["kept"] == {"process id": True, "megaflows": False}
    assert found["extra"]["hugepages_kb"] == [2048, 2048, 2048]
    assert found["tool"] == {"memory_kb": [1024] * 3, "cpu_s": [0.5] * 3}
    assert summary([row() | {"tool": None, "break_us": None}])["tool"] is None
