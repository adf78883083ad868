"""Programs that were built with a sanitizer are upgraded while they run, and their sanitizer finds nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from live.conftest import Start
from live.harness import NOT_NOW, REFUSED, Builder, HotUpgrade, Options, Program, until
from live.test_flavours import NAMES, check

TRAPS = ("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")
UNDEFINED = ("-fsanitize=undefined", "-fno-sanitize-recover=all")
SANITIZERS = {
    "address": ("-fsanitize=address", "-fno-omit-frame-pointer"),
    "undefined": TRAPS,
    "thread": ("-fsanitize=thread",),
}


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every finding ends the program at once."""
    (tmp_path / "known").write_text("race:forever.c\n")  # forever.c counts without a lock
    monkeypatch.setenv("ASAN_OPTIONS", "halt_on_error=1:detect_leaks=0:detect_stack_use_after_return=1")
    monkeypatch.setenv("UBSAN_OPTIONS", "halt_on_error=1:print_stacktrace=1")
    monkeypatch.setenv("TSAN_OPTIONS", f"halt_on_error=1:suppressions={tmp_path / 'known'}")


def begun(build: Builder, start: Start, flags: tuple[str, ...], *libraries: Path) -> Program:
    return start(build.host(*libraries, flags=flags))


def silent(program: Program) -> None:
    """Ends the program; its sanitizer has said nothing."""
    assert program.quit() == ""
    assert program.stderr_path.read_text() == ""


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_an_instrumented_program(build: Builder, start: Start, hu: HotUpgrade, sanitizer: str) -> None:
    """Statics, tables, callbacks, thread-locals, and variables that are new: those have no red zones, and no harm."""
    options = Options(flags=SANITIZERS[sanitizer])
    one, two = ([build.library(name, version, options) for name in NAMES] for version in (1, 2))
    program = begun(build, start, options.flags, *one)
    program.call("make")
    program.call("add", 1)
    program.call("add", 20)
    check(program, 1, 1)
    hu.upgraded(program, *two)
    check(program, 2, 2)
    hu.rolled_back(program)
    check(program, 1, 3)
    hu.upgraded(program, *two)
    check(program, 2, 4)
    silent(program)


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_its_threads(build: Builder, start: Start, hu: HotUpgrade, sanitizer: str) -> None:
    """Busy ones and sleepers; the run time of a sanitizer has threads, signal stacks and handlers of its own."""
    options = Options(flags=SANITIZERS[sanitizer])
    program = begun(build, start, options.flags, build.library("basic", 1, options))
    program.ask("work", "busy", 1, "version")
    program.ask("sleepers")
    hu.upgraded(program, build.library("basic", 2, options))
    until(lambda: program.workers().last == {2})
    hu.rolled_back(program)
    until(lambda: program.workers().last == {1})
    assert program.call("pair") == 1001001
    program.check_sleepers()
    assert program.alive()
    assert program.stderr_path.read_text() == ""


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_a_function_on_its_stack_is_seen(build: Builder, start: Start, hu: HotUpgrade, sanitizer: str) -> None:
    """AddressSanitizer moves variables to stacks elsewhere, but never a return address."""
    flags = SANITIZERS[sanitizer]
    program = begun(build, start, flags, build.library("forever", 1, Options(flags=flags)))
    program.ask("thread", "never_returns")
    until(lambda: program.call("count_turns") > 2)
    changed = build.library("forever", 2, Options(flags=(*flags, "-DLOOP=7")))
    answer = hu.upgrade(program.pid, changed, "--timeout", 1, limit=30)
    assert answer.code == NOT_NOW, str(answer)
    assert "never_returns" in answer.about(), str(answer)
    turns = program.call("count_turns")
    until(lambda: program.call("count_turns") > turns + 2, what="the loop runs on")
    hu.upgraded(program, build.library("forever", 2, Options(flags=flags)))
    until(lambda: program.call("seen") == 2)
    assert program.stderr_path.read_text() == ""


def test_undefined_behaviour_with_reports_is_refused_by_name(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """What is checked is described in variables without names: to which of two they belong cannot be told."""
    options = Options(flags=UNDEFINED)
    program = begun(build, start, UNDEFINED, build.library("lists", 1, options))
    before = program.fingerprint("liblists")
    answer = hu.upgrade(program.pid, build.library("lists", 2, options))
    assert answer.code == REFUSED, str(answer)
    assert answer.codes() == {"unknown-reference"}
    assert "-fsanitize-trap" in answer.about()
    assert "sum must run from the new build" in answer.about()
    assert program.fingerprint("liblists") == before
    silent(program)


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_an_instrumented_build_for_a_plain_program(
    build: Builder, start: Start, hu: HotUpgrade, sanitizer: str
) -> None:
    """The run time of the sanitizer is not there, and could not come so late."""
    program = start(build.host(build.library("basic", 1)))
    before = program.fingerprint("libbasic")
    answer = hu.upgrade(program.pid, build.library("basic", 2, Options(flags=SANITIZERS[sanitizer])))
    assert answer.code == REFUSED, str(answer)
    assert answer.codes() == {"sanitizer-missing"}, str(answer)
    assert program.fingerprint("libbasic") == before
    assert program.call("version") == 1


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_a_plain_build_for_an_instrumented_program(
    build: Builder, start: Start, hu: HotUpgrade, sanitizer: str
) -> None:
    flags = SANITIZERS[sanitizer]
    program = begun(build, start, flags, build.library("lists", 1, Options(flags=flags)))
    program.call("add", 21)
    hu.upgraded(program, build.library("lists", 2))
    assert program.call("sum") == 42
    hu.rolled_back(program)
    assert program.call("sum") == 21
    silent(program)
