"""iperf3: one TCP stream of a limited rate, its retransmissions, and how long it stood still."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.compare.application import Application, Figure
from hotupgrade.vswitch.compare.hosts import Hosts
from hotupgrade.vswitch.processes import end, wait_until

Document = dict[str, Any]
#: Offered, in Mbit/s: as fast as it goes it would take the processor that the switch's main thread is on, too.
RATE = 100
LIMIT_S, INTERVAL_S = 120, 0.1
#: An interval with less than this part of what is offered is one in which the stream stood still.
STILL = 0.02
_START_S = 15.0


@contextmanager
def _run(hosts: Hosts, folder: Path) -> Iterator[Callable[[], Document]]:
    said = folder / "iperf3-server"
    server = hosts.server.start(["iperf3", "--server", "--one-off", "--forceflush"], said)
    try:
        wait_until(lambda: "listening" in said.read_text(), _START_S, "iperf3 to listen")
        words = ["iperf3", "--client", hosts.server.address, "--json", "--time", str(LIMIT_S)]
        words += ["--interval", str(INTERVAL_S), "--bitrate", f"{RATE}M"]
        client = hosts.client.start(words, folder / "iperf3")
        try:

            def finish() -> Document:
                client.send_signal(signal.SIGINT)  # it then says what it has counted so far
                client.wait(_START_S)
                return read((folder / "iperf3").read_text())

            yield finish
        finally:
            end(client)
    finally:
        end(server)


def read(text: str) -> Document:
    """What iperf3's client says with ``--json``.

    ``mbps``: sent in all of the time, Mbit/s; ``still_ms``: the longest time in which (almost) nothing was sent.

    Raises:
        HotUpgradeError: it sent nothing.
    """
    try:
        document = json.loads(text)
        intervals = [interval["sum"] for interval in document["intervals"]]
    except (ValueError, KeyError, TypeError):
        intervals = []
    seconds = sum(interval["seconds"] for interval in intervals)
    if not seconds:
        raise HotUpgradeError(f"iperf3 has measured nothing: {text.strip()[-300:]}")
    longest = still = 0.0
    for interval in intervals:
        still = still + interval["seconds"] if interval["bits_per_second"] < STILL * RATE * 1e6 else 0.0
        longest = max(longest, still)
    return {
        "seconds": seconds,
        "mbps": sum(interval["bytes"] for interval in intervals) * 8 / seconds / 1e6,
        "retransmits": sum(interval.get("retransmits", 0) for interval in intervals),
        "still_ms": 1000 * longest,
    }


IPERF = Application(
    "iperf3",
    f"iperf3, one TCP stream of {RATE} Mbit/s",
    (Figure("mbps", "Mbit/s", 1), Figure("retransmits", "retransmits"), Figure("still_ms", "stood still, ms")),
    _run,
)
