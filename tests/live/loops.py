"""A program with threads in loops that never return, and what must hold of it whatever is done to its code."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from live.harness import PACKAGE, SOURCES, Builder, HotUpgrade, Options, Program, until

PROFILE = SOURCES / "loops.toml"
PROFILED = ("--profile", PROFILE)
INCLUDE = f"-I{PACKAGE / 'hotupgrade' / 'include'}"
#: Kinds whose loop is another in each version.
CHANGING = ("busy", "direct", "forking", "latched", "other", "safe", "sleeping", "wrapped")
KINDS = (*CHANGING, "deaf", "stubborn", "wild")


def loops(build: Builder, version: int, *flags: str, compiler: str = "") -> Path:
    return build.library("loops", version, Options(flags=(INCLUDE, *flags), compiler=compiler))


@dataclass(frozen=True)
class Kind:
    """What the threads of one kind did."""

    count: int
    body: tuple[int, int]  # lowest and highest version of the loop that they run
    entered: tuple[int, int]  # how often they entered it at the top
    turns: int  # the least
    odd: int  # turns that only newer builds count


@dataclass(frozen=True)
class Totals:
    taken: int
    done: int
    sum_taken: int
    sum: int
    attached: int
    detached: int
    made: int
    dropped: int
    wrong: int
    arrived: int


@dataclass(frozen=True)
class Thread:
    """What the kernel knows of a thread, and must not change."""

    name: str
    affinity: frozenset[int]
    nice: int
    policy: int
    blocked: int  # without SIGUSR2, which the kernel takes out while a thread waits for it


class Loops:
    """The program, with threads of the kinds asked for: ``busy=1, latched=3``."""

    def __init__(self, start: Callable[..., Program], build: Builder, library: Path, **counts: int) -> None:
        self.program = start(build.host(library))
        self.counts = counts
        for kind, count in counts.items():
            self.program.call(f"begin_{kind}", count)
        until(lambda: all(self.kind(kind).turns for kind in counts), what="every thread works")
        self._give_traits()
        self.threads = self.described()

    @property
    def pid(self) -> int:
        return self.program.pid

    def kind(self, name: str) -> Kind:
        words = [int(word) for word in self.program.facts("text", "state")[name].split(",")]
        return Kind(words[0], (words[1], words[2]), (words[3], words[4]), words[5], words[6])

    def totals(self) -> Totals:
        facts = self.program.facts("text", "state")
        return Totals(**{key: int(value) for key, value in facts.items() if key not in KINDS})

    def tids(self, kind: str) -> list[int]:
        return [tid for tid, name in self.program.threads().items() if name.startswith(f"{kind}-")]

    def described(self) -> dict[int, Thread]:
        return {tid: _thread(self.pid, tid) for tid in self.program.threads()}

    def code(self) -> str:
        """A digest of the library's code."""
        digest = hashlib.sha256()
        with Path(f"/proc/{self.pid}/mem").open("rb", buffering=0) as memory:
            for line in self.program.maps():
                low, high = _range(line)
                if "/libloops" in line and "x" in line.split()[1]:
                    memory.seek(low)
                    digest.update(line.split()[1].encode() + memory.read(high - low))
        return digest.hexdigest()

    def coming_by(self) -> list[int]:
        """Addresses of calls in the library's code, of all builds, that come by the agent."""
        ranges = [_range(line) for line in self.program.maps() if ":calls:" in line]
        found = []
        with Path(f"/proc/{self.pid}/mem").open("rb", buffering=0) as memory:
            for line in self.program.maps():
                if "libloops" in line and ":calls:" not in line and "x" in line.split()[1]:
                    low, high = _range(line)
                    memory.seek(low)
                    code = memory.read(high - low)
                    for at in (match.start() for match in re.finditer(rb"\xe8(?=....)", code, re.DOTALL)):
                        target = low + at + 5 + int.from_bytes(code[at + 1 : at + 5], "little", signed=True)
                        found += [low + at for first, last in ranges if first <= target < last]
        return found

    def _give_traits(self) -> None:
        """Priorities and affinities of their own."""
        allowed = sorted(os.sched_getaffinity(0))
        for number, tid in enumerate(tid for tid in self.program.threads() if tid != self.pid):
            os.setpriority(os.PRIO_PROCESS, tid, 1 + number % 5)
            os.sched_setaffinity(tid, {allowed[number % len(allowed)]})

    def check(self, version: int, *, entered: int | None = None, kinds: tuple[str, ...] = ()) -> None:
        """Every thread works in this version's loop, as the same thread, and nothing was lost on the way."""
        for name in kinds or tuple(kind for kind in self.counts if kind in CHANGING):
            until(
                lambda name=name: self.kind(name).body == (version, version),
                5,
                f"{name} runs {version}: {self.kind(name)}",
            )
            if entered is not None:
                assert self.kind(name).entered == (entered, entered), f"{name}: {self.kind(name)}"
        for name in self.counts:
            before = self.kind(name).turns
            until(lambda name=name, before=before: self.kind(name).turns > before, 5, f"{name} works on")
        totals = self.totals()
        assert totals.wrong == 0, totals
        assert totals.taken - totals.done <= sum(self.counts.values()), totals
        assert (totals.attached, totals.detached) == (self.counts.get("busy", 0) + self.counts.get("stubborn", 0), 0)
        assert (totals.made, totals.dropped) == (self.counts.get("busy", 0), 0)
        assert self.described() == self.threads

    def end(self) -> None:
        """The program ends its threads by its own means: clean-up calls are made, and all items are accounted for."""
        assert self.program.call("end_all") == sum(self.counts.values())
        until(lambda: not any(self.tids(kind) for kind in self.counts))
        totals = self.totals()
        assert (totals.taken, totals.sum_taken) == (totals.done, totals.sum), totals
        assert (totals.attached, totals.made) == (totals.detached, totals.dropped), totals
        assert totals.arrived >= self.counts.get("latched", 0) + self.counts.get("other", 0), totals
        assert totals.wrong == 0
        assert self.program.quit() == ""


def _range(line: str) -> tuple[int, int]:
    low, high = (int(part, 16) for part in line.split(maxsplit=1)[0].split("-"))
    return low, high


def _thread(pid: int, tid: int) -> Thread:
    task = Path(f"/proc/{pid}/task/{tid}")
    fields = (task / "stat").read_text().rpartition(") ")[2].split()
    blocked = (task / "status").read_text().split("SigBlk:\t")[1].split()[0]
    return Thread(
        (task / "comm").read_text().strip(),
        frozenset(os.sched_getaffinity(tid)),
        int(fields[16]),
        int(fields[38]),
        int(blocked, 16) & ~(1 << signal.SIGUSR2 - 1),
    )


def switch(hu: HotUpgrade, there: Loops, library: Path | None) -> dict[str, dict[str, object]]:
    """Upgrade to a build, or roll back; returns what became of each thread that was restarted, by thread id."""
    document = hu.upgraded(there.program, library, *PROFILED) if library else hu.rolled_back(there.program)
    time.sleep(0.01)
    return {thread["tid"]: thread["restart"] for thread in document["threads"] if thread["restart"]}
