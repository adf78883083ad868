"""The program itself is upgraded like any module."""

from __future__ import annotations

import pytest

from live.conftest import Start
from live.harness import PIE, Builder, HotUpgrade, Options, Program

SUBJECTS = ("lists", "statics", "once", "pointers", "local", "initial", "tls", "binding")


def check(program: Program, version: int, calls: int) -> None:
    assert program.call("sum") == 21 * version
    assert program.call("empty_is_empty") == version
    assert program.call("initialised") == version * 1000000 + 1001
    assert program.call("identity") == 15 + version * 1000
    assert program.call("through_callback", 1) == 1 + version * 100
    assert program.call("weight_of_exported") == version * 7
    assert program.call("weight_of_first") == version * 11
    assert program.call("other", 5) == 15 + version + 3
    assert program.call("unrelated", 5) == 8
    assert program.call("get_limit", 0) == 100
    assert program.call("first", 1) == (10 + calls) * version
    assert program.call("second", 1) == 20 + calls
    assert program.call("answer", 0) == version * 1000000 - 10000 + 4000 + calls
    assert program.call("everything", 1) == 4 + 2110 * version


@pytest.mark.parametrize("options", [PIE], ids=["plain"])
def test_there_and_back(build: Builder, start: Start, hu: HotUpgrade, options: Options) -> None:
    one, two = (build.executable(SUBJECTS, version, options) for version in (1, 2))
    program = start(one)
    program.call("make")
    program.call("add", 1)
    program.call("add", 20)
    check(program, 1, 1)
    hu.upgraded(program, two)
    check(program, 2, 2)
    hu.rolled_back(program)
    check(program, 1, 3)
    hu.upgraded(program, two)
    check(program, 2, 4)
    assert program.quit() == ""
