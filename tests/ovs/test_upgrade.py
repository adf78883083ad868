"""The demonstration's steps on the real switch at full speed, one by one, by the command line."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hotupgrade.vswitch import baseline, vulnerability
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.demo import LIBRARIES, run_hotupgrade
from hotupgrade.vswitch.switch import BRIDGE, Switch

Document = dict[str, Any]


def files(build: SwitchBuild) -> list[str]:
    return [str(build.library(name)) for name in LIBRARIES]


def upgrade(switch: Switch, *words: str) -> Document:
    document = run_hotupgrade(["upgrade", str(switch.pid), *words, "--json"])
    assert document["outcome"] == "done", document["reasons"]
    return document


def rollback(switch: Switch) -> Document:
    document = run_hotupgrade(["rollback", str(switch.pid), "--json"])
    assert document["outcome"] == "done", document["reasons"]
    return document


def holes(switch: Switch) -> list[bool]:
    """For every probe whether the switch is vulnerable."""
    return [finding.vulnerable for finding in vulnerability.examine(switch)]


ALL, NONE = [True] * len(vulnerability.PROBES), [False] * len(vulnerability.PROBES)


def check_goes_on(before: baseline.Baseline, switch: Switch, *, same_threads: bool = True) -> None:
    """It is the same switch, and packets flow."""
    wrong = [fact for fact in baseline.compare(before, baseline.take(switch)) if not fact.ok]
    assert not [fact for fact in wrong if same_threads or fact.name != "threads"]


def check_forwards(switch: Switch) -> None:
    rate = switch.rate(0.4)
    assert rate.packets > 1000, rate
    assert switch.alive


def check_log(log: str) -> None:
    """Nothing that a program says when it falls over."""
    wrong = ("|EMER|", "assertion", "Segmentation", "SIGSEGV", "terminated by", "double free", "corrupt", "panic")
    assert [line for line in log.splitlines() if any(word in line for word in wrong)] == []


# What would be done.


def test_check_finds_what_the_patches_changed(switch: Switch, fixed: SwitchBuild) -> None:
    document = run_hotupgrade(["check", str(switch.pid), *files(fixed), "--json"])
    assert (document["verdict"], document["exit_code"], document["reasons"]) == ("upgradable", 0, [])
    modules = {module["name"].partition("-")[0]: module for module in document["modules"]}
    assert modules.keys() == set(LIBRARIES)
    library = modules["libopenvswitch"]["functions"]
    assert set(library["changed"]) == {"classifier_lookup__", "netdev_tc_flow_put"}
    assert set(library["dragged"]) == {"classifier_lookup"}
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


@pytest.mark.parametrize("option", ["--whole", "--imports"])
def test_other_ways_to_replace(switch: Switch, fixed: SwitchBuild, option: str) -> None:
    before = baseline.take(switch)
    plain = run_hotupgrade(["upgrade", str(switch.pid), *files(fixed), "--dry-run", "--json"])
    document = upgrade(switch, *files(fixed), option)
    assert document["edits"]["count"] > plain["edits"]["count"] * (100 if option == "--whole" else 1)
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


def change_everything(switch: Switch, turn: int) -> None:
    """Add, see and take away a flow, ports of two kinds and a bridge; ask the daemon itself."""
    change_flows(switch, turn)
    change_ports(switch, turn)
    switch.vsctl("add-port", BRIDGE, f"tap{turn}", "--", "set", "interface", f"tap{turn}", "type=internal")
    assert any(f"tap{turn} " in port for port in switch.ports())
    switch.vsctl("del-port", BRIDGE, f"tap{turn}")
    switch.vsctl("add-br", f"extra{turn}", "--", "set", "bridge", f"extra{turn}", "datapath_type=netdev")
    assert f"extra{turn}" in switch.bridges()
    switch.vsctl("del-br", f"extra{turn}")
    assert "pmd" in switch.appctl("dpif-netdev/pmd-rxq-show")
    assert "null1" in switch.appctl("dpif/show")
    switch.appctl("upcall/show")
    switch.appctl("memory/show")


def change_flows(switch: Switch, turn: int) -> None:
    rules = (f"table=4,priority={priority},udp,tp_dst={1 + turn % 1000},actions=drop" for priority in range(1, 21))
    switch.ofctl("add-flows", BRIDGE, "-", text="\n".join(rules) + "\n")
    assert sum("table=4" in flow.rule for flow in switch.flows()) == 20
    switch.ofctl("del-flows", BRIDGE, "table=4")
    assert not any("table=4" in flow.rule for flow in switch.flows())


def change_ports(switch: Switch, turn: int) -> None:
    """A further DPDK port: the polling thread is made to load its queues anew, twice."""
    name, device = f"more{turn}", f"net_null{100 + turn}"
    settings = ["type=dpdk", f'options:dpdk-devargs="{device}"', "options:n_rxq=1"]
    switch.vsctl("add-port", BRIDGE, name, "--", "set", "interface", name, *settings)
    assert any(f" {name} " in port for port in switch.ports())
    switch.vsctl("del-port", BRIDGE, name)


@contextmanager
def in_background(*actions: Callable[[int], None]) -> Iterator[list[int]]:
    """Repeat each action in a thread of its own; gives how often each was done.  Its errors are raised at the end."""
    counts, errors, over = [0] * len(actions), [], threading.Event()

    def repeat(index: int, action: Callable[[int], None]) -> None:
        for turn in itertools.count(10):
            if over.is_set():
                return
            try:
                action(turn)
            except BaseException as error:
                errors.append(error)
                return
            counts[index] += 1

    threads = [threading.Thread(target=repeat, args=pair, daemon=True) for pair in enumerate(actions)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        over.set()
        for thread in threads:
            thread.join(60)
    if errors:
        raise errors[0]


def wait_for(counts: list[int], more: int, since: list[int] | None = None, limit: float = 30) -> None:
    """Until every action was done ``more`` times."""
    start, deadline = since or [0] * len(counts), time.monotonic() + limit
    while any(count - begin < more for count, begin in zip(counts, start, strict=True)):
        assert time.monotonic() < deadline, f"the changes do not get on: {counts}"
        time.sleep(0.02)


# Often, and to the end.


@pytest.mark.slow
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
        daemon, pid = switch._daemon, switch.pid
        assert daemon is not None
        switch.appctl("exit", "--cleanup")
        assert daemon.wait(20) == 0
        check_log(switch.log())
    assert not Path(f"/proc/{pid}").exists()


def mappings(switch: Switch) -> list[str]:
    """Mappings of files: anonymous ones come and go with the program's own work."""
    lines = Path(f"/proc/{switch.pid}/maps").read_text().splitlines()
    return [line for line in lines if len(line.split()) > 5 and not line.split()[5].startswith("[")]


def size(switch: Switch) -> dict[str, int]:
    process = Path(f"/proc/{switch.pid}")
    private = sum(
        int(line.split()[1])
        for line in (process / "smaps_rollup").read_text().splitlines()
        if line.startswith(("Private_Clean", "Private_Dirty"))
    )
    return {
        "maps": len((process / "maps").read_text().splitlines()),
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": len(switch.threads()),
        "private_kb": private,
    }
