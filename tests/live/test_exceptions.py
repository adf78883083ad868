"""C++ exceptions and unwinding through new code."""

from __future__ import annotations

import pytest

from live.conftest import Start
from live.harness import PLAIN, REFUSED, Builder, HotUpgrade, Options, Program, until


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


def test_the_unwinder_may_come_late(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """The C library loads its unwinder when it is needed first; ``backtrace()`` works all the same."""
    library = build.library("afterwards", 1)
    program = start(build.host(library))
    assert not any("libgcc_s" in line for line in program.maps())
    hu.upgraded(program, build.library("afterwards", 2))
    assert program.call("outer", 0) == 222

    def place(index: int) -> str:
        address = program.call("frame_address", index)
        spans = ((line, *(int(part, 16) for part in line.split()[0].split("-"))) for line in program.maps())
        return next(line for line, low, high in spans if low <= address < high)

    frames = program.call("count_frames")
    assert frames > 5
    old, new = str(library), "/memfd:hotupgrade:libafterwards.so.1"
    for index, wanted in enumerate((new, new, old, new, str(program.path))):  # work, inner, middle, outer, the caller
        assert wanted in place(index), (index, place(index))
    hu.rolled_back(program)
    assert program.call("outer", 0) == 111
    assert program.call("count_frames") == frames


@pytest.mark.parametrize("flags", [(), ("-fexceptions",)], ids=["plain", "cleanup-by-unwinding"])
def test_a_thread_ends_in_new_code(build: Builder, start: Start, hu: HotUpgrade, flags: tuple[str, ...]) -> None:
    """``pthread_exit`` unwinds through new and old frames."""
    program = start(build.host(build.library("afterwards", 1, Options(flags=flags))))
    for version, ended in ((2, 2), (3, 5)):
        hu.upgraded(program, build.library("afterwards", version, Options(flags=flags)))
        program.ask("thread", "outer", -3)
        until(lambda: len(program.threads()) == 1)
        assert program.call("count_ended") == ended
    assert program.quit() == ""


def test_an_unwinder_of_its_own_is_refused(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """It cannot be told of new code: an exception would end the process."""
    private = Options(flags=("-static-libgcc", "-static-libstdc++"))
    throws = build.library("throws", 1, private)
    program = start(build.host(throws))
    before = program.fingerprint("libthrows")
    answer = hu.upgrade(program.pid, build.library("throws", 2, private))
    assert (answer.code, answer.codes()) == (REFUSED, {"own-unwinder"}), str(answer)
    assert "libthrows.so.1" in answer.about()
    assert program.fingerprint("libthrows") == before
    assert program.call("catch_inside", 3) == 1031
