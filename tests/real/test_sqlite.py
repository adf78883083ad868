"""SQLite in a threaded program: prepared statements and open databases live through it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live.harness import DONE, NOT_NOW, HotUpgrade, Program
from real.harness import Builds, Journey, Row, check_bounded, tell

SOURCE = Path(__file__).parent / "programs" / "sqlite_threads.c"
ROW, CORRUPT = "100", "11"


@pytest.fixture
def bank_of(builds: Callable[[str], Builds], place: Path) -> Iterator[Callable[..., Program]]:
    """The program, bound to the old library, with further words."""
    library = builds("sqlite3").old("lib/libsqlite3.so.0")
    program = place / "sqlite_threads"
    words = ["gcc", "-O2", "-g", "-pthread", "-Wall", "-Wextra", "-Werror", f"-I{library.parent}", str(SOURCE)]
    words += [str(library), f"-Wl,-rpath,{library.parent}", "-o", str(program)]
    subprocess.run(words, check=True, timeout=60)
    running: list[Program] = []

    def start(*more: str) -> Program:
        running.append(Program(program, place / "bank.db", *more))
        return running[-1]

    yield start
    for one in running:
        one.kill()


def test_sqlite_in_a_threaded_program(
    builds: Callable[[str], Builds], bank_of: Callable[..., Program], hu: HotUpgrade
) -> None:
    """Four of Debian's corrections: one of them is visible in what is said of a changeset that is cut off."""
    bank = bank_of()

    def observe() -> str:
        return bank.facts("facts")["overread"]

    def worked() -> None:
        before = bank.facts("facts")
        time.sleep(1)
        after = bank.facts("facts")
        assert int(after["transfers"]) > int(before["transfers"])
        assert after["errors"] == "0", bank.stderr_path.read_text()

    sqlite = builds("sqlite3")
    journey = Journey(hu, lambda: [bank.pid], [sqlite.new("lib/libsqlite3.so.0")])
    worked()
    before = bank.size()
    journey.there_and_back(observe, ROW, CORRUPT, worked)
    check_bounded(before, bank.size(), resident_kb=128 << 10)
    facts = bank.facts("facts")
    assert bank.quit(30) == "bye errors=0"
    tell(
        Row(
            "SQLite in a program with 7 threads", sqlite.version, "4 of Debian's corrections (libsqlite3.so.0)",
            f"1 process, {before.threads} threads", "works", journey.longest_break_us(), journey.prepare_s(),
            f"{facts['transfers']} transfers, {facts['sums']} sums of all accounts", 0,
        )
    )  # fmt: skip


def test_threads_that_are_always_inside_are_named(
    builds: Callable[[str], Builds], bank_of: Callable[..., Program], hu: HotUpgrade
) -> None:
    """A correction moved the line numbers that sqlite3VdbeExec() reports, so it changed: and these threads live in it.

    There may be a moment at which all six are outside.  If there is none, nothing happened.
    """
    busy = bank_of("busy")
    sqlite = builds("sqlite3")
    answer = hu.upgrade(busy.pid, "--timeout", "5", sqlite.new("lib/libsqlite3.so.0"))
    assert answer.code in {DONE, NOT_NOW}, str(answer)
    if answer.code == NOT_NOW:
        assert answer.codes() == {"active"}
        assert "sqlite3VdbeExec" in answer.about()
    assert busy.facts("facts")["overread"] == (CORRUPT if answer.code == DONE else ROW)
    assert busy.quit(30) == "bye errors=0"
    outcome = "works" if answer.code == DONE else "not now: threads are always inside sqlite3VdbeExec; nothing happened"
    tell(
        Row(
            "SQLite, 6 threads that never pause", sqlite.version, "4 of Debian's corrections (libsqlite3.so.0)",
            "1 process, 7 threads", outcome, errors=0,
        )
    )  # fmt: skip
