"""What became of each thread, and where the time of a restart went."""

from __future__ import annotations

from typing import Any

import pytest

from hotupgrade.report.restarts import Restart, became, groups, longest_gap, restarts, summary
from unit.report import samples


def by_name(document: dict[str, Any]) -> dict[str, Restart]:
    return {one.name: one for one in restarts(document)}


def parts_of(one: Restart, group_left: float | None = None) -> dict[str, tuple[float, float]]:
    return {part.kind: (part.begin, part.end) for part in one.parts(group_left)}


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"threads": None},
        {"threads": [None, 3, {}, {"restart": None}, {"restart": []}, {"restart": {}}]},
        samples.upgrade(),
    ],
)
def test_without_restarts_nothing_is_said(document: dict[str, Any]) -> None:
    assert restarts(document) == []
    assert groups(restarts(document)) == []
    assert longest_gap(restarts(document)) is None
    assert summary(document) == ""


@pytest.mark.parametrize(
    "row",
    [
        {"state": 3},
        {"state": "arrived", "begin_us": "soon", "out_us": 3.0, "in_us": 1.0},
        {"state": "arrived", "begin_us": 3.0, "out_us": None, "in_us": 1.0, "gap_us": float("nan")},
        {"state": "arrived", "taken_us": [3, [1], "ab", [2.0, 1.0], [None, 1.0], ["a", "b"]]},
        {"state": "arrived", "taken_us": "no list", "skipped": 3},
    ],
)
def test_what_is_not_known_of_a_restart_is_left_out(row: dict[str, Any]) -> None:
    (one,) = restarts({"threads": [{"restart": row}]})
    assert not one.moved
    assert one.parts() == []
    assert one.taken == ()
    assert one.taken_us == 0.0
    assert one.lost is None


def test_each_thread_is_parked_or_restarted_by_a_door_or_restarts_when_it_wakes() -> None:
    document = samples.upgrade_with_restarts(1)
    assert {row["name"]: became(row) for row in document["threads"]} == {
        "main": "only parked",
        "pmd-c00": "restarted by its own door",
        "handler6": "restarted by its group's latch",
        "revalidator7": "restarted by its group's latch",
        "watchdog": "restarts when its sleep ends",
    }


@pytest.mark.parametrize(
    ("state", "door", "words"),
    [
        ("arrived", "flag", "restarted by its safe point"),
        ("arrived", "sleep", "restarted as its sleep ended"),
        ("arrived", "a door of tomorrow", "restarted"),
        ("stayed", "fields", "did not leave its loop"),
        ("gone", "latch", "ended by itself"),
        ("a state of tomorrow", "fields", "a state of tomorrow"),
    ],
)
def test_other_ends_of_a_restart(state: str, door: str, words: str) -> None:
    assert became({"restart": {"state": state, "door": door}}) == words


def test_a_poller_works_on_until_its_last_work_in_the_old_code() -> None:
    pmd = by_name(samples.upgrade_with_restarts())["pmd-c00"]
    # Asked at 400, left at 640, first work in the new code at 650, which is 40 after the last in the old code began.
    assert parts_of(pmd) == {"on": (400.0, 610.0), "out": (610.0, 640.0), "in": (640.0, 650.0)}
    assert pmd.lost == 18.0 + 40.0 + 9.0


def test_work_that_began_before_the_thread_was_asked_is_no_time_after_it() -> None:
    row = samples.restarted(samples.thread("pmd", 1.0, 2.0, busy=True), "poll", "fields", 400.0, 5.0, 4.0, 40.0)
    (one,) = restarts({"threads": [row]})
    assert one.worked == 369.0
    assert parts_of(one) == {"out": (400.0, 405.0), "in": (405.0, 409.0)}


def test_those_of_a_group_wait_for_the_last_of_it() -> None:
    document = samples.upgrade_with_restarts()
    found = groups(restarts(document))
    assert [[one.name for one in group.members] for group in found] == [
        ["handler6", "revalidator7"],
        ["pmd-c00"],
        ["pmd-c01"],
    ]
    group = found[0]
    assert (group.asked, group.left, group.arrived, group.lasted) == (100.0, 171.0, 216.0, 116.0)
    assert parts_of(group.members[0], group.left) == {
        "out": (100.0, 120.0),
        "wait": (120.0, 171.0),
        "in": (171.0, 210.0),
    }
    assert parts_of(group.members[1], group.left) == {"out": (101.0, 171.0), "in": (171.0, 216.0)}


def test_parts_leave_no_gap() -> None:
    for group in groups(restarts(samples.upgrade_with_restarts())):
        for member in group.members:
            parts = member.parts(group.left)
            assert parts[0].begin == member.asked
            assert parts[-1].end == member.arrived
            assert sum(part.length for part in parts) == pytest.approx((member.arrived or 0) - (member.asked or 0))


def test_only_what_the_machine_took_of_the_gap_counts() -> None:
    document = samples.upgrade_with_restarts(1)
    # The gap is from 610 to 650.
    document["threads"][1]["restart"]["taken_us"] = [[400.0, 500.0], [600.0, 615.0], [645.0, 800.0], [900.0, 901.0]]
    assert by_name(document)["pmd-c00"].taken_us == 5.0 + 5.0


def test_a_summary_counts_the_kinds() -> None:
    assert summary(samples.upgrade_with_restarts(3)) == (
        "5 threads restarted, 1 restarts when its sleep ends; a busy one lost at most 40.0 µs by it"
    )
    document = samples.upgrade_with_restarts(0)
    document["threads"] = [document["threads"][-1]]
    assert summary(document) == "1 thread restarts when its sleep ends"
    document["threads"] *= 2
    assert summary(document) == "2 threads restart when their sleep ends"
