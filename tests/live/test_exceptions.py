"""C++ exceptions and unwinding through new code."""

from __future__ import annotations

import pytest

from live.conftest import Start
from live.harness import PLAIN, Builder, HotUpgrade, Options, Program


def check(program: Program, version: int, destroyed: int) -> int:
    """Throw in every way; returns how many guards were destroyed until now."""
    assert program.call("catch_outside", 2) == version
    assert program.call("catch_outside", 3) == 1000
    assert program.call("catch_inside", 3) == 30 + version + version * 1000
    assert program.call("catch_inside", 2) == version + version * 100000
    assert program.call("throw_through", 77) == 77
    assert program.call("count_destroyed") == destroyed + 9 * version
    return destroyed + 9 * version


@pytest.mark.parametrize("options", [PLAIN, Options(emit_relocs=True, now=True)], ids=["plain", "emit-relocs-now"])
@pytest.mark.parametrize("whole", [False, True], ids=["changed", "whole"])
def test_exceptions_cross_old_and_new_frames(
    build: Builder, start: Start, hu: HotUpgrade, options: Options, whole: bool
) -> None:
    throws = build.library("throws", 1, options)
    program = start(build.host(throws, build.library("catcher", uses=[throws])))
    more = ["--whole"] if whole else []
    destroyed = check(program, 1, 0)
    hu.upgraded(program, build.library("throws", 2, options), *more)
    destroyed = check(program, 2, destroyed)
    hu.upgraded(program, build.library("throws", 3, options), *more)
    destroyed = check(program, 3, destroyed)
    hu.rolled_back(program)
    destroyed = check(program, 2, destroyed)
    hu.rolled_back(program)
    check(program, 1, destroyed)
    assert program.quit() == ""


def test_the_thrower_and_the_catcher_in_one_stop(build: Builder, start: Start, hu: HotUpgrade) -> None:
    throws = build.library("throws", 1)
    program = start(build.host(throws, build.library("catcher", 1, uses=[throws])))
    hu.upgraded(
        program, build.library("throws", 2), build.library("catcher", 2, Options(flags=("-O1",)), uses=[throws])
    )
    check(program, 2, 0)


@pytest.mark.parametrize("whole", [False, True], ids=["changed", "whole"])
def test_the_program_sees_its_own_frames(build: Builder, start: Start, hu: HotUpgrade, whole: bool) -> None:
    """``backtrace()`` goes through old and new frames alike, down to the start of the thread."""
    program = start(build.host(build.library("unwind", 1)))
    before = program.call("depth", 5)
    assert before > 9
    hu.upgraded(program, build.library("unwind", 2), *(["--whole"] if whole else []))
    assert program.call("depth", 5) == before + 1
    hu.rolled_back(program)
    assert program.call("depth", 5) == before
