"""No frame of a changed function is left behind, whichever stack it is on."""

from __future__ import annotations

import pytest

from live.conftest import Start
from live.harness import NOT_NOW, Builder, HotUpgrade, Options, until


@pytest.mark.parametrize("where", ["interrupted_on_mapped", "interrupted_on_own"])
def test_frames_below_a_signal_stack(build: Builder, start: Start, hu: HotUpgrade, where: str) -> None:
    """A handler on its alternate stack sleeps; the function that it interrupted has changed."""
    program = start(build.host(build.library("stacks", 1)))
    program.ask("thread", where, 0)
    until(lambda: program.call("inside") == 1)
    answer = hu.upgrade(program.pid, build.library("stacks", 2), "--timeout", 2)
    assert answer.code == NOT_NOW, str(answer)
    assert "interrupted_here" in answer.about()
    assert program.call("version") == 1
    program.call("go", 1)
    until(lambda: program.call("outcome") == 1001)
    hu.upgraded(program, build.library("stacks", 2))
    program.call("go", 0)
    program.ask("thread", where, 0)
    program.call("go", 1)
    until(lambda: program.call("outcome") == 2002)


@pytest.mark.parametrize("flags", [(), ("-DJUMPS",)], ids=["ucontext", "unknown-means"])
def test_a_suspended_coroutine(build: Builder, start: Start, hu: HotUpgrade, flags: tuple[str, ...]) -> None:
    """With ``longjmp`` in the library nothing says what is a stack: the whole memory is searched."""
    one, two = (build.library("stacks", version, Options(flags=flags)) for version in (1, 2))
    program = start(build.host(one))
    program.call("begin_coroutine")
    answer = hu.upgrade(program.pid, two, "--timeout", 2)
    assert answer.code == NOT_NOW, str(answer)
    assert "suspended_here" in answer.about()
    assert "suspended stack" in answer.about()
    assert program.call("version") == 1
    program.call("resume_coroutine")
    assert program.call("outcome") == 1001
    if flags:
        return  # what the coroutine left on its stack looks like frames, for as long as nothing overwrites it
    hu.upgraded(program, two)
    program.call("begin_coroutine")
    program.call("resume_coroutine")
    assert program.call("outcome") == 2002


def test_a_word_that_only_looks_like_a_return_address(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """It stays in the frame of a sleeping thread: no number of tries would get rid of it, but an unwinder knows it."""
    program = start(build.host(build.library("stacks", 1)))
    program.ask("sleepers")
    assert program.call("leave_trace") == 1
    program.ask("thread", "doze", 0)
    document = hu.upgraded(program, build.library("stacks", 2))
    assert "leave_trace" in document["modules"][0]["functions"]["changed"]
    assert document["attempts"] > 1, "the scan alone saw a return address"
    assert program.call("leave_trace") == 2
    hu.rolled_back(program)
    assert program.call("leave_trace") == 1
    program.call("go", 1)
    until(lambda: program.call("outcome") == 77)
    program.check_sleepers()
