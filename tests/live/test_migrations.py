"""State that the new build's own functions bring into its new form."""

from __future__ import annotations

from pathlib import Path

import pytest

from live.conftest import Start
from live.harness import DONE, NOT_NOW, PACKAGE, REFUSED, Builder, HotUpgrade, Options, Program

INCLUDE = f"-I{PACKAGE / 'hotupgrade' / 'include'}"


def grown(build: Builder, *flags: str, version: int = 2) -> Path:
    return build.library("grows", version, Options(flags=(INCLUDE, *flags)))


def busy_program(build: Builder, start: Start) -> Program:
    program = start(build.host(build.library("grows", 1)))
    program.ask("sleepers")
    for number in range(1, 11):
        program.call("connect_to", number)
        program.call("receive", 10)
    return program


def check_old(program: Program) -> None:
    assert program.call("version") == 1
    assert (program.call("n_bytes"), program.call("drops")) == (200, -1)
    assert program.call("sum_of_ids") == 55
    program.check_sleepers()


def test_structures_that_grow(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = busy_program(build, start)
    hu.upgraded(program, grown(build))
    assert program.call("hooks_called") == 1234, "before, migrate, sync, after: each once, in this order"
    assert (program.call("n_bytes"), program.call("drops")) == (200, 7)
    assert program.call("receive", 100) == 12
    assert (program.call("sum_of_ids"), program.call("sum_of_generations")) == (55, 10)
    assert program.call("connect_to", 1000) == 11
    assert program.call("sum_of_generations") == 12
    program.check_sleepers()


def test_the_way_back_and_forth_again(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = busy_program(build, start)
    for turn in range(1, 4):
        hu.upgraded(program, grown(build))
        assert program.call("drops") == 7
        program.call("receive", 5)
        program.call("connect_to", 0)
        hu.rolled_back(program)
        assert program.call("n_bytes") == 200 + 5 * turn, "what the new code counted came back with it"
        assert program.call("receive", 0) == 11 + 2 * turn
        assert program.call("sum_of_ids") == 55


def test_a_later_build_finds_migrated_objects(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """The third build has the same structures and still brings the hooks: nothing is migrated twice."""
    program = busy_program(build, start)
    hu.upgraded(program, grown(build))
    program.call("receive", 5)
    hu.upgraded(program, grown(build, "-DFAIL=0", "-UFAIL", version=3))
    assert program.call("version") == 3
    assert (program.call("n_bytes"), program.call("drops")) == (205, 7)
    hu.rolled_back(program)
    assert (program.call("version"), program.call("n_bytes")) == (2, 205)
    hu.rolled_back(program)
    assert (program.call("version"), program.call("n_bytes"), program.call("drops")) == (1, 205, -1)


@pytest.mark.parametrize(
    ("number", "name"),
    [(1, "hotupgrade_before"), (2, "hotupgrade_migrate__stats"), (3, "hotupgrade_sync"), (4, "hotupgrade_after")],
)
def test_a_hook_that_fails_rolls_everything_back(
    build: Builder, start: Start, hu: HotUpgrade, number: int, name: str
) -> None:
    program = busy_program(build, start)
    size = program.size()
    answer = hu.upgrade(program.pid, grown(build, f"-DFAIL={number}"))
    assert answer.code == NOT_NOW, str(answer)
    assert answer.codes() == {"hook-failed"}
    assert name in answer.about()
    check_old(program)
    assert hu.status(program.pid).document["generation"] == 0
    if number < 4:  # the image of a build that was in force for a moment stays for those who may be in it
        assert program.size().maps <= size.maps + 2
    hu.upgraded(program, grown(build))
    assert (program.call("n_bytes"), program.call("drops")) == (200, 7)


def test_no_way_back(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = busy_program(build, start)
    answer = hu.check(program.pid, grown(build, "-DONE_WAY"))
    assert answer.code == REFUSED, "it has an AFTER, which may fail"
    assert answer.codes() == {"hook-no-way-back"}
    assert hu.check(program.pid, grown(build)).code == DONE
    check_old(program)


def test_without_a_hook_it_is_refused(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = busy_program(build, start)
    answer = hu.upgrade(program.pid, grown(build, "-DBARE"))
    assert answer.code == REFUSED, str(answer)
    assert "stats" in answer.about()
    check_old(program)
