"""A program that is watched closely while the tool that upgrades it is killed, step after step."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from live.harness import DONE, NOT_NOW, Builder, HotUpgrade, Program, until
from live.loops import PROFILED, Loops, loops
from live.steps import Stepper

COUNTS = {"busy": 1, "latched": 2, "other": 1, "safe": 1, "sleeping": 1}
LIBRARIES = ("basic", "tls", "constructors")
VERSIONS = (1, 2, 3)
WORKERS = 2


@dataclass
class Tally:
    """What was seen so far."""

    kills: int = 0
    upgrades: int = 0
    old: int = 0  # kills that left the old code
    new: int = 0
    not_now: int = 0
    interrupted: int = 0  # sleepers that saw EINTR, where that is documented
    places: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills at {len(self.places)} kinds of steps, {self.old} left the old code, {self.new} the "
            f"new; {self.upgrades} upgrades and rollbacks; {self.interrupted} sleeps ended with EINTR"
        )


class Victim:
    """A host program with sleepers of every kind, a busy thread, thread-locals and constructors."""

    def __init__(self, build: Builder, start: Callable[[Path], Program]) -> None:
        self._files = {v: [build.library(name, v) for name in LIBRARIES] for v in VERSIONS}
        self.program = start(build.host(*self._files[1]))
        self.program.ask("sleepers")
        self.program.ask("work", "busy", 1, "version")
        for number in range(1, WORKERS + 1):
            self.program.ask("thread", "worker", number)
        until(lambda: self.program.call("count_workers") == WORKERS)
        self.threads = set(self.program.threads())
        self.handled = (self.mask("SigCgt"), self.mask("SigIgn"))
        self.disturbed = 0
        self._asked = 0
        self.check(1)

    def files(self, version: int) -> list[Path | str]:
        """What the command is given for an upgrade to a version."""
        return [*self._files[version]]

    def tidy(self) -> None:
        """Nothing is left that only killed commands leave."""

    def mask(self, key: str) -> str:
        status = Path(f"/proc/{self.program.pid}/status").read_text()
        return next(line for line in status.splitlines() if line.startswith(key))

    def unblocked(self) -> bool:
        """Every thread blocks nothing, but for a sleeper that blocks SIGUSR2 when it does not wait for it."""
        tasks = Path(f"/proc/{self.program.pid}/task")
        masks = [(tasks / str(t) / "status").read_text().split("SigBlk:\t")[1].split()[0] for t in self.threads]
        return {int(mask, 16) for mask in masks} <= {0, 1 << signal.SIGUSR2 - 1}

    def version(self) -> int:
        return self.program.call("version")

    def check(self, version: int) -> None:
        """The program does in every respect what this version does, and nothing was done to it otherwise."""
        program = self.program
        assert program.call("version") == version
        assert program.call("pair") == version * 1001001
        until(lambda: program.workers().last == {version}, 2, "the busy thread runs the version in force")
        self._asked += 1
        facts = program.facts("text", "ask")
        for number in range(1, WORKERS + 1):
            assert int(facts[f"answer{number}"]) == version * 1000000 + number * 10000 + 4000 + self._asked
        # Each build's constructors ran once; a build knows only those that it has.
        state = f"version={version} first=1 second={int(version >= 2)} third={int(version >= 3)}"
        assert program.ask("text", "state") == state
        assert set(program.threads()) == self.threads
        assert program.status("TracerPid") == 0
        handled = (self.mask("SigCgt"), self.mask("SigIgn"))
        assert handled == self.handled, f"signals handled: {handled}, before: {self.handled}"
        until(self.unblocked, 2, "every thread blocks the signals that it blocked before")

    def told(self, status: dict[str, Any]) -> int:
        """The version that a status document says is in force."""
        if not status["generations"]:
            return 1
        paths = {module["path"] for module in status["generations"][-1]["modules"]}
        return next(v for v, files in self._files.items() if paths == {str(file) for file in files})

    def errors(self) -> int:
        """How many sleeps ended with an error since the last time; none may have ended early."""
        answer = self.program.facts("errors")
        assert answer["early"] == "0", answer
        new = int(answer["errors"]) - self.disturbed
        assert new == 0 or "EINTR" in answer["detail"] or answer["main"] != "0", answer
        self.disturbed += new
        return new


class LoopVictim(Victim):
    """A host program whose threads are restarted by every upgrade and rollback; and sleepers."""

    def __init__(self, build: Builder, start: Callable[..., Program]) -> None:
        self._files = {v: [loops(build, v)] for v in VERSIONS}
        self._loops = Loops(start, build, self._files[1][0], **COUNTS)
        self.program = self._loops.program
        self.program.ask("sleepers")
        self.threads = set(self.program.threads())
        until(self.unblocked, 2, "every new thread has the mask of its own: it blocks every signal until it runs")
        self._loops.threads = self._loops.described()
        self.handled = (self.mask("SigCgt"), self.mask("SigIgn"))
        self.disturbed = 0
        self.check(1)

    def files(self, version: int) -> list[Path | str]:
        return [*self._files[version], *PROFILED]

    def check(self, version: int) -> None:
        """Every thread has come into the version in force, as the thread that it was, with all that is its own."""
        assert self.program.call("version") == version
        self._loops.check(version)
        assert self.program.status("TracerPid") == 0
        assert (self.mask("SigCgt"), self.mask("SigIgn")) == self.handled
        until(self.unblocked, 2, "every thread blocks the signals that it blocked before")

    def tidy(self) -> None:
        """What a command leaves that was not killed."""
        assert self._loops.coming_by() == []

    def end(self) -> None:
        self._loops.end()


def settled(victim: Victim, hu: HotUpgrade, allowed: tuple[int, ...]) -> int:
    """Wait until a stop that the tool left under way is over; returns the version in force.

    It is one of those allowed, and what the program does is what ``status`` says.
    """
    deadline = time.monotonic() + 5
    while True:
        assert victim.program.alive(), victim.program.stderr_path.read_text()
        runs = victim.version()
        status = hu.status(victim.program.pid)
        assert status.code == DONE, str(status)
        if runs == victim.told(status.document) == victim.version():
            assert runs in allowed
            return runs
        assert time.monotonic() < deadline, f"the program runs version {runs}, the command says otherwise: {status}"
        time.sleep(0.05)


def kill_at(
    victim: Victim,
    hu: HotUpgrade,
    stepper: Stepper,
    tally: Tally,
    words: tuple[object, ...],
    wanted: int,
    **how: object,
) -> bool:
    """Run a command that leads to a version, killed as said; then everything must be in order.

    Returns whether it was not killed, and did what it should.
    """
    before = victim.version()
    run = stepper.run(*words, **how)
    # On a crowded machine a run may find no moment for its stop; then it has changed nothing.
    assert run.killed or run.code in (DONE, NOT_NOW), run.out
    ended = not run.killed and run.code == DONE
    allowed = (before, wanted) if run.killed else (wanted,) if ended else (before,)
    now = settled(victim, hu, allowed)
    # Threads that were parked wait for the tool no longer than a stop may last.
    until(lambda: victim.program.status("TracerPid") == 0 and victim.unblocked(), 5)
    victim.check(now)
    errors = victim.errors()
    assert errors == 0 or how.get("everything"), f"{errors} sleeps ended with an error: killed before {run.killed}"
    tally.interrupted += errors
    if run.killed:
        tally.kills += 1
        tally.places[run.killed] = tally.places.get(run.killed, 0) + 1
        tally.old, tally.new = tally.old + (now == before), tally.new + (now != before)
    elif ended:
        tally.upgrades += 1
    else:
        tally.not_now += 1
    return ended


def repair(victim: Victim, hu: HotUpgrade, tally: Tally) -> None:
    """Another upgrade works, and takes away what the killed one left."""
    now = victim.version()
    wanted = _other(now)
    document = hu.upgraded(victim.program, *victim.files(wanted))
    assert document["outcome"] == "done"
    victim.check(wanted)
    hu.rolled_back(victim.program)
    victim.check(now)
    victim.tidy()
    assert victim.errors() == 0
    tally.upgrades += 2
    assert [d for d in victim.program.descriptors() if "memfd:hotupgrade" in _link(victim.program, d)] == []
    assert not [line for line in victim.program.maps() if "hotupgrade-scratch" in line]
    assert len([line for line in victim.program.maps() if "hotupgrade-ledger" in line]) <= 1


def _link(program: Program, descriptor: str) -> str:
    try:
        return str(Path(f"/proc/{program.pid}/fd/{descriptor}").readlink())
    except OSError:
        return ""


def steps_of_a_first_upgrade(
    new_victim: Callable[[], Victim],
    hu: HotUpgrade,
    stepper: Stepper,
    tally: Tally,
    numbers: Iterable[int],
    **how: object,
) -> bool:
    """Kill the first upgrade of a fresh program before each of these steps; True if one ran to its end."""
    for number in numbers:
        victim = new_victim()
        ended = kill_at(
            victim, hu, stepper, tally, ("upgrade", victim.program.pid, *victim.files(2)), 2, kill_at=number, **how
        )
        repair(victim, hu, tally)
        victim.program.kill()
        if ended:
            return True
    return False


def steps_of_later_ones(
    victim: Victim,
    hu: HotUpgrade,
    stepper: Stepper,
    tally: Tally,
    numbers: Iterable[int],
    *,
    odd: int = 0,
    **how: object,
) -> bool:
    """The same for one program that goes on, with upgrades and rollbacks in turn (``odd=1``: the other way round).

    Each killed one is followed by what it left, not by a repair: the next run has to cope.  True if both kinds ran to
    their end.
    """
    ended = set()
    pid = victim.program.pid
    for turn, number in enumerate(numbers, odd):
        while len(generations := hu.status(pid).document["generations"]) < 2:
            hu.upgraded(victim.program, *victim.files(_other(victim.version())))
        if turn % 2:
            below = victim.told({"generations": generations[:-1]})
            words, wanted = ("rollback", pid), below
        else:
            wanted = _other(victim.version())
            words = ("upgrade", pid, *victim.files(wanted))
        if kill_at(victim, hu, stepper, tally, words, wanted, kill_at=number, **how):
            ended.add(turn % 2)
        if len(ended) == 2:
            break
        if len(generations) > 12:
            hu.rolled_back(victim.program)
    repair(victim, hu, tally)
    return len(ended) == 2


def _other(version: int) -> int:
    return 2 if version != 2 else 3
