"""The target ends, the target is stopped, the tool is killed: nobody waits without a limit, nothing is half done."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from live.conftest import Start
from live.harness import DONE, NOT_NOW, Builder, HotUpgrade, until


def test_the_tool_is_killed(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """SIGKILL at many moments: the target runs on, wholly old or wholly new, and the next run sets it right."""
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
        until(lambda: program.status("TracerPid") == 0)
        program.check_sleepers()
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
