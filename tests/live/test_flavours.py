"""The same upgrade for builds that were compiled and linked in all the ways that distributions use."""

from __future__ import annotations

from pathlib import Path

import pytest

from live.conftest import Start
from live.harness import Builder, HotUpgrade, Options, Program

NAMES = ("lists", "statics", "once", "pointers", "local", "initial", "tls", "binding")

FLAVOURS = {
    "O0": ("-O0",),
    "O3": ("-O3",),
    "lto": ("-flto", "-ffat-lto-objects"),
    "no-plt": ("-fno-plt",),
    "symbolic": ("-Wl,-Bsymbolic", "-fno-semantic-interposition"),
    "hidden": ("-fvisibility=hidden",),
    "sections": ("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"),
    "relr": ("-Wl,-z,pack-relative-relocs",),
    "no-relro": ("-Wl,-z,norelro", "-Wl,-z,noseparate-code"),
    "ibt": ("-fcf-protection=full", "-Wl,-z,ibtplt"),
    "no-debug": ("-g0",),
    "frame-pointers": ("-fno-omit-frame-pointer", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2"),
    "compressed-debug": ("-gz", "-Wl,--hash-style=sysv"),
    "unwind-tables-only": ("-fno-asynchronous-unwind-tables", "-fno-exceptions"),
}


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


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_flavour(build: Builder, start: Start, hu: HotUpgrade, flavour: str) -> None:
    options = Options(flags=FLAVOURS[flavour])
    one = [build.library(name, 1, options) for name in NAMES]
    two: list[Path | str] = [build.library(name, 2, options) for name in NAMES]
    program = start(build.host(*one))
    program.call("make")
    program.call("add", 1)
    program.call("add", 20)
    check(program, 1, 1)
    if flavour == "no-debug":
        assert hu.upgrade(program.pid, *two).codes() == {"no-debug-information"}
        two.append("--trust-layout")
    hu.upgraded(program, *two)
    check(program, 2, 2)
    hu.rolled_back(program)
    check(program, 1, 3)
    hu.upgraded(program, *two)
    check(program, 2, 4)
    assert program.quit() == ""
