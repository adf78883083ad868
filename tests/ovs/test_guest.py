"""The test bed that restarts of threads are judged by, before anything is upgraded: no packet is lost but what the
switch itself says it dropped, a loss shows to the packet, and the caches' shares are as the traffic was made for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hotupgrade.errors import NotNow
from hotupgrade.vswitch import hugepages
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.connections import connections
from hotupgrade.vswitch.guest import Guest, GuestOptions
from hotupgrade.vswitch.processes import owner, wait_until
from hotupgrade.vswitch.switch import BRIDGE, Switch
from ovs import churn
from ovs.bed import bed, check_losses_are_accounted_for, check_nothing_lost, shares, warm_up
from ovs.harness import check_log

# Nothing is lost.


def test_packets_sent_are_packets_received(fixed: SwitchBuild) -> None:
    with bed(fixed) as (switch, guest):
        for _ in range(2):  # and again
            guest.circulate()
            guest.wait_for(100_000)
            check_nothing_lost(switch, guest)
        assert switch.datapath().lost == 0
        assert len(switch.megaflows()) == len(guest.options.sources())
        check_log(switch.log())


@pytest.mark.parametrize(
    ("queues", "null_ports", "cores"), [(2, 0, 1), (1, 2, 1), (1, 0, 2)], ids=["queues", "loaded", "two-threads"]
)
def test_other_shapes(fixed: SwitchBuild, queues: int, null_ports: int, cores: int) -> None:
    """More queues; beside ports that keep the polling thread busy for ever; two polling threads, one of them on the
    guest's own core."""
    pmd_cores = tuple(sorted(os.sched_getaffinity(0))[-cores:])
    look = GuestOptions(queues=queues, bursts=8 // queues)
    with bed(fixed, look, null_ports=null_ports, pmd_cores=pmd_cores) as (switch, guest):
        assert churn.polling_threads(switch).keys() == set(pmd_cores)
        assert len(switch.rx_queues()) == 2 * queues + null_ports
        guest.circulate()
        # Where two threads and the guest share a core, they take turns of milliseconds.
        guest.wait_for(20_000, seconds=90)
        assert len(switch.pmd_statistics()) == cores
        # One may have had its core all the while, and the other, which shares the guest's, not a turn yet.
        wait_until(lambda: all(pmd.packets > 1000 for pmd in switch.pmd_statistics()), 90, "each thread to get packets")
        # Of first packets the switch drops those whose upcall fails, as beside another thread's; it counts them.
        tally = guest.collect()
        assert tally.launched - tally.collected == tally.lost
        wait_until(lambda: sum(switch.drops().values()) >= tally.lost, 10, f"{tally.lost} drops to be counted")


def test_a_pause_loses_nothing(fixed: SwitchBuild) -> None:
    """All of the switch stands still for a while: what goes round fits into the rings."""
    with bed(fixed) as (switch, guest):
        guest.circulate()
        for milliseconds in (1, 10, 100):
            os.kill(switch.pid, signal.SIGSTOP)
            time.sleep(milliseconds / 1000)
            os.kill(switch.pid, signal.SIGCONT)
            time.sleep(0.05)
        guest.wait_for(10_000)
        check_nothing_lost(switch, guest)


# A loss is seen.


def test_a_loss_shows_to_the_packet(fixed: SwitchBuild) -> None:
    with bed(fixed) as (switch, guest):
        source = guest.options.sources()[5]
        carried = guest.options.launched(2) // len(guest.options.sources())  # packets from each address
        guest.circulate()
        guest.wait_for(10_000)
        switch.ofctl("add-flow", BRIDGE, f"table=0,priority=30,ip,nw_src={source},actions=drop")
        wait_until(lambda: is_dropped(switch, source), 10, "the datapath to drop what the rule says")
        guest.wait_for(10_000)  # all that go round have come by
        switch.ofctl("--strict", "del-flows", BRIDGE, f"table=0,priority=30,ip,nw_src={source}")
        tally = guest.collect()
        assert (tally.lost, tally.launched - tally.collected) == (carried, carried)
        assert not tally.whole


def is_dropped(switch: Switch, source: str) -> bool:
    return any(f"src={source}," in rule and rule.endswith("actions:drop") for rule in switch.megaflows())


def test_all_is_lost(fixed: SwitchBuild) -> None:
    with bed(fixed) as (switch, guest):
        guest.circulate()
        guest.wait_for(10_000)
        switch.ofctl("del-flows", BRIDGE)
        wait_until(lambda: guest.rate(0.3) == 0, 20, "the last packet to be dropped")
        tally = guest.collect()
        assert (tally.lost, tally.collected) == (tally.launched, 0)


# Every cache has its part.


@pytest.mark.parametrize("smc", [False, True])
def test_shares_of_the_caches(fixed: SwitchBuild, smc: bool) -> None:
    """One port's packets are looked up in the exact match cache, the other's are kept out of it."""
    with bed(fixed, other_config={"smc-enable": str(smc).lower()}) as (switch, guest):
        guest.circulate()
        warm_up(switch)
        (share,) = shares(switch)
        assert share.emc == pytest.approx(0.5, abs=0.05)
        assert (share.smc if smc else share.megaflow) == pytest.approx(0.5, abs=0.05)
        assert (share.megaflow if smc else share.smc) < 0.01
        assert share.simple_match == share.upcalls == 0
        check_nothing_lost(switch, guest)


# Nothing is lost whatever an operator does.


CHANGES: dict[str, Callable[[Switch, int], None]] = {
    "flows": churn.change_flows,
    "ports": churn.change_ports,
    "taps": churn.change_taps,
    "rebalance": churn.rebalance,
    "threads": churn.replace_polling_threads,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_lose_nothing(fixed: SwitchBuild, change: str) -> None:
    with bed(fixed) as (switch, guest):
        guest.circulate()
        for turn in range(3):
            CHANGES[change](switch, turn)
        guest.wait_for(10_000)
        check_nothing_lost(switch, guest)
        check_log(switch.log())


def test_bridges_lose_what_the_switch_says(fixed: SwitchBuild) -> None:
    """Open vSwitch removes a bridge with its upcalls locked out: a packet that finds no megaflow then is dropped."""
    with bed(fixed) as (switch, guest):
        guest.circulate()
        for turn in range(3):
            churn.change_bridges(switch, turn)
        check_losses_are_accounted_for(switch, guest)


def test_what_is_there_stays(fixed: SwitchBuild) -> None:
    with bed(fixed) as (switch, guest), churn.monitored_port(switch):
        guest.circulate()
        churn.add_connections(switch, 20)
        before = connections(switch)
        for change in CHANGES.values():
            change(switch, 1)
        assert connections(switch) >= before
        guest.wait_for(10_000)
        check_nothing_lost(switch, guest)


@pytest.mark.parametrize("end", [churn.delete_bridge, churn.leave])
def test_the_switch_leaves_its_guest(fixed: SwitchBuild, end: Callable[[Switch], None]) -> None:
    with bed(fixed) as (switch, guest):
        guest.circulate()
        guest.wait_for(10_000)
        end(switch)
        assert guest.alive
        assert switch.alive == (end is churn.delete_bridge)
        check_log(switch.log())


# The guest itself.


def test_leaves_nothing_behind(fixed: SwitchBuild) -> None:
    with bed(fixed) as (switch, guest):
        assert len(loans()) == 2  # the switch's and its own
        pid = guest.pid
        cores = {task: os.sched_getaffinity(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()}
        assert switch.options.cores()[1][0] not in set().union(*cores.values())
        guest.stop()
        assert not Path(f"/proc/{pid}").exists()
        assert not switch.vhost_socket(1).exists()
        assert len(loans()) == 1
        guest.stop()  # again, without effect
        with Guest(switch) as second:  # the switch takes up the next one
            second.circulate()
            second.wait_for(10_000)
            assert second.collect().whole
    assert loans() == []


def loans() -> list[Path]:
    """Hugepages that this process has on loan; how many there are at all depends on others, too."""
    return list(hugepages.LOANS.glob(f"{owner()}-*.loan"))


def test_says_what_is_wrong(fixed: SwitchBuild) -> None:
    with pytest.raises(NotNow, match="may overflow"):
        GuestOptions(bursts=100).check()
    with bed(fixed) as (_, guest):
        with pytest.raises(NotNow, match="set fwd nonsense"):
            guest.command("set fwd nonsense")
        os.kill(guest.pid, signal.SIGKILL)
        with pytest.raises(NotNow, match="ended"):
            guest.ports()
