"""Two hosts with a switch between them, for programs that talk TCP to one another.

Each host is a network namespace with one veth interface; the switch has the other ends, by net_af_packet, in a
namespace of its own.  Some TCP ports are behind a stateful rule set, as a security group makes it: connections may be
opened from the client's side, and what belongs to one may pass.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare.cores import aside
from hotupgrade.vswitch.compare.network import Network, packet_sockets
from hotupgrade.vswitch.namespaces import Namespace, private_namespace
from hotupgrade.vswitch.processes import DIE_WITH_US, in_network_of
from hotupgrade.vswitch.switch import Switch, SwitchOptions

CLIENT, SERVER = "198.18.0.1", "198.18.0.2"  # of RFC 2544: nobody's
#: TCP ports of the server behind connection tracking; of those at FRESH each connection has megaflows of its own.
GUARDED, FRESH = 7000, 7001
#: Frames that the receiving ring of net_af_packet holds (its default).
RING = 512
COMMAND_SECONDS = 60.0
DEVICE = "eth0"
#: The other ends of the hosts' cables, the client's first.
WIRES = ("wire0", "wire1")
#: Segments and checksums are made before a frame leaves the host: net_af_packet knows neither kind of offload, and
#: connection tracking takes a packet without its checksum for invalid.
NO_OFFLOADS = ("tx", "off", "rx", "off", "tso", "off", "gso", "off", "gro", "off")

RULES = (
    "table=0,priority=10,in_port=1,actions=output:2",
    "table=0,priority=10,in_port=2,actions=output:1",
    *(f"table=0,priority=20,tcp,tp_{side}={GUARDED},actions=ct(table=1)" for side in ("src", "dst")),
    # What is read becomes part of the megaflow, so that every connection needs its own.
    f"table=0,priority=20,tcp,tp_dst={FRESH},actions=move:NXM_OF_TCP_SRC[]->NXM_NX_REG0[0..15],ct(table=1)",
    f"table=0,priority=20,tcp,tp_src={FRESH},actions=move:NXM_OF_TCP_DST[]->NXM_NX_REG0[0..15],ct(table=1)",
    "table=1,priority=20,ct_state=+new+trk,tcp,in_port=1,actions=ct(commit),output:2",
    "table=1,priority=20,ct_state=+est+trk,tcp,in_port=1,actions=output:2",
    "table=1,priority=20,ct_state=+est+trk,tcp,in_port=2,actions=output:1",
    "table=1,priority=0,actions=drop",
)


@dataclass(frozen=True, slots=True)
class Host:
    """One end; made by :func:`hosts`."""

    namespace: Namespace
    address: str

    def start(self, words: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
        """Start a command there that ends with us; what it says goes to ``output``."""
        with output.open("wb") as file:
            return subprocess.Popen(
                [*DIE_WITH_US, *aside(), *in_network_of(self.namespace.pid), *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )


@dataclass(frozen=True, slots=True)
class Hosts:
    """Who talks, and through what: ``subject`` is what ways are given."""

    subject: Any
    client: Host
    server: Host
    forwards: Callable[[], Switch] | None = None
    renew: Callable[[], object] = lambda: None

    @property
    def switch(self) -> Switch:
        """The one that forwards now, if it is one that does."""
        assert self.forwards
        return self.forwards()

    def freshen(self) -> None:
        """Make anew what does not last for another run."""
        self.renew()


@contextmanager
def hosts(build: SwitchBuild) -> Iterator[Hosts]:
    """A switch of ``build`` between two hosts that reach one another.

    Raises:
        NotNow: they cannot be made.
    """
    with ends() as (middle, client, server), Switch(build, options(middle, WIRES)) as switch:
        yield Hosts(switch, client, server, lambda: switch)


@contextmanager
def ends() -> Iterator[tuple[Network, Host, Host]]:
    """Two hosts, and the network between them, where their wires end; what connects :data:`WIRES` is not there yet.

    Raises:
        NotNow: they cannot be made.
    """
    with private_namespace() as middle, private_namespace() as one, private_namespace() as other:
        client, server = Host(one, CLIENT), Host(other, SERVER)
        for wire, host in zip(WIRES, (client, server), strict=True):
            middle.connect(wire, host.namespace, DEVICE)
            middle.ip("link", "set", wire, "promisc", "on")
        _acquaint(client, server)
        yield Network(middle), client, server


def options(place: Network, interfaces: Sequence[str]) -> SwitchOptions:
    """Of a switch in this network that has these two interfaces, the client's first."""
    devices = packet_sockets(interfaces, RING)
    return SwitchOptions(devices=devices, network_of=place.pid, rules=RULES, command_timeout=COMMAND_SECONDS)


def _acquaint(client: Host, server: Host) -> None:
    """Addresses, and each other's hardware addresses for ever: nobody asks for them in the middle of a measurement."""
    hardware = {client: "02:00:00:00:00:01", server: "02:00:00:00:00:02"}
    for host, peer in ((client, server), (server, client)):
        space = host.namespace
        space.run("ethtool", "-K", DEVICE, *NO_OFFLOADS)
        space.ip("link", "set", DEVICE, "address", hardware[host])
        space.ip("address", "add", f"{host.address}/24", "dev", DEVICE)
        space.ip("neighbour", "add", peer.address, "lladdr", hardware[peer], "dev", DEVICE, "nud", "permanent")
