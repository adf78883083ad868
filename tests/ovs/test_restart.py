"""Threads whose own loop changed go on in the new build, with every packet and everything that they had.

The new build is the fixed one with patches/loops.patch: each loop has a further local variable and a changed body, and
says so in the log.  A guest's packets go round meanwhile and are counted one by one.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hotupgrade.vswitch import baseline
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.connections import connections, without_time
from hotupgrade.vswitch.guest import GuestOptions
from hotupgrade.vswitch.processes import end, wait_until
from hotupgrade.vswitch.switch import BRIDGE, Switch
from ovs import churn
from ovs.bed import bed, check_losses_are_accounted_for, check_nothing_lost, shares, warm_up
from ovs.harness import Document, attempt, check_goes_on, check_log, files, run_hotupgrade

# Each starts a switch and a guest that poll for ever, and reads builds beside them: more than ten seconds.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PATCHES = Path(__file__).parent / "patches"
#: Each loop that changed, the threads that run it, and how soon such a thread goes round.
LOOPS = {
    "pmd_thread_main": ("pmd-c", 1.0),
    "udpif_upcall_handler": ("handler", 1.0),
    "udpif_revalidator": ("revalidator", 1.0),
    "monitor_main": ("monitor", 1.0),
    "ovsrcu_postpone_thread": ("urcu", 6.0),
    "dpdk_watchdog": ("dpdk_watchdog", 6.0),
    "clean_thread_main": ("ct_clean", 25.0),
    "ipf_clean_thread_main": ("ipf_clean", 65.0),
}
AT_ONCE = ("pmd_thread_main", "udpif_upcall_handler", "udpif_revalidator")  # they are led out, the others sleep
MOST_GAP_US = 20_000  # only against gross mistakes: other processes share the polling thread's core at times


@pytest.fixture(scope="module")
def loops(build_variant: Callable[..., SwitchBuild]) -> SwitchBuild:
    return build_variant("loops", (PATCHES / "loops.patch").read_text())


@pytest.fixture(scope="module")
def stubborn(build_variant: Callable[..., SwitchBuild]) -> SwitchBuild:
    return build_variant("stubborn", (PATCHES / "stubborn.patch").read_text())


# What must stay.


@dataclass(frozen=True)
class State:
    """What a restart must not change, beside what :mod:`hotupgrade.vswitch.baseline` looks at."""

    baseline: baseline.Baseline
    affinities: dict[int, frozenset[int]]
    priorities: dict[int, tuple[str, ...]]
    polled: frozenset[object]
    megaflows: dict[str, int]
    connections: frozenset[str]
    lcores: tuple[str, ...]  # what the log says of DPDK's lcore ids: taken and given back
    disconnections: int


def take(switch: Switch) -> State:
    threads = switch.threads()
    return State(
        baseline=baseline.take(switch),
        affinities={thread: frozenset(os.sched_getaffinity(thread)) for thread in threads},
        priorities={thread: _priority(switch.pid, thread) for thread in threads},
        polled=frozenset(switch.rx_queues()),
        megaflows=switch.megaflows(),
        connections=without_time(connections(switch)),
        lcores=tuple(re.findall(r"PMD thread (?:uses|released) DPDK lcore \d+", switch.log())),
        disconnections=switch.log().count("connection has been destroyed"),
    )


def check_kept(before: State, switch: Switch) -> None:
    after = take(switch)
    assert [fact for fact in baseline.compare(before.baseline, after.baseline) if not fact.ok] == []
    assert after.affinities == before.affinities
    assert after.priorities == before.priorities
    assert after.polled == before.polled
    assert after.connections >= before.connections
    assert after.lcores == before.lcores
    assert after.disconnections == before.disconnections
    # Counters of megaflows go on: none was made anew.
    assert {key: count for key, count in before.megaflows.items() if after.megaflows.get(key, -1) < count} == {}


def _priority(pid: int, thread: int) -> tuple[str, ...]:
    """Nice value, real-time priority and scheduling policy."""
    fields = Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(")")[2].split()
    return (fields[16], fields[37], fields[38])


@contextmanager
def controller(switch: Switch) -> Iterator[None]:
    """An OpenFlow connection that must last."""
    program, target = switch.build.program("ovs-ofctl"), switch.directory / f"{BRIDGE}.mgmt"
    environment = switch.build.environment(switch.directory)
    process = subprocess.Popen(
        [program, "monitor", f"unix:{target}", "watch:"], env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        time.sleep(0.2)
        assert process.poll() is None
        yield
        assert process.poll() is None, "the controller was disconnected"
    finally:
        end(process)


# What a restart says and shows.


def restarts(document: Document) -> dict[str, list[dict[str, Any]]]:
    """The threads that were restarted, by the function of their loop."""
    found: dict[str, list[dict[str, Any]]] = {}
    for thread in document["threads"]:
        if thread["restart"] is not None:
            found.setdefault(thread["restart"]["function"], []).append({**thread, **thread["restart"]})
    return found


def check_restarted(document: Document, switch: Switch, *functions: str) -> None:
    """Each loop's threads, all of them, were led into the other build."""
    found, names = restarts(document), switch.threads()
    assert found.keys() == set(functions or LOOPS)
    for function, threads in found.items():
        prefix = LOOPS[function][0]
        assert {thread["tid"] for thread in threads} == {tid for tid, name in names.items() if name.startswith(prefix)}
        for thread in threads:
            # One that slept may have woken up, and come round, while the upgrade was still at work.
            assert thread["state"] in ("arrived", "sleeping")[: 1 if function in AT_ONCE else 2], thread
    for thread in found["pmd_thread_main"]:
        assert thread["door"] == "fields"
        if thread["gap_us"] is not None:
            assert 0 < thread["gap_us"] < MOST_GAP_US, thread


