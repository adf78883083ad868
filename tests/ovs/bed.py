"""A switch with a guest whose packets are counted one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.guest import Guest, GuestOptions, rules
from hotupgrade.vswitch.processes import wait_until
from hotupgrade.vswitch.statistics import Shares
from hotupgrade.vswitch.switch import Switch, SwitchOptions

COMMAND_SECONDS = 60.0  # on a crowded machine
ENOUGH_PACKETS = 5_000
WARM_SECONDS = 60.0
COUNTED_SECONDS = 5.0  # until polling threads have counted what they dropped
ENDLESS = "table=0,priority=20,in_port={},actions=output:{}"


@contextmanager
def bed(
    build: SwitchBuild,
    guest: GuestOptions | None = None,
    *,
    null_ports: int = 0,
    pmd_cores: tuple[int, ...] = (),
    other_config: dict[str, str] | None = None,
) -> Iterator[tuple[Switch, Guest]]:
    """A switch and its guest, before the first packet."""
    look = guest or GuestOptions()
    connected = rules(look, null_ports + 1, null_ports + 2)
    loaded = [ENDLESS.format(port, port + 1 if port % 2 else port - 1) for port in range(1, null_ports + 1)]
    options = SwitchOptions(
        ports=null_ports,
        vhost_ports=2,
        rules=(*connected, *loaded),
        pmd_cores=pmd_cores,
        other_config=other_config,
        command_timeout=COMMAND_SECONDS,
    )
    with Switch(build, options) as switch, Guest(switch, (1, 2), look) as running:
        yield switch, running


def check_nothing_lost(switch: Switch, guest: Guest) -> None:
    """End the circulation; by the counts of both sides not one packet is missing."""
    tally = guest.collect()
    assert tally.whole, (tally, switch.datapath())
    counted = {port.name: port for port in switch.datapath().ports}
    for name, port in zip(("vhost1", "vhost2"), guest.ports(), strict=True):
        assert (counted[name].received, counted[name].sent) == (port.sent, port.received), name
        assert (counted[name].receive_dropped, counted[name].send_dropped) == (0, 0), name
        assert (port.missed, port.receive_errors, port.no_buffer, port.send_errors) == (0, 0, 0, 0)


def check_losses_are_accounted_for(switch: Switch, guest: Guest, *, others: bool = False, earlier: int = 0) -> int:
    """End the circulation; what is missing is what the switch, while it locked out upcalls, dropped and counted.

    ``others``: there were other ports with traffic, whose packets may have been dropped as well.  ``earlier``: what
    was missing after circulations before this one.  Returns that and what is missing now.
    """
    tally = guest.collect()
    assert tally.dropped == 0
    assert tally.launched - tally.collected == tally.lost
    lost = earlier + tally.lost
    wait_until(lambda: locked_out(switch) >= lost, COUNTED_SECONDS, f"{lost} drops to be counted")
    assert others or locked_out(switch) == lost, (tally, earlier, switch.drops())
    return lost


def locked_out(switch: Switch) -> int:
    """Packets that found no megaflow while upcalls were locked out, as when a bridge is removed."""
    return switch.drops().get("lock_error", 0)


def shares(switch: Switch, seconds: float = 0.5) -> list[Shares]:
    """By polling thread, in a window from now: of ``seconds``, or until there are enough packets to tell."""
    before, begin = switch.pmd_statistics(), time.monotonic()
    while True:
        time.sleep(seconds)
        window = [now.since(then) for then, now in zip(before, switch.pmd_statistics(), strict=True)]
        if sum(pmd.packets for pmd in window) > ENOUGH_PACKETS or time.monotonic() - begin > WARM_SECONDS:
            return [pmd.shares() for pmd in window]


def warm_up(switch: Switch) -> None:
    """Wait until the exact match cache, which remembers one packet in a hundred, has got to know one port's flows;
    packets of the other port are kept out of it."""
    switch.vsctl("set", "interface", "vhost2", "other_config:emc-enable=false")
    wait_until(lambda: shares(switch)[0].emc > 0.48, WARM_SECONDS, "the exact match cache to know every flow")
