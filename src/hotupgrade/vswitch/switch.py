"""A private Open vSwitch with DPDK: started in a directory of its own, loaded at full speed, removed without a trace.

It shares nothing with another switch on the machine: its sockets and its database are in a temporary directory, its
taps are in a network namespace of its own, its hugepages are on loan, and DPDK never looks at PCI.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hotupgrade.errors import NotNow, Reason
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.flows import Flow, PortCounters, parse_flows, parse_ports
from hotupgrade.vswitch.hugepages import hugepages
from hotupgrade.vswitch.processes import end, owner, owner_is_gone, spawn, start_time, wait_until
from hotupgrade.vswitch.started import Started
from hotupgrade.vswitch.statistics import (
    Datapath,
    PmdStatistics,
    Rate,
    RxQueue,
    parse_datapath,
    parse_drops,
    parse_megaflows,
    parse_pmd_statistics,
    parse_rx_queues,
    rate_between,
)

BRIDGE = "br0"
DIRECTORIES = "hotupgrade-switch-"
MEMORY_PER_VHOST_PORT = 96  # MiB: room for two pools of packets, as the switch makes a new one before it drops the old
HUGEPAGES_BESIDE_MEMORY = 8  # MiB: DPDK asks for a page or two more than what it is told to take


@dataclass(frozen=True, slots=True)
class SwitchOptions:
    """How a switch is loaded.

    Port ``n`` of the bridge is the DPDK device ``net_null<n-1>``, which delivers packets as fast as they are taken; or
    one of ``devices`` (as DPDK has them, "net_af_packet0,iface=veth0") if there are any.  The vhost-user ports come
    after them; each waits for a guest (:mod:`hotupgrade.vswitch.guest`) that listens at its socket.  With the default
    rules each pair of ports of one kind forwards to one another.
    """

    ports: int = 2
    devices: tuple[str, ...] = ()
    network_of: int | None = None  # a process in whose network namespace it runs; None: in one of its own
    vhost_ports: int = 0
    packet_size: int = 64
    pmd_cores: tuple[int, ...] = ()  # empty: the last core that this process may use
    main_core: int | None = None  # None: the first core that this process may use
    memory_mib: int = 256  # beside what vhost-user ports need
    rules: tuple[str, ...] | None = None
    other_config: Mapping[str, str] | None = None
    start_timeout: float = 60.0
    command_timeout: float = 15.0

    def cores(self) -> tuple[int, tuple[int, ...]]:
        """The main thread's core and those of the polling threads."""
        usable = sorted(os.sched_getaffinity(0))
        main = usable[0] if self.main_core is None else self.main_core
        return main, self.pmd_cores or (usable[-1],)

    def memory(self) -> int:
        """MiB of hugepages that DPDK takes."""
        return self.memory_mib + MEMORY_PER_VHOST_PORT * self.vhost_ports

    def forwarding_rules(self) -> tuple[str, ...]:
        if self.rules is not None:
            return self.rules
        return tuple(
            f"table=0,priority=10,in_port={port},actions={partner}"
            for port, partner in (*_pairs(0, self.ports), *_pairs(self.ports, self.vhost_ports))
        )

    def vhost_number(self, port: int) -> int:
        """The OpenFlow number of the vhost-user port ``port``, which counts from 1."""
        return self.ports + port