def said(switch: Switch, function: str) -> int:
    """How often threads of this loop have said that they are in the second build."""
    return len(re.findall(rf"second build: {function}\b", switch.log()))


def wait_for_all_to_say_so(switch: Switch, before: dict[str, int], *functions: str) -> None:
    for function in functions:
        seconds = LOOPS[function][1]
        wait_until(lambda name=function: said(switch, name) > before[name], seconds, f"{function} of the second build")


def spoken(switch: Switch) -> dict[str, int]:
    return {function: said(switch, function) for function in LOOPS}


# There and back.


def upgrade(switch: Switch, build: SwitchBuild) -> Document:
    return _until_done(switch, "upgrade", *files(build))


def rollback(switch: Switch) -> Document:
    return _until_done(switch, "rollback")


def _until_done(switch: Switch, command: str, *words: str) -> Document:
    """A crowded machine may make any moment a bad one: then nothing has changed, and the next may do."""
    for _ in range(5):
        code, document = attempt(command, switch, *words)
        if document["outcome"] == "done":
            return document
        assert (document["outcome"], code) == ("not-now", 4), document
    raise AssertionError(document)


@pytest.mark.full
def test_every_loop_goes_on_in_the_new_build(fixed: SwitchBuild, loops: SwitchBuild) -> None:
    with bed(fixed) as (switch, guest), churn.monitored_port(switch), controller(switch):
        guest.circulate()
        churn.add_connections(switch, 20)
        before, silence = take(switch), spoken(switch)
        assert set(silence.values()) == {0}
        document = upgrade(switch, loops)
        check_restarted(document, switch)
        check_kept(before, switch)
        churn.change_ports(switch, 1)  # something for RCU to do
        wait_for_all_to_say_so(switch, silence, *LOOPS)
        check_log(switch.log())
        check_nothing_lost(switch, guest)


def test_there_and_back(fixed: SwitchBuild, loops: SwitchBuild) -> None:
    quick = [function for function in LOOPS if LOOPS[function][1] <= 1 and function != "monitor_main"]
    with bed(fixed) as (switch, guest), controller(switch):
        guest.circulate()
        before, silence = take(switch), spoken(switch)
        check_restarted(upgrade(switch, loops), switch, *(LOOPS.keys() - {"monitor_main"}))
        wait_for_all_to_say_so(switch, silence, *quick)
        check_kept(before, switch)
        check_restarted(rollback(switch), switch, *(LOOPS.keys() - {"monitor_main"}))
        check_kept(before, switch)
        heard = spoken(switch)
        churn.change_ports(switch, 1)  # a reload, which the second build would tell
        assert {name: said(switch, name) - heard[name] for name in quick} == dict.fromkeys(quick, 0)
        check_restarted(upgrade(switch, loops), switch, *(LOOPS.keys() - {"monitor_main"}))
        wait_for_all_to_say_so(switch, heard, *quick)
        check_nothing_lost(switch, guest)
        check_log(switch.log())


