"""What a switch can be made to hold: OpenFlow flows with their megaflows, connections, ports.

Everything is really there: megaflows and connections are made by packets, one each, and counted by the switch itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.compare.crowd import source, write_crowd
from hotupgrade.vswitch.compare.network import Network
from hotupgrade.vswitch.processes import end
from hotupgrade.vswitch.switch import BRIDGE, Switch

#: What was asked for may be missed by this part: packets are lost where they are sent too fast.
ENOUGH = 0.99
_PASSES, _PASS_LIMIT_S = 8, 300
#: Packets per second: each megaflow takes an upcall, a connection is made by the datapath alone.
_FLOW_PPS, _CONNECTION_PPS = 8_000, 40_000
#: Of a connection without traffic, in seconds: it is to last as long as the measurement.
_LONG_S = 86_400
_RULES_AT_ONCE, _PORTS_AT_ONCE = 20_000, 50


@dataclass(frozen=True, slots=True)
class Load:
    """``fill`` puts a number of them into the switch whose first port hears the interface; ``count`` is how many there
    are by the switch's own count."""

    key: str
    title: str
    fill: Callable[[Switch, Network, str, int], None]
    count: Callable[[Switch], int]


def fill_flows(switch: Switch, network: Network, interface: str, count: int) -> None:
    """A flow for each of so many sources, and a packet from each, so that there are as many megaflows."""
    rules = (f"table=0,priority=20,in_port=1,ip,nw_src={source(i)},actions=output:2" for i in range(count))
    for text in _batches(rules, _RULES_AT_ONCE):
        switch.ofctl("add-flows", BRIDGE, "-", text=text)
    _send(network, interface, count, _FLOW_PPS, lambda: count_flows(switch))


def fill_connections(switch: Switch, network: Network, interface: str, count: int) -> None:
    """One rule that commits whatever comes; each packet is a connection of its own."""
    _keep_connections(switch)
    limit = int(switch.appctl("dpctl/ct-get-maxconns"))
    if limit < count:
        switch.appctl("dpctl/ct-set-maxconns", str(count))
    switch.ofctl("add-flow", BRIDGE, "table=0,priority=10,in_port=1,udp,actions=ct(commit),output:2")
    _send(network, interface, count, _CONNECTION_PPS, lambda: count_connections(switch))


def fill_ports(switch: Switch, _: Network, __: str, count: int) -> None:
    """Internal ports (taps), beside those that are polled.  DPDK as Debian builds it has room for 32 of its own."""
    present = len(switch.ports())
    names = [f"tap{number}" for number in range(max(count - present, 0))]
    for first in range(0, len(names), _PORTS_AT_ONCE):
        words: list[str] = []
        for name in names[first : first + _PORTS_AT_ONCE]:
            words += ["--", "add-port", BRIDGE, name, "--", "set", "interface", name, "type=internal"]
        switch.vsctl(*words)


def count_flows(switch: Switch) -> int:
    """Megaflows in the datapath."""
    return switch.datapath().megaflows


def count_connections(switch: Switch) -> int:
    """Entries of the datapath's connection tracker."""
    return int(switch.appctl("dpctl/ct-get-nconns"))


def count_ports(switch: Switch) -> int:
    """Ports of all bridges."""
    return len(switch.ports())


def _keep_connections(switch: Switch) -> None:
    """A time-out policy of the default zone.  Source: ovs-vsctl(8), datapath commands; ovs-vswitchd.conf.db(5)."""
    switch.vsctl(
        *("--", "--id=@made", "create", "Datapath", "datapath_version=0"),
        *("--", "set", "Open_vSwitch", ".", "datapaths:netdev=@made"),
    )
    times = [f"udp_{state}={_LONG_S}" for state in ("first", "single", "multiple")]
    switch.vsctl("add-zone-tp", "netdev", "zone=0", *times)


def _send(network: Network, interface: str, count: int, pps: int, counted: Callable[[], int]) -> None:
    """Send all, again and again until the switch has them.

    Raises:
        HotUpgradeError: it never has.
    """
    with tempfile.TemporaryDirectory(prefix="hotupgrade-crowd-") as folder:
        file, said = Path(folder, "crowd"), Path(folder, "said")
        write_crowd(file, count)
        words = ["tcpreplay", "--intf1", interface, "--pps", str(pps), "--preload-pcap", "--quiet", "--timer", "nano"]
        for _ in range(_PASSES):
            sender = network.start([*words, str(file)], said)
            try:
                sender.wait(_PASS_LIMIT_S)
            finally:
                end(sender)
            if sender.returncode:
                raise HotUpgradeError(f"tcpreplay: {said.read_text().strip()[-300:]}")
            if counted() >= ENOUGH * count:
                return
    raise HotUpgradeError(f"of {count:,} there are {counted():,} after {_PASSES} times sending all")


def _batches(lines: Iterable[str], size: int) -> Iterator[str]:
    left = iter(lines)
    while batch := list(islice(left, size)):
        yield "\n".join(batch) + "\n"


FLOWS = Load("flows", "OpenFlow flows, each with a megaflow", fill_flows, count_flows)
CONNECTIONS = Load("connections", "tracked connections", fill_connections, count_connections)
PORTS = Load("ports", "ports", fill_ports, count_ports)
