"""Threads of the real switch restarted over and over, under a guest's packets that are counted, while everything about
the switch changes: flows, ports, bridges, the assignment of queues, and now and then the polling threads themselves."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hotupgrade.vswitch.builds import SwitchBuild, find_build
from hotupgrade.vswitch.switch import Switch
from live.harness import DONE, Driver, HotUpgrade
from ovs import churn
from ovs.bed import bed, check_losses_are_accounted_for, shares
from ovs.harness import check_log

ROOT = Path(__file__).resolve().parents[2]
PATCH = ROOT / "tests" / "ovs" / "patches" / "loops.patch"
WANTED = 200
#: Loops whose threads are led out; the others sleep and enter the new code when their sleep ends.
AT_ONCE = ("pmd_thread_main", "udpif_upcall_handler", "udpif_revalidator")
#: How often the polling threads are ended for good, and how often the tool is killed, in turns.
REPLACED_EVERY, KILLED_EVERY = 20, 10
BETWEEN_CHANGES = 0.1  # seconds
DRIVER_TURNS = 50  # a command's process is made anew now and then


def _rebalance(switch: Switch, _: int) -> None:
    assert "pmd rxq rebalance requested" in switch.appctl("dpif-netdev/pmd-rxq-rebalance")


CHANGES: dict[str, Callable[[Switch, int], None]] = {
    "flows": churn.change_flows,
    "ports": churn.change_ports,
    "bridges": churn.change_bridges,
    "rebalances": _rebalance,
}


def _change(switch: Switch, done: dict[str, int], turn: int) -> None:
    """One thing after the other; a main thread that never comes to rest could not be held."""
    for name, change in CHANGES.items():
        change(switch, turn)
        done[name] = done.get(name, 0) + 1
        time.sleep(BETWEEN_CHANGES)


@dataclass
class Numbers:
    done: dict[str, int] = field(default_factory=lambda: {"upgrade": 0, "rollback": 0})
    not_now: list[str] = field(default_factory=list)
    kills: int = 0
    replaced: int = 0
    gaps: list[float] = field(default_factory=list)
    groups: list[float] = field(default_factory=list)
    states: dict[str, int] = field(default_factory=dict)
    packets: int = 0
    dropped: int = 0
    changes: dict[str, int] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)

    def count(self, document: dict[str, Any]) -> None:
        """What a restart cost, thread by thread."""
        restarts = [thread["restart"] for thread in document["threads"] if thread["restart"]]
        for restart in restarts:
            key = f"{restart['function']}: {restart['state']}"
            self.states[key] = self.states.get(key, 0) + 1
        self.gaps += [r["gap_us"] for r in restarts if r["function"] == "pmd_thread_main" and r["gap_us"]]
        group = [r for r in restarts if r["door"] == "latch" and r["in_us"] is not None]
        if group:
            left = min(r["begin_us"] + r["out_us"] for r in group)
            self.groups.append(max(r["begin_us"] + r["out_us"] + r["in_us"] for r in group) - left)

    def shown(self) -> dict[str, Any]:
        return {
            **{f"{command}s": count for command, count in self.done.items()},
            "not now": self.not_now,
            "kills": self.kills,
            "polling threads ended for good": self.replaced,
            "changes meanwhile": self.changes,
            "packets received by the guest": self.packets,
            "dropped while a bridge was deleted, as counted by the switch": self.dropped,
            "PMD, last poll to first poll, us (median, p95, max)": _quantiles(self.gaps),
            "handlers and revalidators, us (median, p95, max)": _quantiles(self.groups),
            "threads": self.states,
            "hits before and after": self.shares,
        }


def _quantiles(values: list[float]) -> list[float]:
    ordered = sorted(values)
    return [round(ordered[int((len(ordered) - 1) * part)], 1) for part in (0.5, 0.95, 1.0)] if ordered else []


def restarts(hu: HotUpgrade, seed: int, until: float, report: Callable[[Numbers], None]) -> bool:
    """Whether the goal was reached; what was done goes to ``report`` in any case."""
    numbers = Numbers()
    try:
        _restarts(hu, random.Random(seed), until, numbers)
    finally:
        report(numbers)
    return min(numbers.done.values()) >= WANTED


def _restarts(hu: HotUpgrade, chance: random.Random, until: float, numbers: Numbers) -> None:
    old, new = find_build("fixed", ROOT / "build" / "ovs"), _changed()
    files = [new.library(name) for name in ("libopenvswitch", "libofproto")]
    with bed(old) as (switch, guest), churn.monitored_port(switch), ExitStack() as resources:
        driver = resources.enter_context(Driver(hu))
        guest.circulate()
        churn.add_connections(switch, 20)
        time.sleep(1.5)
        numbers.shares["before"] = _shares(switch)
        turn = 0
        while min(numbers.done.values()) < WANTED and time.monotonic() < until:
            with churn.in_background(partial(_change, switch, numbers.changes)):
                for _ in range(REPLACED_EVERY):
                    turn += 1
                    if turn % DRIVER_TURNS == 0:
                        driver = resources.enter_context(Driver(hu))
                    _there_and_back(driver, switch, files, numbers)
                    if turn % KILLED_EVERY == 0:
                        _kill_once(hu, driver, switch, files, chance, numbers)
                    if time.monotonic() > until:
                        break
            assert guest.alive, "the guest has ended"
            # Whoever deletes a bridge has the switch drop what finds no megaflow meanwhile; nothing else may be lost.
            # So there are fewer and fewer packets, and all are put in again.
            numbers.dropped = check_losses_are_accounted_for(switch, guest, earlier=numbers.dropped)
            guest.circulate()
        time.sleep(1.5)
        numbers.shares["after"] = _shares(switch)
        numbers.dropped = check_losses_are_accounted_for(switch, guest, earlier=numbers.dropped)
        numbers.packets = sum(port.received for port in guest.ports())
        # What a real end needs must not have been skipped by any of it.
        churn.replace_polling_threads(switch)
        numbers.replaced += 1
        check_log(switch.log())
        churn.leave(switch)


def _there_and_back(driver: Driver, switch: Switch, files: Sequence[Path], numbers: Numbers) -> None:
    for command, words in (("upgrade", files), ("rollback", ())):
        answer = driver(command, switch.pid, *words, "--json", limit=60)
        assert switch.alive, f"{answer}\n{switch.log()[-2000:]}"
        if answer.outcome == "not-now":
            numbers.not_now.append(answer.document["reasons"][0]["text"])
            continue
        if answer.outcome == "refused" and command == "rollback":
            continue  # the upgrade before it was not possible then
        assert answer.code == DONE, str(answer)
        if answer.outcome == "done":  # the rollback before it may not have been possible
            numbers.done[command] += 1
            numbers.count(answer.document)


def _kill_once(
    hu: HotUpgrade, driver: Driver, switch: Switch, files: Sequence[Path], chance: random.Random, numbers: Numbers
) -> None:
    """Kill an upgrade at a random moment: the next command finds a switch that goes on, and puts the rest right."""
    process = hu.start("upgrade", switch.pid, *files, "--json")
    time.sleep(chance.uniform(0.3, 4.0))
    process.kill()
    process.communicate(timeout=10)
    numbers.kills += 1
    for _ in range(20):
        assert switch.alive, switch.log()[-2000:]
        status = driver("status", switch.pid, "--json")
        if status.code == DONE and not status.document["generation"]:
            return
        driver("rollback", switch.pid, "--json")
    raise AssertionError("a killed upgrade could not be taken back")


def _changed() -> SwitchBuild:
    words = [str(ROOT / "scripts" / "build-ovs"), "loops", "--from", "fixed", str(PATCH)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, timeout=600)
    return find_build("loops", ROOT / "build" / "ovs")


def _shares(switch: Switch) -> list[float]:
    (found,) = shares(switch)
    return [round(getattr(found, name), 3) for name in ("simple_match", "emc", "smc", "megaflow", "upcalls")]
