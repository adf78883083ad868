"""Two main processes: a second, complete switch beside the first, and the traffic is moved over to it.

The second has a database, a run directory, hugepages and ports of its own: each of the two has a virtual function of a
card for each wire (:mod:`hotupgrade.vswitch.compare.card`).  Flows are copied from the first; nothing else can be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare import hosts
from hotupgrade.vswitch.compare.bed import PAIRS, RING, Bed, SwitchBed, furnish, options
from hotupgrade.vswitch.compare.card import Card, card, card_at
from hotupgrade.vswitch.compare.controller import Controller, controller
from hotupgrade.vswitch.compare.cores import polling
from hotupgrade.vswitch.compare.hosts import Hosts
from hotupgrade.vswitch.compare.network import Network
from hotupgrade.vswitch.compare.usage import usage
from hotupgrade.vswitch.compare.ways import Document, Way, Works, rules
from hotupgrade.vswitch.started import Started
from hotupgrade.vswitch.switch import Switch, SwitchOptions

#: After the move the first switch still forwards what it has in its rings.
DRAIN_S = 0.2


class Twins(Started):
    """``switch`` forwards now, on the card's function ``place``; the other function is for the next one."""

    def __init__(self, made: Card, build: SwitchBuild, describe: Callable[[Network], SwitchOptions]) -> None:
        """``describe``: what a switch at a function of the card is like."""
        self.card, self.place = made, 0
        self._build, self._describe = build, describe
        self._resources = ExitStack()

    def stop(self) -> None:
        self._resources.close()

    def _start(self) -> None:
        self.switch, self.control = self._started(self._build, self.place, self._resources)

    def move_over(self, build: SwitchBuild) -> Document:
        """Start the second switch, restore the flows, move the traffic, end the first."""
        first, place = self.switch, 1 - self.place
        with ExitStack() as undo:
            second, control = self._started(build, place, undo)
            for bridge in first.bridges():
                second.ofctl("add-flows", bridge, "-", text="\n".join(rules(first, bridge)) + "\n")
            peak = usage((*first.processes, *second.processes))
            self.card.plug(place)
            before, self._resources = self._resources, undo.pop_all()
        self.switch, self.control, self.place = second, control, place
        time.sleep(DRAIN_S)
        first.end_daemon()
        before.close()
        return {"peak": peak.document()}

    def _started(self, build: SwitchBuild, place: int, resources: ExitStack) -> tuple[Switch, Controller]:
        """A switch at a function of the card, and a controller of its own."""
        # Each of the two has a core for its polling thread, if there are enough.
        described = replace(self._describe(self.card.functions[place]), pmd_cores=(polling(place),))
        switch = resources.enter_context(Switch(build, described))
        words = switch.directory / "controller"
        return switch, resources.enter_context(controller(switch.management(), words))


def move_over(twins: Twins, build: SwitchBuild) -> Document:
    """As an operator would; the way back is the same."""
    return twins.move_over(build)


class _TwinsBed(SwitchBed[Twins]):
    title = "a switch on virtual functions, DPDK"
    ring = f"{RING} frames, net_af_packet, behind a redirect by traffic control"

    @property
    def switch(self) -> Switch:
        return self.subject.switch

    @property
    def control(self) -> Controller:
        return self.subject.control


@contextmanager
def two_places(build: SwitchBuild, flows: int) -> Iterator[Bed[Twins]]:
    """A card with two functions for each wire, and a switch on the first of them.

    Raises:
        NotNow: it cannot be had.
    """
    with card(PAIRS, 2) as made, Twins(made, build, options) as twins:
        furnish(twins.switch, flows)
        yield _TwinsBed(made.network, twins)


@contextmanager
def between_hosts(build: SwitchBuild) -> Iterator[Hosts]:
    """The same between two hosts.

    Raises:
        NotNow: it cannot be had.
    """
    inner = [name for _, name in PAIRS]

    def describe(function: Network) -> SwitchOptions:
        return hosts.options(function, inner)

    with (
        hosts.ends() as (middle, client, server),
        card_at(middle, hosts.WIRES, inner, 2) as made,
        Twins(made, build, describe) as twins,
    ):
        yield Hosts(twins, client, server, lambda: twins.switch)


NOTE = (
    "Each switch has a virtual function of a network card for each of the two wires; the card is the kernel's "
    "traffic control, which redirects what comes in to one of two pairs of virtual Ethernet devices. The second "
    "switch gets the first one's OpenFlow flows. While both run, two threads poll: where they have no core each "
    "(with fewer than three cores) they take turns on one, and what the traffic shows is that, too. The way back "
    "is the same once more."
)
TWINS = (
    Way(
        "twins",
        "Two main processes, the traffic moved over",
        move_over,
        move_over,
        two_places,
        between_hosts,
        Works(
            kernel="no; there is one datapath in a kernel, which both processes would take for theirs",
            dpdk="yes, with a second port or virtual function for each",
            offload="with a second function's tables; on no card was it tried",
        ),
        note=NOTE,
    ),
)
