"""Processes whose threads make no system call: one is interrupted wherever it stands, and must not notice."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live.conftest import Start
from live.harness import SOURCES, Builder, Driver, HotUpgrade, Program, until
from live.kills import VERSIONS, Tally, Victim, steps_of_a_first_upgrade, steps_of_later_ones
from live.steps import Stepper

SOURCE = str(SOURCES / "spins.c")
FACTS = struct.Struct("<4q")
OVER = 24  # where a thread looks whether it is to end
MOST_STEPS = 5000  # more than any run takes


def built(build: Builder, version: int) -> Path:
    """The program in one version; all versions under one name."""
    folder = build.directory / f"spins-v{version}"
    folder.mkdir(exist_ok=True)
    words = ["gcc", "-O2", "-g", "-fPIE", "-pie", "-pthread", f"-DVERSION={version}", SOURCE]
    subprocess.run([*words, "-o", str(folder / "spins")], check=True, timeout=60)
    return folder / "spins"


class Spins:
    """The program, and what its threads tell in a file that they share."""

    def __init__(self, start: Start, program: Path, facts: Path, threads: int = 1) -> None:
        self._facts, self._threads = facts, threads
        facts.write_bytes(bytes(FACTS.size * threads))
        self.program: Program = start(program, facts, threads)
        until(lambda: self.versions() == {1})

    def _rows(self) -> Iterator[tuple[int, int, int, int]]:
        return FACTS.iter_unpack(self._facts.read_bytes())

    def turns(self) -> int:
        """Of the slowest thread."""
        return min(turns for turns, _, _, _ in self._rows())

    def disturbed(self) -> int:
        """How often any of them has lost a value."""
        return sum(disturbed for _, disturbed, _, _ in self._rows())

    def versions(self) -> set[int]:
        return {version for _, _, version, _ in self._rows()}

    def go_on(self) -> None:
        """Every thread has some more turns."""
        turns = self.turns()
        until(lambda: self.turns() > turns + 5, 20)

    def end(self) -> None:
        with self._facts.open("r+b") as file:
            for thread in range(self._threads):
                file.seek(FACTS.size * thread + OVER)
                file.write(struct.pack("<q", 1))
        assert self.program.process.wait(10) == 0


@pytest.mark.timeout(240)
def test_it_is_upgraded_and_rolled_back_many_times(
    build: Builder, start: Start, hu: HotUpgrade, tmp_path: Path
) -> None:
    one, two = (built(build, version) for version in (1, 2))
    spins = Spins(start, one, tmp_path / "facts")
    before = spins.program.size()
    for version in (2, 1) * 2:
        document = hu.upgraded(spins.program, two) if version == 2 else hu.rolled_back(spins.program)
        assert [thread["how"] for thread in document["threads"]] == ["leader"]
        spins.go_on()
        assert spins.versions() == {version}
        assert spins.disturbed() == 0
    assert spins.program.size().descriptors == before.descriptors
    spins.end()


@pytest.mark.timeout(240)
def test_several_threads_that_never_sleep(build: Builder, start: Start, hu: HotUpgrade, tmp_path: Path) -> None:
    """One of them stops the others."""
    one, two = (built(build, version) for version in (1, 2))
    spins = Spins(start, one, tmp_path / "facts", threads=3)
    for version in (2, 1):
        document = hu.upgraded(spins.program, two) if version == 2 else hu.rolled_back(spins.program)
        assert "leader" in {thread["how"] for thread in document["threads"]}
        assert len(document["threads"]) == 3
        spins.go_on()
        assert spins.versions() == {version}
        assert spins.disturbed() == 0
    spins.end()


class SpinningVictim(Victim):
    """The program, watched while the tool is killed."""

    def __init__(self, build: Builder, start: Start, facts: Path) -> None:
        self._files = {version: [built(build, version)] for version in VERSIONS}
        self._spins = Spins(start, self._files[1][0], facts)
        self.program = self._spins.program
        self.threads = set(self.program.threads())
        self.handled = (self.mask("SigCgt"), self.mask("SigIgn"))

    def version(self) -> int:
        self._spins.go_on()
        (version,) = self._spins.versions()
        return version

    def check(self, version: int) -> None:
        assert self.version() == version
        assert self._spins.disturbed() == 0
        assert set(self.program.threads()) == self.threads
        assert self.program.status("TracerPid") == 0
        assert (self.mask("SigCgt"), self.mask("SigIgn")) == self.handled
        until(self.unblocked, 2, "the thread blocks the signals that it blocked before")

    def errors(self) -> int:
        """It makes no calls that could fail."""
        return 0


@pytest.fixture
def victim(build: Builder, start: Start, tmp_path: Path) -> Callable[[], SpinningVictim]:
    return lambda: SpinningVictim(build, start, tmp_path / "facts")


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("everything", [False, True], ids=["the-tool", "its-helper-too"])
def test_killed_in_a_first_upgrade(
    victim: Callable[[], SpinningVictim], driver: Driver, stepper: Stepper, everything: bool
) -> None:
    """Without the helper the thread finds its own way back, with all that its registers held."""
    tally, steps = Tally(), range(everything, MOST_STEPS, 47)
    assert steps_of_a_first_upgrade(victim, driver, stepper, tally, steps, everything=everything), str(tally)
    assert tally.kills >= 5, str(tally)


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("hold", [0.0, 0.05], ids=["at-once", "held"])
def test_killed_later(victim: Callable[[], SpinningVictim], driver: Driver, stepper: Stepper, hold: float) -> None:
    tally = Tally()
    assert steps_of_later_ones(victim(), driver, stepper, tally, range(7, MOST_STEPS, 41), hold=hold), str(tally)
    assert tally.kills >= 5, str(tally)