@pytest.mark.parametrize("smc", [pytest.param(False, marks=pytest.mark.full), True])
def test_caches_stay_warm(fixed: SwitchBuild, loops: SwitchBuild, smc: bool) -> None:
    """One port's packets are in the exact match cache, the other's cannot be: the shares stay, and no packet of the
    first port had to be looked up again."""
    with bed(fixed, other_config={"smc-enable": str(smc).lower()}) as (switch, guest):
        guest.circulate()
        warm_up(switch)
        (before,) = shares(switch)
        (first,) = switch.pmd_statistics()
        upgrade(switch, loops)
        rollback(switch)
        (last,) = switch.pmd_statistics()
        (after,) = shares(switch)
        for share in ("simple_match", "emc", "smc", "megaflow", "upcalls"):
            assert getattr(after, share) == pytest.approx(getattr(before, share), abs=0.02), (before, after)
        window = last.since(first)
        assert window.upcalls + window.failed_upcalls == 0
        assert window.emc_hits == pytest.approx(window.packets / 2, rel=0.02)
        assert not smc or window.megaflow_hits == 0, window
        check_nothing_lost(switch, guest)


@pytest.mark.parametrize("shape", ["queues", "loaded", "two-threads", "one-without-queues"])
def test_other_shapes(fixed: SwitchBuild, loops: SwitchBuild, shape: str) -> None:
    cores = tuple(sorted(os.sched_getaffinity(0))[-2:])
    look = GuestOptions(queues=2, bursts=4) if shape == "queues" else GuestOptions()
    two = shape in ("two-threads", "one-without-queues")
    with bed(fixed, look, null_ports=2 * (shape == "loaded"), pmd_cores=cores if two else ()) as (switch, guest):
        if shape == "one-without-queues":
            for port in ("vhost1", "vhost2"):
                switch.vsctl("set", "interface", port, f"other_config:pmd-rxq-affinity=0:{cores[-1]}")
            assert {queue.core for queue in switch.rx_queues()} == {cores[-1]}
        guest.circulate()
        before, silence = take(switch), spoken(switch)
        document = upgrade(switch, loops)
        check_restarted(document, switch, *(LOOPS.keys() - {"monitor_main"}))
        threads = restarts(document)["pmd_thread_main"]
        assert len(threads) == (2 if two else 1)
        wait_until(
            lambda: said(switch, "pmd_thread_main") >= silence["pmd_thread_main"] + len(threads), 10, "each to say so"
        )
        check_kept(before, switch)
        check_restarted(rollback(switch), switch, *(LOOPS.keys() - {"monitor_main"}))
        check_kept(before, switch)
        check_nothing_lost(switch, guest)
        check_log(switch.log())


# An operator who does not wait.


@pytest.mark.parametrize("last", ["upgraded", "rolled back"])
def test_polling_threads_end_for_good_afterwards(fixed: SwitchBuild, loops: SwitchBuild, last: str) -> None:
    """Nothing that a restart left out is left out of a real end."""
    with bed(fixed) as (switch, guest):
        guest.circulate()
        upgrade(switch, loops)
        if last == "rolled back":
            rollback(switch)
        before = take(switch)
        churn.replace_polling_threads(switch)
        released = [words for words in take(switch).lcores if "released" in words]
        assert len(released) == len([words for words in before.lcores if "released" in words]) + 2
        churn.change_everything(switch, 1)
        for turn in range(3):
            churn.rebalance(switch, turn)
        check_losses_are_accounted_for(switch, guest, others=True)
        check_log(switch.log())


@pytest.mark.parametrize("end_of_it", [churn.delete_bridge, churn.leave])
@pytest.mark.parametrize("last", ["upgraded", "rolled back"])
def test_ends_cleanly_afterwards(
    fixed: SwitchBuild, loops: SwitchBuild, last: str, end_of_it: Callable[[Switch], None]
) -> None:
    with bed(fixed) as (switch, guest), churn.monitored_port(switch):
        guest.circulate()
        upgrade(switch, loops)
        if last == "rolled back":
            rollback(switch)
        end_of_it(switch)
        assert guest.alive
        check_log(switch.log())
        if end_of_it is churn.delete_bridge:
            churn.leave(switch)
            check_log(switch.log())


