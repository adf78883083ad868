"""A guest on the switch's vhost-user ports, without a virtual machine: dpdk-testpmd with virtio-user devices.

It plays the part of a virtual machine's kernel and returns every packet that it gets: a fixed number of packets goes
round between guest and switch for as long as wanted.  None is made and none is meant to end, so that after the last one
was collected *sent = received* holds to the packet, whatever the speed was.  A packet that is lost is lost for good and
shows in the count.

The guest listens at the sockets, the switch connects: as with a virtual machine, a switch that restarts can come back.
It shares nothing with other processes on the machine: its memory is anonymous hugepages on loan, its network namespace
is its own, and DPDK never looks at PCI.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from hotupgrade.errors import NotNow, Reason
from hotupgrade.vswitch.hugepages import hugepages
from hotupgrade.vswitch.processes import wait_until
from hotupgrade.vswitch.started import Started
from hotupgrade.vswitch.switch import HUGEPAGES_BESIDE_MEMORY, Switch
from hotupgrade.vswitch.testpmd import PROGRAM, Testpmd

# It polls for ever, on the core of the switch's main thread and of the tool: those go first, but not alone.
YIELDING = ("nice", "-n", "5")
BUFFER_BYTES = 2560  # a packet with what DPDK says of it
BURST = 32  # packets that testpmd sends at once
FORWARDING_LCORE = 1
STATISTICS = re.compile(r"^ *#+ NIC statistics for port (?P<port>\d+) .*$", re.MULTILINE)
FORWARDING = re.compile(r"^ *-+ Forward statistics for port (?P<port>\d+) .*$", re.MULTILINE)
QUIET_SECONDS = 0.3  # as long without a further packet: the switch holds none back (it flushes within microseconds)


@dataclass(frozen=True, slots=True)
class GuestOptions:
    """How a guest looks, and how many packets go round.

    Every port has a partner, the first the second and so on: what comes in at one goes out at the other.  Packets that
    go round must fit into one ring, as all of one direction may lie in it at a moment: :meth:`check`.
    """

    queues: int = 1  # of each port; the switch polls as many
    queue_size: int = 1024
    bursts: int = 8  # that each queue of each port starts with
    many_flows: bool = True  # the source addresses of :meth:`sources`; else all packets of a port are the same
    core: int | None = None  # None: the first core that this process may use, which polling threads leave alone
    start_timeout: float = 30.0
    command_timeout: float = 10.0

    def check(self) -> None:
        """Raise if packets could be lost without anyone's fault."""
        if self.bursts * BURST * self.queues > self.queue_size // 2:
            words = f"{self.bursts} bursts of {BURST} on {self.queues} queues: a ring of {self.queue_size} may overflow"
            raise NotNow(Reason("guest", "bursts", words))

    def cpu(self) -> int:
        return min(os.sched_getaffinity(0)) if self.core is None else self.core

    def buffers(self, ports: int) -> int:
        """Packets that it has room for: every ring may be full, and some are at hand."""
        return 2 * ports * self.queues * self.queue_size + 4096

    def memory(self, ports: int) -> int:
        """MiB of hugepages that it takes."""
        return 32 + self.buffers(ports) * BUFFER_BYTES // 2**20

    def launched(self, ports: int) -> int:
        """How many packets go round."""
        return self.bursts * BURST * self.queues * ports

    def sources(self) -> tuple[str, ...]:
        """The source addresses of its packets; all are UDP, from port 9 to port 9 of 198.18.0.2."""
        if not self.many_flows:
            return ("198.18.0.1",)
        return tuple(f"198.18.{number}.{2 + FORWARDING_LCORE}" for number in range(256))


@dataclass(frozen=True, slots=True)
class GuestPort:
    """A port's counters since the guest started (``show port stats all``)."""

    port: int
    received: int = 0
    missed: int = 0
    receive_errors: int = 0
    no_buffer: int = 0
    sent: int = 0
    send_errors: int = 0


@dataclass(frozen=True, slots=True)
class Forwarding:
    """What was forwarded since the last start (``show fwd stats all``)."""

    port: int
    received: int = 0
    receive_dropped: int = 0
    sent: int = 0
    send_dropped: int = 0


@dataclass(frozen=True, slots=True)
class Tally:
    """One circulation, from the first packet sent to the last one collected."""

    launched: int  # packets that were to go round
    sent: int
    received: int
    dropped: int  # by the guest itself: it could not send or receive them
    collected: int  # packets that were still there at the end

    @property
    def lost(self) -> int:
        return self.sent - self.received

    @property
    def whole(self) -> bool:
        """Nobody lost a packet, neither switch nor guest."""
        return self.lost == self.dropped == 0 and self.collected == self.launched


