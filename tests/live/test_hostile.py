"""Processes that mean harm: the tool neither hangs, nor takes unbounded memory, nor writes to anything but them."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from hotupgrade.target import abi, native
from live.conftest import Start
from live.harness import DONE, NOT_NOW, Answer, Builder, HotUpgrade, Program

LIMIT_S = 30
MEMORY = 3 << 30  # address space of the tool; an ordinary run takes about 1 GiB of it


def hostile(build: Builder, start: Start, *words: object) -> Program:
    library = build.library("basic", 1)
    flags = (str(library), f"-Wl,-rpath,{library.parent}", "-Wl,--no-as-needed")
    return start(build.program("hostile", *flags), *map(str, words))


def upgrade(hu: HotUpgrade, program: Program, *words: object) -> Answer:
    words = ("upgrade", program.pid, *words, "--timeout", 2, "--json")
    process = hu.start(*words)
    resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY, MEMORY))
    answer = hu.finish(process, *words, limit=LIMIT_S)
    assert program.alive()
    return answer


@pytest.mark.parametrize(
    ("way", "codes"),
    [
        ("circle", {"damaged-modules"}),
        ("nowhere", {"no-memory-there"}),
        ("unmapped", {"no-memory-there"}),
        ("crowd", {"damaged-modules"}),
    ],
)
def test_a_list_of_modules_that_lies(build: Builder, start: Start, hu: HotUpgrade, way: str, codes: set[str]) -> None:
    program = hostile(build, start, way)
    before = program.fingerprint("libbasic")
    answer = upgrade(hu, program, build.library("basic", 2))
    assert answer.code == NOT_NOW, str(answer)
    assert answer.codes() == codes
    assert program.fingerprint("libbasic").contents == before.contents
    assert hu("inspect", program.pid, "--json", limit=LIMIT_S).code in (DONE, NOT_NOW)


@pytest.mark.parametrize("way", ["names", "line"])
def test_names_that_lie(build: Builder, start: Start, hu: HotUpgrade, way: str) -> None:
    """They are worth nothing, and change nothing."""
    program = hostile(build, start, way)
    answer = upgrade(hu, program, build.library("basic", 2))
    assert answer.code == DONE, str(answer)
    assert program.facts("v") == {"value": "2"}


def fake_agent(build: Builder, start: Start, victim: Path, ledger: int = 0) -> Program:
    """A process that has what looks like the tool's agent, and sends who comes there elsewhere."""
    header, _ = native.agent_blob()
    offsets = [getattr(abi.Mailbox, name).offset for name in ("serial", "done", "ledger")]
    numbers = [
        header.enter, header.text_size, header.total_size, header.mailbox, *offsets, ledger,
        abi.ABI, abi.Op.result.offset,
    ]  # fmt: skip
    return hostile(build, start, "agent", victim, *numbers)


def test_an_agent_that_gives_away_the_files_of_others(
    build: Builder, start: Start, hu: HotUpgrade, tmp_path: Path
) -> None:
    """It has the file open for reading only; the tool might open it, by the number that it was told, for writing."""
    victim = tmp_path / "victim"
    victim.write_text("not to be written\n")
    program = fake_agent(build, start, victim)
    answer = upgrade(hu, program, build.library("basic", 2))
    assert answer.code == NOT_NOW, str(answer)
    assert answer.codes() == {"not-our-file"}
    assert victim.read_text() == "not to be written\n"


@pytest.mark.parametrize("place", [8, 1 << 62, (1 << 64) - 8])
def test_a_ledger_that_is_nowhere(build: Builder, start: Start, hu: HotUpgrade, tmp_path: Path, place: int) -> None:
    program = fake_agent(build, start, tmp_path, ledger=place)
    for answer in (upgrade(hu, program, build.library("basic", 2)), hu.status(program.pid)):
        assert answer.code == NOT_NOW, str(answer)
        assert answer.codes() == {"bad-ledger"}
