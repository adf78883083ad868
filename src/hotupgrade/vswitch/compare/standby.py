"""Two processes by DPDK's own means: a primary holds ports and memory, a secondary forwards and is replaced.

Open vSwitch cannot be the secondary (:mod:`hotupgrade.vswitch.compare.secondary` tries it).  So both are dpdk-testpmd,
which forwards without flows: what is shown is what the mode itself can do.  Nor is there a second build of it: the
secondary that starts is the one that ended.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare import hosts
from hotupgrade.vswitch.compare.bed import RING, SINK, SOURCE, Bed
from hotupgrade.vswitch.compare.card import connect
from hotupgrade.vswitch.compare.cores import others, polling
from hotupgrade.vswitch.compare.hosts import Hosts
from hotupgrade.vswitch.compare.network import Network, network
from hotupgrade.vswitch.compare.usage import Usage, usage
from hotupgrade.vswitch.compare.ways import Document, Way, Works
from hotupgrade.vswitch.hugepages import hugepages
from hotupgrade.vswitch.started import Started
from hotupgrade.vswitch.switch import HUGEPAGES_BESIDE_MEMORY
from hotupgrade.vswitch.testpmd import PROGRAM, Testpmd

MEMORY_MIB = 96
BUFFERS = 16_384
#: Each leaves about 6 MiB of the shared memory behind, which testpmd never gives back.
MOST_SECONDARIES = 5
_START_S = 60.0  # 200 drivers from a cold disk


class Standby(Started):
    """``secondary`` forwards; ``primary`` does not, unless it has to stand in."""

    def __init__(self, place: Network, folder: Path, wires: Sequence[str] = ()) -> None:
        """``wires``: interfaces there, each of which is connected to a tap, the first to that of :data:`SOURCE`."""
        self._place, self._folder, self._wires = place, folder, wires
        self._resources = ExitStack()
        self._started = 0
        (folder / "hugepages").mkdir()

    def stop(self) -> None:
        self._resources.close()

    def renew_if_full(self) -> None:
        """Start both anew before there is no memory left: what a secondary has taken of it stays taken when it ends."""
        if self._started > MOST_SECONDARIES:
            self.stop()
            self._start()

    def _start(self) -> None:
        self._started = 0
        # A mount that ends with the process: in a file system, since a secondary has to find the memory.
        mount = f'mount -t hugetlbfs -o pagesize=2M none {self._folder / "hugepages"} && exec "$@"'
        inside = ("nsenter", f"--net=/proc/{self._place.pid}/ns/net", "--", "unshare", "--mount", "--")
        self.primary = self._process("primary", *inside, "sh", "-c", mount, "sh")
        for name in (SOURCE, SINK):
            # The queue of a tap is as long as this: as many packets as with the other beds.
            self._place.namespace.ip("link", "set", name, "txqueuelen", str(RING))
        for wire, name in zip(self._wires, (SOURCE, SINK), strict=bool(self._wires)):
            connect(self._place, wire, name)
        self.secondary = self.new_secondary()
        self.secondary.command("start")

    def new_secondary(self) -> Testpmd:
        """One that is attached to the primary's ports, and does not forward yet."""
        spaces = f"/proc/{self.primary.pid}/ns"
        return self._process("secondary", "nsenter", f"--net={spaces}/net", f"--mount={spaces}/mnt", "--")

    def _process(self, kind: str, *wrappers: str) -> Testpmd:
        main, core = others()[0], polling()
        # Pools of packets have a cache for each lcore id, whatever the process: ids must not be used twice at a time.
        first = 2 + 2 * (self._started % 2) if self._started else 0
        self._started += 1
        words = [PROGRAM, "--no-pci", "--no-telemetry", f"--proc-type={kind}", "--file-prefix=standby"]
        words += [f"--huge-dir={self._folder / 'hugepages'}", "-m", str(MEMORY_MIB)]
        words += ["--lcores", f"{first}@{main},{first + 1}@{core}"]
        words += [f"--vdev=net_tap{number},iface={name}" for number, name in enumerate((SOURCE, SINK))]
        words += ["--", "--interactive", "--nb-cores=1", f"--total-num-mbufs={BUFFERS}"]
        # Packets that wait in a queue are for whoever forwards next.
        words += ["--no-flush-rx", "--disable-link-check"]
        process = Testpmd(
            # Its helpers, too, would take every core that no lcore of its own is on: those of the polling threads.
            [*wrappers, "taskset", "--cpu-list", str(main), *words],
            self._folder / f"{kind}{self._started}.errors",
            environment=os.environ | {"RUNTIME_DIRECTORY": str(self._folder)},
            start_timeout=_START_S,
        )
        return self._resources.enter_context(process)