def rules(options: GuestOptions, one: int, other: int) -> tuple[str, ...]:
    """Rules that connect two OpenFlow ports of a switch, with a megaflow for each source address.

    A rule that looked at nothing but the port would be a "simple match", which passes by every cache of the datapath.
    """
    return tuple(
        f"table=0,priority=20,in_port={port},ip,nw_src={source},actions=output:{partner}"
        for port, partner in ((one, other), (other, one))
        for source in options.sources()
    )


class Guest(Started):
    """A running dpdk-testpmd: a context manager, gone with everything that it took when the context is left.

    Its first port is at the first of ``ports`` of the switch: vhost-user ports, which count from 1.  Start it from a
    thread that outlives it: its process ends with the thread that started it.
    """

    def __init__(self, switch: Switch, ports: Sequence[int] = (1, 2), options: GuestOptions | None = None) -> None:
        self.switch = switch
        self.options = options or GuestOptions()
        self.switch_ports = tuple(ports)
        self._resources = ExitStack()
        self._testpmd: Testpmd | None = None
        self._begin: tuple[GuestPort, ...] = ()

    @property
    def pid(self) -> int:
        assert self._testpmd is not None, "the guest has not been started"
        return self._testpmd.pid

    @property
    def alive(self) -> bool:
        return self._testpmd is not None and self._testpmd.alive

    # Traffic.

    def circulate(self) -> None:
        """Let the packets go round, until :meth:`collect`."""
        self._begin = self.ports()
        self.command("set fwd io")
        self.command(f"start tx_first {self.options.bursts}")

    def send_again(self) -> None:
        """Send one burst more from every queue, as programs do that get no answer.  The switch has to be connected:
        testpmd may not come back from a stop while its ports are being taken up or let go (seen once in ten restarts).

        The tally then counts what really was sent, and what the guest itself dropped only since.
        """
        self.command("stop")
        self.command("start tx_first 1")

    def collect(self) -> Tally:
        """Stop forwarding, take in every packet that is still on its way, and count."""
        self.command("stop")
        dropped = sum(port.send_dropped + port.receive_dropped for port in self.forwarding())
        self.command("set fwd rxonly")
        self.command("start")
        self._wait_for_the_last()
        self.command("stop")
        collected = sum(port.received for port in self.forwarding())
        sent, received = _gained(self._begin, self.ports())
        return Tally(self.options.launched(len(self.switch_ports)), sent, received, dropped, collected)

    def ports(self) -> tuple[GuestPort, ...]:
        return parse_ports(self.command("show port stats all"))

    def forwarding(self) -> tuple[Forwarding, ...]:
        return parse_forwarding(self.command("show fwd stats all"))

    def rate(self, seconds: float = 0.5) -> float:
        """Packets a second that come back to the guest, in a window of ``seconds`` from now."""
        before, begin = self.ports(), time.monotonic()
        time.sleep(seconds)
        after, finish = self.ports(), time.monotonic()
        return _gained(before, after)[1] / (finish - begin)

    def wait_for(self, packets: int, seconds: float = 30.0) -> None:
        """Until so many more packets have come back: what a rate says on a crowded machine nobody knows."""
        before = self.ports()
        wait_until(lambda: _gained(before, self.ports())[1] >= packets, seconds, f"{packets} more packets to come back")

    def _wait_for_the_last(self) -> None:
        """Until everything sent has come back, or nothing more comes."""
        deadline = time.monotonic() + self.options.command_timeout
        quiet, last = time.monotonic() + QUIET_SECONDS, -1
        while time.monotonic() < min(quiet, deadline):
            sent, received = _gained(self._begin, self.ports())
            if sent == received:
                return
            if received != last:
                quiet, last = time.monotonic() + QUIET_SECONDS, received
            time.sleep(0.01)

    def wait_until_connected(self) -> None:
        """Until the switch polls its ports: after a start of either.

        Raises:
            NotNow: that takes too long, or a port is out of order.
        """
        wait_until(self._is_connected, self.options.start_timeout, "the switch to take up its ports", pause=0.05)

    def is_connected(self) -> bool:
        """Whether the switch polls its ports now; not if it does not answer."""
        with suppress(NotNow):
            return self._is_connected()
        return False

    def command(self, words: str) -> str:
        """Have testpmd carry out one command; what it said."""
        assert self._testpmd is not None, "the guest has not been started"
        return self._testpmd.command(words)

    # Starting and stopping.

    def stop(self) -> None:
        """End the process and give everything back; may be called at any time, and again."""
        self._resources.close()
        self._testpmd = None

    def _start(self) -> None:
        self.options.check()
        memory = self.options.memory(len(self.switch_ports))
        self._resources.enter_context(hugepages(memory + HUGEPAGES_BESIDE_MEMORY))
        for port in self.switch_ports:
            self._resources.callback(self.switch.vhost_socket(port).unlink, missing_ok=True)
        # Its helpers, too, would take every core that no lcore of its own is on: those of the polling threads.
        bounds = ["unshare", "--net", "--", "taskset", "--cpu-list", str(self.options.cpu()), *YIELDING]
        self._testpmd = Testpmd(
            [*bounds, *self._command_line()],
            self.switch.directory / f"guest-of-vhost{min(self.switch_ports)}.errors",
            start_timeout=self.options.start_timeout,
            command_timeout=self.options.command_timeout,
        )
        self._resources.enter_context(self._testpmd)
        self.wait_until_connected()

    def _command_line(self) -> Iterator[str]:
        options, cpu, ports = self.options, self.options.cpu(), len(self.switch_ports)
        yield from (PROGRAM, "--no-pci", "--no-telemetry", "--in-memory", "--single-file-segments")
        yield from (f"--file-prefix=hotupgrade-guest-{os.getpid()}", "-m", str(options.memory(ports)))
        yield from ("--lcores", f"0@{cpu},{FORWARDING_LCORE}@{cpu}")
        for number, port in enumerate(self.switch_ports):
            socket = self.switch.vhost_socket(port)
            queues = f"queues={options.queues},queue_size={options.queue_size}"
            yield f"--vdev=net_virtio_user{number},path={socket},server=1,{queues},mac=02:00:00:00:00:{number + 1:02x}"
        yield from ("--", "--interactive", "--nb-cores=1", f"--burst={BURST}")
        yield f"--total-num-mbufs={options.buffers(ports)}"
        yield from (f"--rxq={options.queues}", f"--txq={options.queues}")
        yield from (f"--rxd={options.queue_size}", f"--txd={options.queue_size}")
        # Packets that wait in a ring belong to the circulation: a start must not throw them away.
        yield from ("--no-flush-rx", "--disable-link-check")
        if options.many_flows:
            yield "--txonly-multi-flow"

    def _is_connected(self) -> bool:
        """Whether the switch polls every queue.  What the guest knows is not enough: the switch, too, has to have been
        told, and drops what is for a port that it takes for closed."""
        self.switch.check_interfaces()
        wanted = [(f"vhost{port}", queue) for port in self.switch_ports for queue in range(self.options.queues)]
        polled = [(queue.port, queue.queue) for queue in self.switch.rx_queues() if queue.enabled]
        return set(wanted) <= set(polled)


