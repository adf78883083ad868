"""What a way is gone on: something that forwards between two interfaces, and how it is seen from outside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare import state
from hotupgrade.vswitch.compare.controller import Controller, controller
from hotupgrade.vswitch.compare.network import Network, network, packet_sockets
from hotupgrade.vswitch.compare.usage import Usage, usage
from hotupgrade.vswitch.connections import add_connections
from hotupgrade.vswitch.datapaths.plain import PlainSwitch
from hotupgrade.vswitch.switch import BRIDGE, Switch, SwitchOptions

#: Our end of each cable, and the switch's.
PAIRS = (("send", "into"), ("receive", "outof"))
SOURCE, SINK = (pair[0] for pair in PAIRS)
#: Frames that the receiving ring of net_af_packet holds (its default).
RING = 512
#: Connections that the switch tracks, beside those of the traffic.
CONNECTIONS = 20
COMMAND_S = 60.0  # that one command may take: a hundred thousand flows in one are some seconds
_BATCH = 10_000  # flows that one command adds

S = TypeVar("S")


class Bed(ABC, Generic[S]):
    """``subject`` is what ways are given.  The traffic goes from :data:`SOURCE` to :data:`SINK` of ``network``."""

    title: str
    ring: str  # what holds packets while nobody fetches them: it hides pauses

    def __init__(self, network: Network, subject: S) -> None:
        self.network = network
        self.subject = subject

    @property
    @abstractmethod
    def pid(self) -> int:
        """The process that forwards now."""

    @abstractmethod
    def pids(self) -> tuple[int, ...]:
        """Every process that there is because of the subject."""

    @abstractmethod
    def remember(self) -> Callable[[int], dict[str, bool]]:
        """Look at what there is; the function that is returned looks again, and tells which facts still hold.

        It is given the number of packets that passed in between.
        """

    def freshen(self) -> None:
        """Make anew what would be forgotten by itself between one run and the next."""
        return

    def usage(self) -> Usage:
        return usage(self.pids())

    def standing(self) -> Usage:
        """What this way to run a switch takes at all times, beside the process that forwards."""
        return Usage()


class SwitchBed(Bed[S]):
    """With a switch that forwards, and its controller."""

    @property
    @abstractmethod
    def switch(self) -> Switch:
        """The one that forwards now."""

    @property
    @abstractmethod
    def control(self) -> Controller:
        """The one that is connected to it, or tries to be."""

    @property
    def pid(self) -> int:
        return self.switch.pid

    def pids(self) -> tuple[int, ...]:
        return self.switch.processes

    def remember(self) -> Callable[[int], dict[str, bool]]:
        before = state.take(self.switch, self.control)

        def again(passed: int) -> dict[str, bool]:
            return state.kept(before, state.take(self.switch, self.control), passed)

        return again

    def freshen(self) -> None:
        self.control.wait_for_answer()
        add_connections(self.switch, BRIDGE, CONNECTIONS)


class _OneSwitch(SwitchBed[Switch]):
    title = "one switch, DPDK"
    ring = f"{RING} frames, net_af_packet"

    def __init__(self, network: Network, subject: Switch, control: Controller) -> None:
        super().__init__(network, subject)
        self._control = control

    @property
    def switch(self) -> Switch:
        return self.subject

    @property
    def control(self) -> Controller:
        return self._control


class _PlainSwitch(_OneSwitch):
    title = "one switch, userspace datapath without DPDK"
    ring = "a packet socket's buffer of net.core.rmem_default bytes"


@contextmanager
def one_switch(build: SwitchBuild, flows: int) -> Iterator[Bed[Switch]]:
    """A switch whose polling thread forwards between two virtual Ethernet interfaces; ``flows`` more than it needs.

    Raises:
        NotNow: it cannot be had.
    """
    with network(PAIRS) as made, Switch(build, options(made)) as switch:
        furnish(switch, flows)
        with controller(switch.management(), switch.directory / "controller") as control:
            yield _OneSwitch(made, switch, control)


@contextmanager
def plain_switch(build: SwitchBuild, flows: int) -> Iterator[Bed[Switch]]:
    """The datapath in user space on interfaces of the system: no DPDK; its main thread forwards.

    Raises:
        NotNow: it cannot be had.
    """
    with network(PAIRS) as made, PlainSwitch(build, network_of=made.pid) as switch:
        words = ["add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev", "fail-mode=secure"]
        for number, (_, name) in enumerate(PAIRS, 1):
            words += ["--", "add-port", BRIDGE, name, "--", "set", "interface", name, f"ofport_request={number}"]
        switch.vsctl(*words)
        rules = SwitchOptions(ports=len(PAIRS)).forwarding_rules()
        switch.ofctl("add-flows", BRIDGE, "-", text="\n".join(rules) + "\n")
        furnish(switch, flows)
        with controller(switch.management(), switch.directory / "controller") as control:
            yield _PlainSwitch(made, switch, control)


def options(place: Network) -> SwitchOptions:
    """Of a switch with DPDK's packet sockets at its ends of the cables, in this network."""
    devices = packet_sockets((inner for _, inner in PAIRS), RING)
    return SwitchOptions(devices=devices, network_of=place.pid, command_timeout=COMMAND_S)


def furnish(switch: Switch, flows: int) -> None:
    """Give the switch OpenFlow flows that no packet uses."""
    for first in range(0, flows, _BATCH):
        rules = (_rule(number) for number in range(first, min(first + _BATCH, flows)))
        switch.ofctl("add-flows", BRIDGE, "-", text="\n".join(rules) + "\n")


def _rule(number: int) -> str:
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return f"table=1,priority={100 + number % 7},ip,nw_dst={address},actions=output:{1 + number % 2}"
