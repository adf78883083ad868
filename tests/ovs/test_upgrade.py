"""The demonstration's steps on the real switch at full speed, one by one, by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotupgrade.vswitch import baseline, vulnerability
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.demo import LIBRARIES, run_hotupgrade
from hotupgrade.vswitch.switch import BRIDGE, Switch
from ovs.churn import change_everything, change_flows, change_ports, in_background, leave, wait_for
from ovs.harness import (
    ALL,
    NONE,
    check_forwards,
    check_goes_on,
    check_log,
    files,
    holes,
    mappings,
    rollback,
    size,
    upgrade,
)

# What would be done.


def test_check_finds_what_the_patches_changed(switch: Switch, fixed: SwitchBuild) -> None:
    document = run_hotupgrade(["check", str(switch.pid), *files(fixed), "--json"])
    assert (document["verdict"], document["exit_code"], document["reasons"]) == ("upgradable", 0, [])
    modules = {module["name"].partition("-")[0]: module for module in document["modules"]}
    assert modules.keys() == set(LIBRARIES)
    library = modules["libopenvswitch"]["functions"]
    assert set(library["changed"]) == {"classifier_lookup__", "netdev_tc_flow_put"}
    assert library["dragged"] == []
    assert set(library["added"]) == {"mf_set_mask_l3_prereqs"}
    assert library["removed"] == []
    protocol = modules["libofproto"]["functions"]
    assert set(protocol["changed"]) == {"do_xlate_actions"}
    assert (protocol["added"], protocol["removed"]) == ([], [])
    for module in modules.values():
        assert module["objects"]["resized"] == []
        assert module["objects"]["new"] == []


def test_looking_and_dry_runs_change_nothing(switch: Switch, fixed: SwitchBuild) -> None:
    before, maps = baseline.take(switch), mappings(switch)
    run_hotupgrade(["check", str(switch.pid), *files(fixed), "--json"])
    run_hotupgrade(["inspect", str(switch.pid), "--json"])
    document = run_hotupgrade(["upgrade", str(switch.pid), *files(fixed), "--dry-run", "--json"])
    assert document["outcome"] == "dry-run"
    assert document["edits"]["count"] > 0
    assert mappings(switch) == maps
    assert holes(switch) == ALL
    check_goes_on(before, switch)


# Doing it.


def test_upgrade_rollback_upgrade(switch: Switch, fixed: SwitchBuild) -> None:
    before = baseline.take(switch)
    assert holes(switch) == ALL
    first = upgrade(switch, *files(fixed), "--measure-empty")
    assert (first["generation"], len(first["modules"])) == (1, 2)
    assert first["break_us"]["busy_max"] is not None
    assert first["empty_stop_us"]["busy_max"] is not None
    assert any(row["busy"] and row["name"].startswith("pmd") and row["how"] == "signal" for row in first["threads"])
    assert first["memory_bytes"] <= 4_000_000
    assert holes(switch) == NONE
    check_goes_on(before, switch)

    status = run_hotupgrade(["status", str(switch.pid), "--json"])
    assert status["generation"] == 1
    assert [entry["active"] for entry in status["generations"]] == [True]

    assert rollback(switch)["generation"] == 0
    assert holes(switch) == ALL
    check_goes_on(before, switch)

    again = upgrade(switch, *files(fixed))
    assert all(module["reused"] for module in again["modules"])
    assert holes(switch) == NONE
    check_goes_on(before, switch)
    check_log(switch.log())


@pytest.mark.parametrize("options", [["--whole"], ["--whole", "--imports"]], ids=" ".join)
def test_other_ways_to_replace(switch: Switch, fixed: SwitchBuild, options: list[str]) -> None:
    before = baseline.take(switch)
    less = run_hotupgrade(["upgrade", str(switch.pid), *files(fixed), *options[:-1], "--dry-run", "--json"])
    document = upgrade(switch, *files(fixed), *options)
    assert document["edits"]["count"] > less["edits"]["count"] + 100
    assert holes(switch) == NONE
    check_goes_on(before, switch)
    switch.ofctl("add-flow", BRIDGE, "table=2,priority=7,tcp,actions=drop")
    assert any("table=2" in flow.rule for flow in switch.flows())
    switch.ofctl("--strict", "del-flows", BRIDGE, "table=2,priority=7,tcp")
    rollback(switch)
    assert holes(switch) == ALL
    check_goes_on(before, switch)
    check_log(switch.log())


def test_one_library_after_the_other(switch: Switch, fixed: SwitchBuild) -> None:
    """The second needs a function that only the first's new build has."""
    before = baseline.take(switch)
    library, protocol = files(fixed)
    upgrade(switch, library)
    first = holes(switch)
    assert first != ALL, "the new libopenvswitch does not run"
    assert upgrade(switch, protocol)["generation"] == 2
    assert holes(switch) == NONE
    check_goes_on(before, switch)
    rollback(switch)
    assert holes(switch) == first
    rollback(switch)
    assert holes(switch) == ALL
    check_goes_on(before, switch)


# An operator who does not wait.


def test_changes_before_during_and_after(switch: Switch, fixed: SwitchBuild) -> None:
    change_everything(switch, 1)
    before = baseline.take(switch)
    with in_background(lambda turn: change_flows(switch, turn), lambda turn: change_ports(switch, turn)) as done:
        wait_for(done, 1)
        for step in (1, 2):
            at_begin = list(done)
            upgrade(switch, *files(fixed))
            assert holes(switch) == NONE
            rollback(switch)
            assert holes(switch) == ALL
            wait_for(done, 1, at_begin)
            assert switch.alive, f"step {step}"
        upgrade(switch, *files(fixed))
    assert holes(switch) == NONE
    # The switch itself starts its handlers anew when ports and bridges change.
    check_goes_on(before, switch, same_threads=False)
    change_everything(switch, 2)
    check_goes_on(before, switch, same_threads=False)
    check_forwards(switch)
    check_log(switch.log())


# Often, and to the end.


@pytest.mark.full
@pytest.mark.timeout(240)
def test_ten_times_back_and_forth(switch: Switch, fixed: SwitchBuild) -> None:
    before = baseline.take(switch)
    upgrade(switch, *files(fixed))
    rollback(switch)
    first = size(switch)
    for turn in range(10):
        upgrade(switch, *files(fixed), *(["--whole"] if turn == 5 else []))
        assert holes(switch) == NONE
        rollback(switch)
        assert holes(switch) == ALL
        if turn == 5:  # a whole image is placed once more, and stays
            first = size(switch)
    last = size(switch)
    assert last["maps"] <= first["maps"] + 4
    assert last["descriptors"] <= first["descriptors"]
    assert last["threads"] == first["threads"]
    assert last["private_kb"] <= first["private_kb"] + 2048
    check_goes_on(before, switch)
    check_log(switch.log())


@pytest.mark.parametrize("last", ["upgraded", "rolled back", "whole"])
def test_ends_cleanly_afterwards(vulnerable: SwitchBuild, fixed: SwitchBuild, last: str) -> None:
    """All destructors, all exit handlers, every thread joined: with code of both builds in force."""
    with Switch(vulnerable) as switch:
        vulnerability.prepare(switch)
        upgrade(switch, *files(fixed), *(["--whole"] if last == "whole" else []))
        if last == "rolled back":
            rollback(switch)
        pid = switch.pid
        leave(switch)
        check_log(switch.log())
    assert not Path(f"/proc/{pid}").exists()
