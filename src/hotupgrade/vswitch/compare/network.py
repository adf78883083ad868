"""A network namespace with pairs of virtual interfaces, which outlives a switch that is restarted in it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hotupgrade.vswitch.namespaces import Namespace, private_namespace
from hotupgrade.vswitch.processes import DIE_WITH_US, in_network_of


@dataclass(frozen=True, slots=True)
class Network:
    """Where the traffic is; made by :func:`network`."""

    namespace: Namespace

    @property
    def pid(self) -> int:
        """A process that is in it."""
        return self.namespace.pid

    def start(self, words: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
        """Start a command that ends with us; what it says goes to ``output``."""
        with output.open("wb") as file:
            return subprocess.Popen(
                [*DIE_WITH_US, *in_network_of(self.pid), *words], stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )


@contextmanager
def network(pairs: Sequence[tuple[str, str]]) -> Iterator[Network]:
    """Pairs of veth interfaces; what is sent into one comes out of the other.

    Raises:
        NotNow: they cannot be made.
    """
    with private_namespace() as namespace:
        for pair in pairs:
            namespace.connect(pair[0], namespace, pair[1])
            for name in pair:
                namespace.ip("link", "set", name, "promisc", "on")
        yield Network(namespace)


def packet_sockets(interfaces: Iterable[str], frames: int) -> tuple[str, ...]:
    """These interfaces as devices of DPDK, whose receiving rings hold so many frames."""
    return tuple(f"net_af_packet{number},iface={name},framecnt={frames}" for number, name in enumerate(interfaces))