@pytest.mark.full
def test_changes_meanwhile(fixed: SwitchBuild, loops: SwitchBuild) -> None:
    """Flows, ports, bridges and queues come and go while threads are restarted."""
    changes = (churn.change_flows, churn.change_ports, churn.change_bridges, churn.rebalance)
    with bed(fixed) as (switch, guest):
        guest.circulate()
        actions = [lambda turn, change=change: change(switch, turn) for change in changes]
        with churn.in_background(*actions) as done:
            churn.wait_for(done, 1)
            for _ in range(5):
                at_begin = list(done)
                upgrade(switch, loops)
                rollback(switch)
                churn.wait_for(done, 1, at_begin)
                assert switch.alive
        check_losses_are_accounted_for(switch, guest, others=True)
        check_log(switch.log())


@pytest.mark.full
def test_often(fixed: SwitchBuild, loops: SwitchBuild) -> None:
    with bed(fixed) as (switch, guest):
        guest.circulate()
        before = take(switch)
        for _ in range(10):
            upgrade(switch, loops)
            rollback(switch)
        check_kept(before, switch)
        check_nothing_lost(switch, guest)
        check_log(switch.log())


# A thread that does not leave.


@contextmanager
def told(switch: Switch, what: str) -> Iterator[None]:
    """Have the polling threads of the stubborn build refuse: "stubborn" or "deaf"."""
    file = switch.directory / what
    file.touch()
    try:
        yield
    finally:
        file.unlink()


def code(switch: Switch) -> str:
    """A digest of all code of the libraries that an upgrade would change."""
    digest = hashlib.sha256()
    with open(f"/proc/{switch.pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{switch.pid}/maps").read_text().splitlines():
            if re.search(r" r-xp .*/lib(openvswitch|ofproto)-", line):
                low, high = (int(part, 16) for part in line.split()[0].split("-"))
                memory.seek(low)
                digest.update(memory.read(high - low))
    return digest.hexdigest()


@pytest.mark.parametrize("how", ["stubborn", pytest.param("deaf", marks=pytest.mark.full)])
def test_a_thread_that_does_not_leave_stays(stubborn: SwitchBuild, loops: SwitchBuild, how: str) -> None:
    """All or nothing: the switch is as it was before, and the same upgrade works as soon as the thread listens."""
    with bed(stubborn) as (switch, guest), controller(switch):
        guest.circulate()
        before, text, silence = take(switch), code(switch), spoken(switch)
        with told(switch, how):
            number, document = attempt("upgrade", switch, *files(loops))
            assert (document["outcome"], number) == ("not-now", 4)
            assert any("pmd_thread_main" in reason["text"] for reason in document["reasons"]), document["reasons"]
            guest.wait_for(10_000)
        assert run_hotupgrade(["status", str(switch.pid), "--json"])["generation"] == 0
        assert code(switch) == text
        assert said(switch, "pmd_thread_main") == 0
        check_kept(before, switch)
        churn.rebalance(switch, 1)
        churn.change_ports(switch, 1)
        assert said(switch, "pmd_thread_main") == 0

        upgrade(switch, loops)
        wait_for_all_to_say_so(switch, silence, *AT_ONCE)
        check_kept(before, switch)
        rollback(switch)
        assert code(switch) == text
        churn.replace_polling_threads(switch)
        check_nothing_lost(switch, guest)
        check_log(switch.log())


@pytest.mark.parametrize("how", ["stubborn", "deaf"])
def test_a_thread_that_does_not_leave_the_new_build(fixed: SwitchBuild, stubborn: SwitchBuild, how: str) -> None:
    """A rollback is all or nothing as well."""
    with bed(fixed) as (switch, guest):
        guest.circulate()
        before, text = take(switch), code(switch)
        document = upgrade(switch, stubborn)
        check_restarted(document, switch, "pmd_thread_main")
        upgraded = code(switch)
        with told(switch, how):
            number, document = attempt("rollback", switch)
            assert (document["outcome"], number) == ("not-now", 4)
            guest.wait_for(10_000)
        assert run_hotupgrade(["status", str(switch.pid), "--json"])["generation"] == 1
        assert code(switch) == upgraded
        check_kept(before, switch)
        check_restarted(rollback(switch), switch, "pmd_thread_main")
        assert code(switch) == text
        check_kept(before, switch)
        check_goes_on(before.baseline, switch)
        check_nothing_lost(switch, guest)
        check_log(switch.log())