class Switch(Started):
    """A running switch.  Use it as a context manager; leaving it ends every process and gives back every hugepage.

    Start it in a thread that outlives it: the kernel ends the processes together with that thread.
    """

    def __init__(self, build: SwitchBuild, options: SwitchOptions | None = None) -> None:
        self.build = build
        self.options = options or SwitchOptions()
        self._resources = ExitStack()
        self._directory: Path | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    # What it is.

    @property
    def pid(self) -> int:
        """The process id of ovs-vswitchd."""
        assert self._daemon is not None, "the switch has not been started"
        return self._daemon.pid

    @property
    def processes(self) -> tuple[int, ...]:
        """The process ids of ovsdb-server and ovs-vswitchd."""
        assert self._server is not None, "the switch has not been started"
        return self._server.pid, self.pid

    @property
    def directory(self) -> Path:
        """Where its sockets, its database and its logs are."""
        assert self._directory is not None, "the switch has not been started"
        return self._directory

    @property
    def alive(self) -> bool:
        return self._daemon is not None and self._daemon.poll() is None

    @property
    def start_time(self) -> int | None:
        """When ovs-vswitchd started, in clock ticks since boot; None if it is gone."""
        return start_time(self.pid)

    def vhost_socket(self, port: int) -> Path:
        """Where the guest of the vhost-user port ``port`` listens; ports count from 1."""
        return self.directory / f"vhost{port}.sock"

    def management(self, bridge: str = BRIDGE) -> Path:
        """Where controllers on the same machine, such as OVN's, talk OpenFlow to a bridge."""
        return self.directory / f"{bridge}.mgmt"

    def log(self) -> str:
        """What ovs-vswitchd has logged so far."""
        return _read(self.directory / "ovs-vswitchd.log") + _read(self.directory / "ovs-vswitchd.out")

    # Talking to it.

    def vsctl(self, *arguments: str) -> str:
        """Configuration, through the database; returns when the switch has taken it."""
        timeout = str(int(self.options.command_timeout))
        database = f"--db=unix:{self.directory / 'db.sock'}"
        return self._run("ovs-vsctl", f"--timeout={timeout}", database, *arguments)

    def ofctl(self, *arguments: str, text: str | None = None) -> str:
        """OpenFlow; ``text`` is standard input (``add-flows br0 -``)."""
        return self._run("ovs-ofctl", *arguments, text=text)

    def appctl(self, *arguments: str) -> str:
        """A command to the daemon itself."""
        return self._run("ovs-appctl", f"--target={self._control}", *arguments)

    def check_interfaces(self) -> None:
        """Raise if a port is out of order: the switch drops a vhost-user port whose guest asks for more than it has."""
        errors = self.vsctl("--bare", "--columns=name,error", "find", "interface", "error!=[]").strip()
        if errors:
            raise NotNow(
                Reason("switch", "ports", f"the switch has ports that are out of order: {' '.join(errors.split())}")
            )

    # Reading it.

    def pmd_statistics(self) -> tuple[PmdStatistics, ...]:
        """Every polling thread's counters."""
        return parse_pmd_statistics(self.appctl("dpif-netdev/pmd-stats-show"))

    def rx_queues(self) -> tuple[RxQueue, ...]:
        """Every queue that is polled, with the core that polls it."""
        return parse_rx_queues(self.appctl("dpif-netdev/pmd-rxq-show"))

    def rate(self, seconds: float = 1.0) -> Rate:
        """What the polling threads handle in a window of ``seconds`` from now."""
        before, begin = self.pmd_statistics(), time.monotonic()
        time.sleep(seconds)
        after, finish = self.pmd_statistics(), time.monotonic()
        return rate_between(before, after, finish - begin)

    def datapath(self) -> Datapath:
        """The datapath's own counters of lookups, and of its ports with what they dropped."""
        return parse_datapath(self.appctl("dpctl/show", "-s"))

    def drops(self) -> dict[str, int]:
        """Packets that the datapath dropped of its own accord, by cause.  Polling threads count them with a delay of
        about a second."""
        return parse_drops(self.appctl("coverage/show"))

    def megaflows(self) -> dict[str, int]:
        """What the datapath has cached, by polling thread, match and actions, with the packets of each."""
        return parse_megaflows(self.appctl("dpctl/dump-flows"))

    def flows(self, bridge: str = BRIDGE) -> tuple[Flow, ...]:
        """The OpenFlow flows with their counters, sorted, without ages."""
        return parse_flows(self.ofctl("dump-flows", bridge))

    def port_counters(self, bridge: str = BRIDGE) -> tuple[PortCounters, ...]:
        return parse_ports(self.ofctl("dump-ports", bridge))

    def bridges(self) -> tuple[str, ...]:
        return tuple(sorted(self.vsctl("list-br").split()))

    def ports(self) -> tuple[str, ...]:
        """Every port as ``bridge: name OpenFlow-number/datapath-number (type)``: where packets go, in one word each."""
        found, bridge = [], ""
        for line in self.appctl("dpif/show").splitlines():
            if match := re.match(r"^    (\S+) (\S+): \((\w+)", line):
                found.append(f"{bridge}: {match[1]} {match[2]} ({match[3]})")
            elif match := re.match(r"^  (\S+):$", line):
                bridge = match[1]
        return tuple(sorted(found))

    def datapath_ids(self) -> dict[str, str]:
        """Each bridge's OpenFlow datapath id."""
        return {name: self.vsctl("get", "bridge", name, "datapath_id").strip().strip('"') for name in self.bridges()}

    def threads(self) -> dict[int, str]:
        """Thread id to name, without the C library's helpers for asynchronous I/O (of the log).

        Those come and go each second, under the name of the thread that needed one; they alone block every signal.
        """
        found = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            status = dict(line.partition(":\t")[::2] for line in _read(task / "status").splitlines())
            if status and not _blocks_every_signal(int(status["SigBlk"], 16)):
                found[int(task.name)] = status["Name"]
        return found

    # Starting and stopping.

    def stop(self) -> None:
        """End both processes and give everything back; may be called at any time, and again."""
        self._resources.close()
        self._daemon = self._server = self._directory = None

    def end_daemon(self) -> None:
        """End ovs-vswitchd in the orderly way, as ``ovs-ctl stop`` does.  The database goes on."""
        assert self._daemon is not None
        self.appctl("exit")
        try:
            self._daemon.wait(self.options.command_timeout)
        except subprocess.TimeoutExpired:
            raise NotNow(Reason("switch", "ovs-vswitchd", "ovs-vswitchd did not end when it was told to")) from None

    def start_daemon(self, build: SwitchBuild | None = None) -> None:
        """Start ovs-vswitchd again, of another build if one is given; returns when its ports are there."""
        self.build = build or self.build
        self._start_daemon()
        sockets = [self.management(bridge) for bridge in self.bridges()]
        wait_until(lambda: all(socket.exists() for socket in sockets), self.options.start_timeout, "the bridges")
        self.check_interfaces()

    def _start(self) -> None:
        self._make_directory()
        self._resources.enter_context(hugepages(self.options.memory() + HUGEPAGES_BESIDE_MEMORY))
        self._start_database()
        self._start_daemon()
        self._add_ports()

    def _make_directory(self) -> None:
        _remove_abandoned()
        self._directory = Path(tempfile.mkdtemp(prefix=f"{DIRECTORIES}{owner()}-"))
        self._resources.callback(shutil.rmtree, self._directory, ignore_errors=True)

    def _start_database(self) -> None:
        database, socket = self.directory / "conf.db", self.directory / "db.sock"
        self._run("ovsdb-tool", "create", str(database), str(self.build.schema))
        self._server = self._spawn("ovsdb-server", str(database), f"--remote=punix:{socket}")
        wait_until(socket.exists, self.options.start_timeout, "the database's socket")
        settings = (f"other_config:{key}={value}" for key, value in self._configuration().items())
        self.vsctl("--no-wait", "init")
        self.vsctl("--no-wait", "set", "Open_vSwitch", ".", *settings)

    def _start_daemon(self) -> None:
        database = f"unix:{self.directory / 'db.sock'}"
        self._daemon = self._spawn("ovs-vswitchd", database, own_network=True)
        # DPDK loads 200 drivers first: from a cold disk that takes ten seconds.
        wait_until(self._is_ready, self.options.start_timeout, "ovs-vswitchd to start", pause=0.1)

    def _add_ports(self) -> None:
        self.vsctl("add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev", "fail-mode=secure")
        # The rules come first: a port delivers at full speed from its first moment.
        if self.options.forwarding_rules():
            self.ofctl("add-flows", BRIDGE, "-", text="\n".join(self.options.forwarding_rules()) + "\n")
        words = []
        for number in range(1, self.options.ports + 1):
            device = f"net_null{number - 1},size={self.options.packet_size}"
            if self.options.devices:
                device = self.options.devices[number - 1]
            words += _port(f"null{number}", number, "type=dpdk", f'options:dpdk-devargs="{device}"')
        for port in range(1, self.options.vhost_ports + 1):
            path = f"options:vhost-server-path={self.vhost_socket(port)}"
            words += _port(f"vhost{port}", self.options.vhost_number(port), "type=dpdkvhostuserclient", path)
        self.vsctl(*words)
        self.check_interfaces()

    def _configuration(self) -> dict[str, str]:
        main, polling = self.options.cores()
        return {
            "dpdk-init": "true",
            # --no-pci: no device of the machine is ever touched.  --in-memory: nothing is left in a file system.
            "dpdk-extra": f'"--no-pci --no-telemetry --in-memory --file-prefix={self.directory.name}"',
            "dpdk-socket-mem": str(self.options.memory()),
            "dpdk-lcore-mask": hex(1 << main),
            "pmd-cpu-mask": hex(sum(1 << core for core in polling)),
            "per-port-memory": "true",  # a pool of packets for each port and no larger than it needs
            **(self.options.other_config or {}),
        }

    def _is_ready(self) -> bool:
        assert self._daemon is not None
        if self._daemon.poll() is not None:
            raise NotNow(Reason("switch", "ovs-vswitchd", f"ovs-vswitchd ended while starting:\n{_tail(self.log())}"))
        return self._control.exists() and self.vsctl("get", "Open_vSwitch", ".", "dpdk_initialized").strip() == "true"

    @property
    def _control(self) -> Path:
        return self.directory / "ovs-vswitchd.ctl"

    def _spawn(self, name: str, *arguments: str, own_network: bool = False) -> subprocess.Popen[bytes]:
        command = [
            str(self.build.program(name)),
            *arguments,
            "--no-chdir",
            f"--pidfile={self.directory / name}.pid",
            f"--unixctl={self.directory / name}.ctl",
            f"--log-file={self.directory / name}.log",
            "-vconsole:off",
            "-vsyslog:off",
        ]
        with (self.directory / f"{name}.out").open("wb") as output:
            environment = self.build.environment(self.directory)
            network_of = self.options.network_of if own_network else None
            process = spawn(command, environment, output, own_network=own_network, network_of=network_of)
        self._resources.callback(end, process)
        return process

    def _run(self, name: str, *arguments: str, text: str | None = None) -> str:
        command = [str(self.build.program(name)), *arguments]
        try:
            done = subprocess.run(
                command,
                env=self.build.environment(self.directory),
                input=text or "",
                capture_output=True,
                text=True,
                timeout=self.options.command_timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise NotNow(_failure(name, arguments, f"no answer within {error.timeout:g} s")) from None
        if done.returncode != 0:
            raise NotNow(_failure(name, arguments, done.stderr.strip() or f"exit code {done.returncode}"))
        return done.stdout


def _remove_abandoned() -> None:
    """Remove the directories of switches whose owner was killed before it could."""
    for directory in Path(tempfile.gettempdir()).glob(f"{DIRECTORIES}*"):
        if owner_is_gone(directory.name.removeprefix(DIRECTORIES)):
            shutil.rmtree(directory, ignore_errors=True)


def _failure(name: str, arguments: Sequence[str], words: str) -> Reason:
    routine = ("--db=", "--target=", "--timeout=")
    shown = " ".join(argument for argument in arguments if not argument.startswith(routine))
    return Reason("switch", name, f"{name} {shown}: {words}")


def _port(name: str, number: int, *settings: str) -> list[str]:
    words = ["--", "add-port", BRIDGE, name, "--", "set", "interface", name]
    return [*words, *settings, f"ofport_request={number}"]


def _pairs(before: int, ports: int) -> Iterator[tuple[int, str]]:
    """Number and action of each of ``ports`` ports that come after ``before`` others."""
    for port in range(1, ports + 1):
        yield before + port, _partner(port, before, ports)


def _partner(port: int, before: int, ports: int) -> str:
    """1 and 2 forward to one another, 3 and 4, and so on; a port that is left over sends to the first."""
    partner = port + 1 if port % 2 else port - 1
    if partner > ports:
        # A port never gets its own packets back unless that is said.
        return "in_port" if port == 1 else f"output:{before + 1}"
    return f"output:{before + partner}"


def _blocks_every_signal(mask: int) -> bool:
    """As far as the C library lets anyone block them: three that no program of its own accord blocks stand for all."""
    return all(mask >> number - 1 & 1 for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _tail(text: str, lines: int = 15) -> str:
    return "\n".join(text.splitlines()[-lines:])
