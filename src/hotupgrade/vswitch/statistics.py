"""The datapath's own counters: what ``dpif-netdev/pmd-stats-show`` prints, as numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields

THREAD = re.compile(r"^pmd thread numa_id (?P<numa>\d+) core_id (?P<core>\d+):$", re.MULTILINE)
COUNTERS = {
    "packets": "packets received",
    "recirculations": "packet recirculations",
    "phwol_hits": "phwol hits",
    "mfex_hits": "mfex opt hits",
    "simple_match_hits": "simple match hits",
    "emc_hits": "emc hits",
    "smc_hits": "smc hits",
    "megaflow_hits": "megaflow hits",
    "upcalls": "miss with success upcall",
    "failed_upcalls": "miss with failed upcall",
    "idle_cycles": "idle cycles",
    "busy_cycles": "processing cycles",
}


@dataclass(frozen=True, slots=True)
class PmdStatistics:
    """The counters of one polling thread since it started (or, as a difference, in a window)."""

    numa: int
    core: int
    packets: int = 0
    recirculations: int = 0
    phwol_hits: int = 0
    mfex_hits: int = 0
    simple_match_hits: int = 0
    emc_hits: int = 0
    smc_hits: int = 0
    megaflow_hits: int = 0
    upcalls: int = 0
    failed_upcalls: int = 0
    idle_cycles: int = 0
    busy_cycles: int = 0

    @property
    def cycles(self) -> int:
        """Time-stamp counter ticks that the thread has spent polling: its own clock."""
        return self.idle_cycles + self.busy_cycles

    def counters(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in COUNTERS}

    def since(self, earlier: PmdStatistics) -> PmdStatistics:
        """What was counted between ``earlier`` and now."""
        return PmdStatistics(
            self.numa, self.core, **{name: count - getattr(earlier, name) for name, count in self.counters().items()}
        )


@dataclass(frozen=True, slots=True)
class Rate:
    """Packets that all polling threads handled in a window, by two clocks."""

    packets: int
    cycles: int
    seconds: float

    @property
    def per_second(self) -> float:
        """By the reader's clock: blurred by the time that the reading takes (some milliseconds)."""
        return self.packets / self.seconds

    @property
    def per_kilocycle(self) -> float:
        """By the threads' own clock, read together with the packets: the one to take ratios of."""
        return 1000 * self.packets / self.cycles if self.cycles else 0.0

    def ratio_to(self, earlier: Rate) -> float:
        return self.per_kilocycle / earlier.per_kilocycle if earlier.per_kilocycle else 0.0


def parse_pmd_statistics(text: str) -> tuple[PmdStatistics, ...]:
    """Every polling thread in the text, in its order; the main thread polls nothing and is left out."""
    blocks = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    found = []
    for block in blocks:
        head = THREAD.match(block)
        if head is not None:
            counters = {name: _counter(block, words) for name, words in COUNTERS.items()}
            found.append(PmdStatistics(int(head["numa"]), int(head["core"]), **counters))
    return tuple(found)


def rate_between(before: Iterable[PmdStatistics], after: Iterable[PmdStatistics], seconds: float) -> Rate:
    """The rate of the threads that were there both times."""
    earlier = {(thread.numa, thread.core): thread for thread in before}
    gained = [
        thread.since(earlier[thread.numa, thread.core]) for thread in after if (thread.numa, thread.core) in earlier
    ]
    return Rate(sum(thread.packets for thread in gained), sum(thread.cycles for thread in gained), seconds)


def _counter(block: str, words: str) -> int:
    match = re.search(rf"^\s+{re.escape(words)}:\s+(\d+)", block, re.MULTILINE)
    return int(match[1]) if match else 0


assert {field.name for field in fields(PmdStatistics)} == {"numa", "core", *COUNTERS}
