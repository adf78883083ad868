"""What two captures of one stream, before and behind the switch, say of an interruption.

Buffers hide pauses, and senders stumble: so each packet has two times, and what was lost is known by number.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.compare.packets import I64, Seen

MS, NS = 1e6, 1e9  # ns in a ms, and in a second
Mask = npt.NDArray[np.bool_]
LEAST = 100  # packets
#: So much of the time before the event is looked at, and so much is left out: what a ring holds when it begins.
CONTROL_NS, APART_NS = 500_000_000, 100_000_000


@dataclass(frozen=True, slots=True)
class Measurement:
    """Times in ms, rates in packets per second.

    ``break_ms``: how long the traffic was interrupted: the longest time from when a packet was sent until it, or if it
    was lost the next that was not, came out.  A sender that pauses does not count, nor does a ring hide anything.
    ``control_ms`` and ``control_lost``: the same, and packets lost, in half a second before: what the machine itself
    did just then.  Where they are large the run says little.
    ``gap_ms``: the longest time without a packet behind the switch, ``gap_at_ms`` where it began, after the event's
    begin; ``sender_gap_ms``: the longest pause of the sender itself.  ``loss_ms``: what was lost in all of the window,
    as time at the rate that was offered.  ``delay_ms``: median, 99th percentile and maximum of what packets took.
    """

    offered_pps: float
    sent: int
    received: int
    lost: int
    duplicated: int
    loss_ms: float
    break_ms: float
    control_ms: float
    control_lost: int
    gap_ms: float
    gap_at_ms: float
    sender_gap_ms: float
    delay_ms: tuple[float, float, float]

    def document(self) -> dict[str, Any]:
        return asdict(self)


def measure(sent: Seen, received: Seen, event_ns: int) -> Measurement:
    """Compare what went in with what came out, from the event on; what came before is the warming up.

    Args:
        sent: in the order of sending, each number once.
        received: in the order of arrival.
        event_ns: when the event began, in ns since the epoch.

    Raises:
        HotUpgradeError: too little was sent to say anything.
    """
    counted = sent.at_ns >= event_ns
    if counted.sum() < LEAST:
        raise HotUpgradeError(f"only {counted.sum()} packets were sent from the event on: is the sender running?")
    came, first = np.unique(received.number, return_index=True)
    arrivals_of = received.at_ns[first]
    numbers, sent_at, arrived, arrivals = _matched(sent, counted, came, arrivals_of)
    ready = (sent.at_ns >= event_ns - APART_NS - CONTROL_NS) & (sent.at_ns < event_ns - APART_NS)
    control = _matched(sent, ready, came, arrivals_of)
    offered = (len(numbers) - 1) / (int(sent_at[-1] - sent_at[0]) / NS)
    lost = len(numbers) - int(arrived.sum())
    # What never came is a gap, too: from the packet before the first, and up to the one after the last.
    spacing = round(NS / offered)
    edges = np.sort(np.concatenate([sent_at[:1] - spacing, arrivals, sent_at[-1:] + spacing]))
    gaps = np.diff(edges)
    longest = int(np.argmax(gaps))
    delays = (arrivals - sent_at[arrived]) / MS
    spread = np.percentile(delays, [50, 99, 100]).tolist() if len(delays) else [0.0, 0.0, 0.0]
    return Measurement(
        offered_pps=offered,
        sent=len(numbers),
        received=len(numbers) - lost,
        lost=lost,
        duplicated=len(received.number) - len(came),
        loss_ms=lost / offered * 1000,
        break_ms=_longest_wait(sent_at, arrived, arrivals, int(sent_at[-1]) + spacing) / MS,
        control_ms=_longest_wait(*control[1:], event_ns) / MS,
        control_lost=int((~control[2]).sum()),
        gap_ms=float(gaps[longest]) / MS,
        gap_at_ms=(int(edges[longest]) - event_ns) / MS,
        sender_gap_ms=float(np.diff(sent_at).max()) / MS,
        delay_ms=(spread[0], spread[1], spread[2]),
    )


def _matched(sent: Seen, chosen: Mask, came: I64, arrivals: I64) -> tuple[I64, I64, Mask, I64]:
    """Of the chosen packets: numbers, times of sending, which arrived, and when those did.

    ``came`` are the numbers of all that arrived, sorted, and ``arrivals`` their times.
    """
    numbers, sent_at = sent.number[chosen], sent.at_ns[chosen]
    rows = np.searchsorted(came, numbers)
    rows[rows == len(came)] = 0
    arrived = came[rows] == numbers if len(came) else np.zeros(len(numbers), np.bool_)
    return numbers, sent_at, arrived, arrivals[rows[arrived]]


def _longest_wait(sent_at: I64, arrived: Mask, arrivals: I64, end_ns: int) -> float:
    """The longest time, in ns, from a packet's sending until it or the next that was not lost came.

    ``arrivals`` are those of the packets that ``arrived``; what came never was waited for until ``end_ns``.
    """
    came = np.full(len(sent_at) + 1, end_ns, np.int64)
    came[:-1][arrived] = arrivals
    # For each packet the place of the next that came, itself counted; the end is the last place.
    places = np.append(np.where(arrived, np.arange(len(sent_at)), len(sent_at)), len(sent_at))
    following = np.minimum.accumulate(places[::-1])[::-1][:-1]
    return float((came[following] - sent_at).max(initial=0))
