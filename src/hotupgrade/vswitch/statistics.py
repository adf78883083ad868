"""The datapath's own counters: what ``dpif-netdev/pmd-stats-show`` and its neighbours print, as numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields

from hotupgrade.errors import NotNow, Reason

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


DATAPATH = re.compile(
    r"^ *lookups: hit:(?P<hit>\d+) missed:(?P<missed>\d+) lost:(?P<lost>\d+)\s+flows: (?P<megaflows>\d+)$", re.MULTILINE
)
PORT = re.compile(r"^ *port \d+: (?P<name>\S+).*\n(?P<counters>(?: +(?:RX|TX) packets:.*\n){2})", re.MULTILINE)
QUEUE = re.compile(r"^ +port: (?P<port>\S+) +queue-id: +(?P<queue>\d+) +\((?P<state>\w+)\)")
DROPS = re.compile(r"^datapath_drop_(?P<name>\w+) .* total: (?P<total>\d+)$", re.MULTILINE)
POLLER = re.compile(r"^flow-dump from (?:pmd on cpu core: (?P<core>\d+)|.*)$")
MEGAFLOW_FLEETING = re.compile(r"(?P<packets>packets:(?P<count>\d+), )?bytes:\d+, used:[^,]+, (?:flags:[^,]+, )?")


@dataclass(frozen=True, slots=True)
class Shares:
    """How the packets of one polling thread found their way, each as a part of all (0 to 1)."""

    simple_match: float
    emc: float
    smc: float
    megaflow: float
    upcalls: float  # with those that failed


@dataclass(frozen=True, slots=True)
class DatapathPort:
    """A port as the datapath sees it; what it could not send is lost for a guest."""

    name: str
    received: int
    receive_dropped: int
    sent: int
    send_dropped: int


@dataclass(frozen=True, slots=True)
class Datapath:
    """All of the datapath; ``lost`` are packets that found no flow and could not be handed on."""

    hit: int
    missed: int
    lost: int
    megaflows: int
    ports: tuple[DatapathPort, ...]

    @property
    def dropped(self) -> int:
        """What any of its ports dropped."""
        return sum(port.receive_dropped + port.send_dropped for port in self.ports)


@dataclass(frozen=True, slots=True)
class RxQueue:
    """A queue that a polling thread takes packets from."""

    core: int
    port: str
    queue: int
    enabled: bool  # a guest may have connected and not yet opened it


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

    def shares(self) -> Shares:
        """Nothing looked up: all shares are 0."""
        counts = (self.simple_match_hits, self.emc_hits, self.smc_hits, self.megaflow_hits, self._all_upcalls)
        lookups = sum(counts) or 1
        return Shares(*(count / lookups for count in counts))

    @property
    def _all_upcalls(self) -> int:
        return self.upcalls + self.failed_upcalls

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


def parse_datapath(text: str) -> Datapath:
    """The datapath in the output of ``dpctl/show -s``."""
    head = DATAPATH.search(text)
    if head is None:
        raise NotNow(Reason("switch", "dpctl/show", f"dpctl/show printed no lookups: {text[:200]}"))
    ports = tuple(_datapath_port(match["name"], match["counters"]) for match in PORT.finditer(text))
    return Datapath(int(head["hit"]), int(head["missed"]), int(head["lost"]), int(head["megaflows"]), ports)


def parse_megaflows(text: str) -> dict[str, int]:
    """The megaflows of ``dpctl/dump-flows`` as ``core: match, actions``, with the packets that each has handled."""
    found, core = {}, ""
    for line in text.splitlines():
        if match := POLLER.match(line):
            core = match["core"] or "main"
        elif match := MEGAFLOW_FLEETING.search(line):
            rule = re.sub(r", dp-extra-info:\S+", "", MEGAFLOW_FLEETING.sub("", line).strip())
            found[f"{core}: {rule}"] = int(match["count"] or 0)
    return found


def parse_rx_queues(text: str) -> tuple[RxQueue, ...]:
    """The queues in the output of ``dpif-netdev/pmd-rxq-show``, in its order."""
    found, core = [], -1
    for line in text.splitlines():
        if match := THREAD.match(line):
            core = int(match["core"])
        elif match := QUEUE.match(line):
            found.append(RxQueue(core, match["port"], int(match["queue"]), match["state"] == "enabled"))
    return tuple(found)


def parse_drops(text: str) -> dict[str, int]:
    """Why the datapath dropped packets of its own accord, from ``coverage/show``: only what has happened."""
    return {match["name"]: int(match["total"]) for match in DROPS.finditer(text) if int(match["total"])}


def rate_between(before: Iterable[PmdStatistics], after: Iterable[PmdStatistics], seconds: float) -> Rate:
    """The rate of the threads that were there both times."""
    earlier = {(thread.numa, thread.core): thread for thread in before}
    gained = [
        thread.since(earlier[thread.numa, thread.core]) for thread in after if (thread.numa, thread.core) in earlier
    ]
    return Rate(sum(thread.packets for thread in gained), sum(thread.cycles for thread in gained), seconds)


def _datapath_port(name: str, counters: str) -> DatapathPort:
    received, sent = (re.findall(r"\b(?:packets|dropped):(\d+|\?)", line) for line in counters.splitlines())
    # A question mark stands for what such a port does not count.
    return DatapathPort(name, *(0 if count == "?" else int(count) for count in (*received, *sent)))


def _counter(block: str, words: str) -> int:
    match = re.search(rf"^\s+{re.escape(words)}:\s+(\d+)", block, re.MULTILINE)
    return int(match[1]) if match else 0


assert {field.name for field in fields(PmdStatistics)} == {"numa", "core", *COUNTERS}