def restart_secondary(standby: Standby, _: SwitchBuild) -> Document:
    """The secondary ends and starts again; meanwhile nobody forwards."""
    standby.secondary.stop()
    standby.secondary = standby.new_secondary()
    standby.secondary.command("start")
    return {}


def stand_in(standby: Standby, _: SwitchBuild) -> Document:
    """The primary forwards while the secondary ends and starts again."""
    hand_over(standby.secondary, standby.primary)
    standby.secondary.stop()
    standby.secondary = standby.new_secondary()
    hand_over(standby.primary, standby.secondary)
    return {}


def hand_over(one: Testpmd, other: Testpmd) -> None:
    """From one process that forwards to another; never both, as queues are not made for that."""
    one.command("stop")
    other.command("start")


class _StandbyBed(Bed[Standby]):
    title = "dpdk-testpmd as primary and secondary"
    ring = f"{RING} packets, queue of a tap"

    @property
    def pid(self) -> int:
        return self.subject.secondary.pid

    def pids(self) -> tuple[int, ...]:
        return self.subject.primary.pid, self.subject.secondary.pid

    def remember(self) -> Callable[[int], dict[str, bool]]:
        pid, indexes = self.pid, self.network.namespace.indexes()

        def again(_: int) -> dict[str, bool]:
            return {"process id": self.pid == pid, "ports": self.network.namespace.indexes() == indexes}

        return again

    def freshen(self) -> None:
        self.subject.renew_if_full()

    def standing(self) -> Usage:
        """The primary; the hugepages are the secondary's just as well."""
        return Usage(private_kb=usage((self.subject.primary.pid,)).private_kb)


@contextmanager
def primary_and_secondary(_: SwitchBuild, __: int) -> Iterator[Bed[Standby]]:
    """The two processes, forwarding.

    Raises:
        NotNow: they cannot be had.
    """
    with network(()) as made, _both(made) as standby:
        yield _StandbyBed(made, standby)


@contextmanager
def between_hosts(_: SwitchBuild) -> Iterator[Hosts]:
    """The same between two hosts, whose wires are connected to the taps.

    Raises:
        NotNow: they cannot be had.
    """
    with hosts.ends() as (middle, client, server), _both(middle, hosts.WIRES) as standby:
        yield Hosts(standby, client, server, renew=standby.renew_if_full)


@contextmanager
def _both(place: Network, wires: Sequence[str] = ()) -> Iterator[Standby]:
    with ExitStack() as resources:
        resources.enter_context(hugepages(MEMORY_MIB + HUGEPAGES_BESIDE_MEMORY))
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="hotupgrade-compare-")))
        yield resources.enter_context(Standby(place, folder, wires))


#: What was tried with dpdk-testpmd 22.11 to have ports that a secondary can forward on and the kernel sees.
NOTE = (
    "Ports are net_tap's. A secondary forwards on them by the primary's own queues, whose descriptors it is sent; "
    "what comes while nobody polls waits there. Of the other drivers that reach an interface of the kernel, "
    "net_af_packet lets a secondary attach, but it dies (SIGSEGV) when it begins to forward, having no receive "
    "function; net_af_xdp lets it attach, but it receives nothing; with net_pcap it forwards by a packet socket "
    "that it opens itself, so that nothing is shared and nothing waits. There is no second build of testpmd: the "
    "secondary that starts is the one that ended. It forwards without flows. The primary is there at all times, "
    "and keeps its old code: a new one needs a restart of both. What a secondary took of the shared memory stays "
    "taken when it ends (testpmd: about 6 MiB), so both are started anew, between the runs that are measured, "
    "after every five."
)
WORKS = Works(
    kernel="no",
    dpdk="not with Open vSwitch; drivers must know secondary processes; a new primary needs a restart of both",
    offload="not with Open vSwitch; flows in a card belong to the primary",
)
STANDBY = (
    Way(
        "secondary",
        "DPDK secondary restarted (dpdk-testpmd)",
        restart_secondary,
        restart_secondary,
        primary_and_secondary,
        between_hosts,
        WORKS,
        note=NOTE,
        flowless=True,
    ),
    Way(
        "standby",
        "DPDK secondary restarted, the primary stands in (dpdk-testpmd)",
        stand_in,
        stand_in,
        primary_and_secondary,
        between_hosts,
        WORKS,
        note=NOTE,
        flowless=True,
    ),
)
