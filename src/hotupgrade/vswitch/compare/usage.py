"""What processes cost: memory that nobody shares with them, hugepages, and cores."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

#: As long as threads are watched, and as often as one that polls may wait for something meanwhile (for a lock, say).
WINDOW_S = 0.3
MOST_SLEEPS = 3


@dataclass(frozen=True, slots=True)
class Usage:
    """Memory in KiB.  ``polling``: threads that never sleep; each wants a core, whether it has one to itself or not."""

    private_kb: int = 0
    hugepages_kb: int = 0
    polling: int = 0

    def beyond(self, other: Usage) -> Usage:
        """How much more this is."""
        return Usage(
            self.private_kb - other.private_kb, self.hugepages_kb - other.hugepages_kb, self.polling - other.polling
        )

    def document(self) -> dict[str, int]:
        return {"private_kb": self.private_kb, "hugepages_kb": self.hugepages_kb, "polling": self.polling}


def usage(pids: Iterable[int], window: float = WINDOW_S) -> Usage:
    """What these processes take together.  Takes ``window`` seconds."""
    processes = tuple(pids)
    found = [memory(Path(f"/proc/{pid}/smaps_rollup").read_text()) for pid in processes]
    return Usage(
        private_kb=sum(private for private, _, _ in found),
        # DPDK's processes may share them; a page that several of these processes map is there once.
        hugepages_kb=sum(own for _, own, _ in found) + max((shared for _, _, shared in found), default=0),
        polling=_polling(processes, window),
    )


def memory(rollup: str) -> tuple[int, int, int]:
    """KiB of private memory, of hugepages that are mapped here alone, and of shared hugepages.

    Source of the format: proc(5), ``smaps_rollup``.  Hugepages are in none of its other lines.
    """
    lines = {match[1]: int(match[2]) for match in re.finditer(r"^(\w+): +(\d+) kB$", rollup, re.MULTILINE)}
    return lines["Private_Clean"] + lines["Private_Dirty"], lines["Private_Hugetlb"], lines["Shared_Hugetlb"]


def _polling(pids: Sequence[int], window: float) -> int:
    """How many threads want to run all the time: ready whenever looked at, and never going to sleep in between.

    What they got of a core says less, for others may have it.
    """
    before = _ready(pids)
    time.sleep(window)
    after = _ready(pids)
    return sum(after[task] - before[task] <= MOST_SLEEPS for task in after.keys() & before.keys())


def _ready(pids: Sequence[int]) -> dict[Path, int]:
    """Threads that run or would if they had a core, and how often each has gone to sleep so far.

    Source of the format: proc(5), ``status``.
    """
    found = {}
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                status = (task / "status").read_text()
            except OSError:
                continue  # ended meanwhile
            fields = dict(line.partition(":\t")[::2] for line in status.splitlines())
            if fields["State"].startswith("R"):
                found[task] = int(fields["voluntary_ctxt_switches"])
    return found
