"""A guest on vhost-user ports, as a virtual machine has them: how long nothing comes back to it, and what never does.

Packets go round between guest and switch as fast as both can (:mod:`hotupgrade.vswitch.guest`).  The loop is closed:
what is lost is lost once, however long nobody forwards.  So it is the time without a packet that counts here; and where
there is no packet left, as after a switch was started anew, the guest sends again, as TCP would.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare.application import Application, Figure
from hotupgrade.vswitch.guest import Guest, GuestOptions, Tally, rules
from hotupgrade.vswitch.switch import Switch, SwitchOptions

Document = dict[str, Any]
Sample = tuple[float, float, int]  # asked at, answered at (s); packets that had come back at some time between
PAUSE_S = 0.01  # between two looks at the guest's counters
SILENCE_S = 0.05  # without a packet, until the guest sends again
COMMAND_S = 60.0
_PORTS = (1, 2)


@dataclass(frozen=True, slots=True)
class SwitchAndGuest:
    """A switch and its guest; made by :func:`switch_and_guest`."""

    subject: Switch
    guest: Guest

    def freshen(self) -> None:
        """A switch that has just been started is taken up by the guest in its own time."""
        self.guest.wait_until_connected()


@contextmanager
def switch_and_guest(build: SwitchBuild) -> Iterator[SwitchAndGuest]:
    """A switch with two vhost-user ports and nothing else, and the guest that has both.

    Raises:
        NotNow: they cannot be had.
    """
    look = GuestOptions()
    options = SwitchOptions(
        ports=0, vhost_ports=len(_PORTS), rules=rules(look, *_PORTS), command_timeout=COMMAND_S, memory_mib=128
    )
    with Switch(build, options) as switch, Guest(switch, _PORTS, look) as guest:
        yield SwitchAndGuest(switch, guest)


@contextmanager
def _run(place: SwitchAndGuest, _: Path) -> Iterator[Callable[[], Document]]:
    guest, ended = place.guest, threading.Event()
    guest.circulate()
    with ThreadPoolExecutor(max_workers=1) as pool:
        looking = pool.submit(_look, guest, ended)

        def finish() -> Document:
            ended.set()
            return read(looking.result(), guest.collect())

        try:
            yield finish
        finally:
            ended.set()


def _look(guest: Guest, ended: threading.Event) -> list[Sample]:
    """At the guest's counters, again and again."""
    samples: list[Sample] = []
    last, since = -1, 0.0
    while not ended.wait(PAUSE_S):
        asked = time.monotonic()
        count = sum(port.received for port in guest.ports())
        samples.append((asked, time.monotonic(), count))
        if count != last:
            last, since = count, asked
        elif asked - since > SILENCE_S:
            if guest.is_connected():
                guest.send_again()
            since = asked
    return samples


def read(samples: Sequence[Sample], tally: Tally) -> Document:
    """What became of the packets.

    ``still_ms``: the longest time in which none came back, from one look's answer until another was asked for: never
    more than it was, and less by as long as two looks are apart.  ``mpps``: those that came back in all of the time.

    Raises:
        HotUpgradeError: too little was seen.
    """
    if len(samples) < 2 or samples[-1][2] == samples[0][2]:
        raise HotUpgradeError("no packet came back to the guest")
    longest, since = 0.0, samples[0]
    for sample in samples:
        if sample[2] != since[2]:
            since = sample
        longest = max(longest, sample[0] - since[1])
    (begin, _, first), (end, _, last) = samples[0], samples[-1]
    return {
        "mpps": (last - first) / (end - begin) / 1e6,
        "still_ms": 1000 * longest,
        "lost": tally.lost,
        "launched": tally.launched,
        "looks": len(samples),
    }


GUEST = Application(
    "guest",
    "a guest on vhost-user ports (dpdk-testpmd, virtio-user) that returns every packet",
    (
        Figure("mpps", "million packets a second", 2),
        Figure("still_ms", "no packet for, ms"),
        Figure("lost", "packets lost"),
        Figure("launched", "of those that go round"),
    ),
    _run,
    between=switch_and_guest,
)
