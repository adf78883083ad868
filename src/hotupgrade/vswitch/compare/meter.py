"""Traffic through a switch, counted and timed on both sides: tcpreplay sends at a steady pace, tcpdump captures."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.compare.cores import aside
from hotupgrade.vswitch.compare.measurement import Measurement, measure
from hotupgrade.vswitch.compare.network import Network
from hotupgrade.vswitch.compare.packets import PORT, SIZE, Seen, read_capture, write_stream
from hotupgrade.vswitch.compare.series import Series, series
from hotupgrade.vswitch.processes import end, wait_until

#: Before and after the event, in seconds: what is normal must be seen, too.
MARGIN_S = 0.5
CAPTURE_BUFFER_KIB = 65_536
#: Pauses that are made on purpose, in ms, and what part of them must be found at least.
PAUSES_MS = (1.0, 2.0, 5.0, 10.0)
TOO_SHORT = 0.9
_TRIES = 5
_START_S = 30.0


@dataclass
class Watch:
    """One window of traffic.  ``result`` and ``series`` are there when it has ended."""

    event_ns: int = 0
    result: Measurement | None = None
    series: Series | None = None

    def begin(self) -> None:
        """The event begins now; what was sent before is the warming up."""
        self.event_ns = time.time_ns()

    @property
    def measured(self) -> Measurement:
        assert self.result is not None
        return self.result


class Meter:
    """Sends from one interface of a network to another, through whatever is between them."""

    def __init__(self, network: Network, source: str, sink: str, pps: int) -> None:
        self._network = network
        self._source, self._sink = source, sink
        self.pps = pps

    @contextmanager
    def watch(self, seconds: float) -> Iterator[Watch]:
        """Traffic for as long as the block takes and a little longer, at most ``seconds``.

        Raises:
            HotUpgradeError: the programs cannot be started, or the capture itself lost packets.
        """
        watch = Watch()
        with ExitStack() as resources:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="hotupgrade-meter-")))
            write_stream(folder / "stream", int(self.pps * (seconds + 2 * MARGIN_S)))
            captures = [
                Capture(self._network, interface, direction, folder / direction)
                for interface, direction in ((self._source, "out"), (self._sink, "in"))
            ]
            for capture in captures:
                resources.callback(end, capture.process)
            words = [*aside(), "tcpreplay", "--intf1", self._source, "--pps", str(self.pps)]
            words += ["--preload-pcap", "--quiet"]
            words += ["--timer", "nano"]  # sleeps between packets: one that spins takes the core from all others
            sender = self._network.start([*words, str(folder / "stream")], folder / "sender")
            resources.callback(end, sender)
            sink = captures[1]
            wait_until(lambda: sink.size > 100 * SIZE or sender.poll() is not None, _START_S, "the first packets")
            time.sleep(MARGIN_S)
            watch.begin()
            yield watch
            time.sleep(MARGIN_S)
            if sender.poll() is not None:
                raise HotUpgradeError(f"the sender ended too early: {(folder / 'sender').read_text()[-300:]}")
            sender.send_signal(signal.SIGINT)
            sender.wait(10)
            time.sleep(0.3)  # what is on its way
            sent, received = (capture.finish() for capture in captures)
            watch.result = measure(sent, received, watch.event_ns)
            watch.series = series(sent, received, watch.event_ns)


class Capture:
    """tcpdump at one interface, of the packets that go one way."""

    def __init__(self, network: Network, interface: str, direction: str, path: Path) -> None:
        self._path, self._words = path, path.with_suffix(".words")
        words = [
            *aside(),
            "tcpdump",
            "-i",
            interface,
            "-Q",
            direction,
            "-n",
            "-U",
            "--immediate-mode",
            "-s",
            str(SIZE),
            "-w",
            str(path),
        ]
        words += ["-B", str(CAPTURE_BUFFER_KIB), "--time-stamp-precision=nano", "-Z", "root", f"udp port {PORT}"]
        self.process = network.start(words, self._words)
        wait_until(lambda: "listening on" in self._said(), _START_S, f"tcpdump at {interface}")

    @property
    def size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def _said(self) -> str:
        return self._words.read_text(errors="replace")

    def finish(self) -> Seen:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)
        dropped = re.search(r"(\d+) packets dropped by kernel", self._said())
        if dropped is None or int(dropped[1]):
            raise HotUpgradeError(f"the capture is not whole, and proves nothing: {self._said().strip()[-300:]}")
        return read_capture(self._path)


def prove(meter: Meter, pid: int, pauses_ms: Sequence[float] = PAUSES_MS) -> list[tuple[float, Measurement]]:
    """Stop the process on purpose, and see whether the meter finds that; the first is no pause: the noise.

    Returns:
        How long each pause was in the end, in ms, and what was found.

    Raises:
        HotUpgradeError: a pause was not found: what the meter says is worth nothing.
    """
    return [_proof(meter, pid, pause) for pause in (0.0, *pauses_ms)]


def _proof(meter: Meter, pid: int, pause_ms: float, tries: int = _TRIES) -> tuple[float, Measurement]:
    with meter.watch(5) as watch:
        made = _pause(pid, pause_ms) if pause_ms else 0.0
    found = watch.measured
    # Not the time without a packet: on a crowded machine the sender makes such of its own.
    if found.break_ms >= TOO_SHORT * made:
        return made, found
    if tries > 1 and found.sender_gap_ms > (1 - TOO_SHORT) * made:
        # The sender stood still itself: if it was in the pause, nothing that was sent had to wait.
        return _proof(meter, pid, pause_ms, tries - 1)
    text = f"a pause of {made:.2f} ms was measured as {found.break_ms:.2f} ms"
    raise HotUpgradeError(f"the meter does not work here: {text}; is something between that buffers?")


#: The time counts from when every thread stands: one that is in the kernel goes on for a while after the signal.  It
#: sleeps meanwhile: if it took the processor, the sender might not get it, and nothing would wait.
_HOLD = """
import glob, os, signal, sys, time

pid, seconds = int(sys.argv[1]), float(sys.argv[2]) / 1000
threads = glob.glob(f"/proc/{pid}/task/*/stat")


def moves(thread):
    try:
        with open(thread) as file:
            return not file.read().rpartition(") ")[2].startswith("T")
    except (FileNotFoundError, ProcessLookupError):
        return False


os.kill(pid, signal.SIGSTOP)
try:
    limit = time.perf_counter() + 1
    while (threads := [thread for thread in threads if moves(thread)]) and time.perf_counter() < limit:
        pass
    begin = time.perf_counter()
    time.sleep(seconds)
    end = time.perf_counter()
finally:
    os.kill(pid, signal.SIGCONT)
print(1000 * (end - begin))
"""


def _pause(pid: int, milliseconds: float) -> float:
    """Hold a process of ours for at least so long, by a program of its own, since this one may be slow to come back.

    Returns:
        For how long it certainly stood, in ms.
    """
    words = [sys.executable, "-S", "-c", _HOLD, str(pid), str(milliseconds)]
    return float(subprocess.run(words, check=True, timeout=10, stdout=subprocess.PIPE).stdout)
