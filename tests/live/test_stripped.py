"""Libraries without any symbols, and no debug file anywhere: what structure proves is upgraded, the rest refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

from live.conftest import Start
from live.harness import REFUSED, Builder, HotUpgrade
from live.test_separate import stripped, unique

TRUST = "--trust-layout"


def bare(build: Builder, version: int, *flags: str) -> Path:
    path, debug = stripped(build.library("nameless", version, unique(*flags)), link=False)
    debug.unlink()
    symbols = subprocess.run(["nm", path], capture_output=True, text=True)
    assert "no symbols" in symbols.stderr
    return path


def test_state_stays(build: Builder, start: Start, hu: HotUpgrade) -> None:
    old, new = bare(build, 1), bare(build, 2)
    program = start(build.host(old))
    assert [program.call("put", x) for x in (1, 2)] == [10, 30]
    program.call("set_limit", 5)
    document = hu.upgraded(program, new, TRUST)
    assert "put" in document["modules"][0]["functions"]["changed"]
    assert program.call("version") == 2
    assert program.call("put", 3) == 30 + 301  # the table leads to the new function, and the sum is the old one
    assert program.call("is_heavy") == 1
    assert [program.call("get_count", x) for x in (1, 2, 3)] == [1, 1, 1]
    assert program.call("put", 50) == -1  # the limit was kept
    hu.rolled_back(program)
    assert program.call("version") == 1
    assert program.call("get_total") == 331 + 5001
    assert program.call("put", 1) == 331 + 5001 + 10
    hu.upgraded(program, new, TRUST)
    assert program.call("version") == 2


def test_types_are_taken_on_trust_or_not_at_all(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(bare(build, 1)))
    answer = hu.upgrade(program.pid, bare(build, 2))
    assert (answer.code, answer.codes()) == (REFUSED, {"no-debug-information"})
    assert TRUST in answer.about()


def test_a_new_variable_between_others(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """Proven to be new: all others have their partners, and none can reach there."""
    old, new = bare(build, 1), bare(build, 3)
    program = start(build.host(old))
    program.call("choose", 0)
    assert program.call("put", 4) == 4
    program.call("set_limit", 9)
    hu.upgraded(program, new, TRUST)
    assert program.call("put", 5) == 9
    assert [program.call(name) for name in ("is_heavy", "last_length", "get_total")] == [0, 3, 9]
    assert program.call("set_limit", 1) == 9
    hu.rolled_back(program)
    assert program.call("put", 1) == 10


def test_what_may_be_old_or_new(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """A variable that only changed code uses is refused by name: it may be the one that the old code used, or not."""
    program = start(build.host(bare(build, 1)))
    program.call("tally", 4)
    before = program.fingerprint("libnameless")
    answer = hu.upgrade(program.pid, bare(build, 4), TRUST)
    assert (answer.code, answer.codes()) == (REFUSED, {"ambiguous-static"})
    assert "an unnamed object of .bss at 0x" in answer.about()
    assert "used by tally" in answer.about()
    assert program.fingerprint("libnameless") == before
    assert program.call("tally", 5) == 9


def test_the_new_build_has_symbols(build: Builder, start: Start, hu: HotUpgrade) -> None:
    old, new = bare(build, 1), build.library("nameless", 2, unique())
    program = start(build.host(old))
    program.call("put", 1)
    hu.upgraded(program, new, TRUST)
    assert program.call("put", 1) == 111
    hu.upgraded(program, old, TRUST)
    assert program.call("put", 1) == 121


def test_the_whole_files_are_kept_from_another_process(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """What is kept of a build goes by its build-id, and may be more than this process was given."""
    files = [build.library("nameless", version, unique()) for version in (1, 2)]
    hu.upgraded(start(build.host(files[0])), files[1])
    for file in files:
        stripped(file, link=False)[1].unlink()
    program = start(build.host(files[0]))
    program.call("put", 1)
    for _ in range(2):
        hu.upgraded(program, files[1], TRUST)
        assert program.call("version") == 2
        hu.rolled_back(program)
    assert program.call("get_total") == 10


def test_symbols_that_came_and_went(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """The ledger counts by the symbols that there were."""
    old, new = build.library("nameless", 1, unique()), build.library("nameless", 2, unique())
    program = start(build.host(old))
    hu.upgraded(program, new)
    answer = hu.upgrade(program.pid, bare(build, 1), TRUST)
    assert (answer.code, answer.codes()) == (REFUSED, {"no-symbols"})
