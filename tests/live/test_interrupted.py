"""The target ends, the target is stopped, the tool is killed: nobody waits without a limit, nothing is half done."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from live.conftest import Start
from live.harness import DONE, NOT_NOW, REFUSED, Builder, HotUpgrade, Program, until

MOMENTS = (0.1, 0.5, 0.65, 0.75, 0.85, 0.95)  # of the time that the whole command takes


@pytest.mark.parametrize("how", ["exit", "exec"])
def test_the_process_ends_during_the_upgrade(build: Builder, start: Start, hu: HotUpgrade, how: str) -> None:
    """Ends, or becomes another program; at several moments from the start of the command."""
    two = build.library("basic", 2)

    def begin() -> Program:
        program = start(build.host(build.library("basic", 1)))
        program.ask("sleepers")
        program.ask("work", "busy", 1, "version")
        return program

    hu.check(begin().pid, two)  # from now on both builds are known
    whole = hu.upgrade(begin().pid, two).seconds
    for moment in MOMENTS:
        ms = int(moment * whole * 1000)
        program = begin()
        program.ask("end", how, ms)
        answer = hu.upgrade(program.pid, two, limit=30)
        assert answer.seconds < 20
        assert "Traceback" not in answer.err
        if how == "exit":
            assert answer.code in (DONE, NOT_NOW), f"ended after {ms} ms\n{answer}"
            assert program.process.wait(10) == 0, "it ended as it wanted to, not by a crash"
        else:  # refused: the new program holds no such library
            assert answer.code in (DONE, NOT_NOW, REFUSED), f"another program after {ms} ms\n{answer}"
            until(lambda program=program: not program.alive() or "sleep" in program.threads().values())
            time.sleep(0.05)
            assert program.alive(), f"the new program was killed with {program.process.poll()} ({ms} ms)"
        program.kill()


def test_the_tool_is_killed(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """SIGKILL at many moments: the target runs on, wholly old or wholly new, and the next run sets it right.

    Sleepers are not asked here: when a tracer dies between stopping a thread and letting it go, the kernel itself ends
    ``epoll_wait`` and its like with EINTR, as it does for a debugger.
    """
    program = start(build.host(build.library("basic", 1)))
    program.ask("sleepers")
    program.ask("work", "busy", 1, "version")
    hu.upgraded(program, build.library("basic", 2))
    hu.rolled_back(program)
    begin = time.monotonic()
    hu.upgraded(program, build.library("basic", 3))
    whole = time.monotonic() - begin
    for turn in range(8):
        words = ("upgrade", program.pid, build.library("basic", 2 + turn % 2), "--json")
        process = hu.start(*words)
        time.sleep(whole * (0.3 + 0.7 * turn / 7))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10)
        assert program.alive(), f"killed in turn {turn}: {program.stderr_path.read_text()}"
        version = program.call("version")
        assert program.call("pair") == 1001001 * version
        calls = program.workers().calls
        time.sleep(0.02)
        workers = program.workers()
        assert workers.calls > calls, "the busy thread runs on"
        assert workers.last == {version}
        assert program.status("TracerPid") == 0
    answer = hu.upgrade(program.pid, build.library("basic", 1))
    assert answer.code == DONE, str(answer)
    assert program.call("version") == 1
    hu.upgraded(program, build.library("basic", 2))
    assert program.call("pair") == 2002002


def test_a_stopped_process_is_named_and_left(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """Under SIGSTOP: either not now, or done without starting it; never a hang."""
    program = start(build.host(build.library("basic", 1)))
    program.ask("sleepers")
    time.sleep(0.1)
    os.kill(program.pid, signal.SIGSTOP)
    try:
        answer = hu.upgrade(program.pid, build.library("basic", 2), "--timeout", 2, limit=30)
        assert answer.code in (DONE, NOT_NOW), str(answer)
        state = Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert state in "Tt", "it is stopped still"
    finally:
        os.kill(program.pid, signal.SIGCONT)
    assert program.call("version") == (2 if answer.code == DONE else 1)
    hu.upgraded(program, build.library("basic", 3))
    assert program.call("version") == 3


def test_the_time_limit_is_kept(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("forever", 1)))
    program.ask("thread", "never_returns")
    time.sleep(0.1)
    begin = time.monotonic()
    answer = hu.upgrade(program.pid, build.library("forever", 3), "--timeout", "0.5")
    assert answer.code in (DONE, NOT_NOW), str(answer)
    assert time.monotonic() - begin < 10