def parse_ports(text: str) -> tuple[GuestPort, ...]:
    words = {
        "received": "RX-packets",
        "missed": "RX-missed",
        "receive_errors": "RX-errors",
        "no_buffer": "RX-nombuf",
        "sent": "TX-packets",
        "send_errors": "TX-errors",
    }
    return tuple(GuestPort(port, **_counters(block, words)) for port, block in _blocks(STATISTICS, text))


def parse_forwarding(text: str) -> tuple[Forwarding, ...]:
    words = {
        "received": "RX-packets",
        "receive_dropped": "RX-dropped",
        "sent": "TX-packets",
        "send_dropped": "TX-dropped",
    }
    return tuple(Forwarding(port, **_counters(block, words)) for port, block in _blocks(FORWARDING, text))


def _blocks(head: re.Pattern[str], text: str) -> Iterator[tuple[int, str]]:
    """Each port with its lines, without what comes after its frame."""
    for match in head.finditer(text):
        yield int(match["port"]), re.split(r"^ *[-#+]{20,}", text[match.end() :], maxsplit=1, flags=re.MULTILINE)[0]


def _counters(block: str, words: dict[str, str]) -> dict[str, int]:
    found = {name: re.search(rf"\b{re.escape(word)}:\s*(\d+)", block) for name, word in words.items()}
    missing = [words[name] for name, match in found.items() if match is None]
    if missing:
        raise NotNow(Reason("guest", PROGRAM, f"{PROGRAM} shows no {', '.join(missing)}: {block.strip()}"))
    return {name: int(match[1]) for name, match in found.items() if match is not None}


def _gained(before: Iterable[GuestPort], after: Iterable[GuestPort]) -> tuple[int, int]:
    """Packets sent and received by all ports in between."""
    earlier = {port.port: port for port in before}
    pairs = [(earlier[port.port], port) for port in after]
    return sum(now.sent - then.sent for then, now in pairs), sum(now.received - then.received for then, now in pairs)
