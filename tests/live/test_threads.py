"""Threads that make an upgrade difficult: asleep in every way, busy, short-lived, forking, unreachable by signals."""

from __future__ import annotations

import time

import pytest

from live.conftest import Start
from live.harness import DONE, NOT_NOW, Builder, Driver, HotUpgrade, Options, until


def test_sleepers_notice_nothing(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("basic", 1)))
    program.ask("sleepers")
    two = build.library("basic", 2)
    time.sleep(0.2)
    before = program.size()
    for _ in range(4):
        hu.upgraded(program, two)
        assert program.call("version") == 2
        hu.rolled_back(program)
        assert program.call("version") == 1
        program.check_sleepers()
    time.sleep(0.7)  # naps that an upgrade may have cut short come to their end
    assert program.check_sleepers() > 20
    after = program.size()
    assert after.threads == before.threads
    assert after.descriptors == before.descriptors


def test_busy_threads_at_full_speed(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("basic", 1)))
    program.ask("work", "busy", 2, "version")
    versions = [2, 3, 1, 2]
    for version in versions:
        hu.upgraded(program, build.library("basic", version))
        until(lambda version=version: program.workers().last == {version})
    workers = program.workers()
    assert workers.values == {1, 2, 3}
    assert workers.changes == len(versions), "every call ran wholly old or wholly new code, and never old again"
    status = hu.status(program.pid)
    assert status.code == DONE


def test_busy_threads_are_told_from_sleepers(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("basic", 1)))
    program.ask("work", "busy", 1, "version")
    program.ask("sleepers")
    time.sleep(0.3)
    document = hu.upgraded(program, build.library("basic", 2), "--measure-empty")
    busy = [thread["name"] for thread in document["threads"] if thread["busy"]]
    assert busy == ["busy"]
    assert document["break_us"]["busy_max"] is not None
    assert document["empty_stop_us"]["busy_max"] > 0
    program.check_sleepers()


@pytest.mark.parametrize("pause", [0, -200], ids=["full-speed", "with-pauses"])
def test_a_changed_function_on_a_stack_never_runs_half(
    build: Builder, start: Start, hu: HotUpgrade, pause: int
) -> None:
    """``pair`` and both that it calls have changed: a mixture would be an answer that no build gives."""
    program = start(build.host(build.library("basic", 1)))
    program.ask("work", "busy", 2, "pair", 0, pause)
    for turn in range(4):
        answer = (
            hu.rollback(program.pid)
            if turn % 2
            else hu.upgrade(program.pid, build.library("basic", 2), "--timeout", 20)
        )
        assert answer.code == DONE, str(answer)
        until(lambda turn=turn: program.workers().last == {1001001 if turn % 2 else 2002002})
    workers = program.workers()
    assert workers.values == {1001001, 2002002}
    assert workers.changes == 4


def test_threads_that_come_and_go(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("basic", 1)))
    program.ask("work", "churn", 2, "version")
    for turn in range(6):
        if turn % 2:
            hu.rolled_back(program)
        else:
            hu.upgraded(program, build.library("basic", 2))
        until(lambda turn=turn: program.workers().last == {1 if turn % 2 else 2})
    workers = program.workers()
    assert workers.failures == 0
    assert workers.least > 100
    program.ask("stop")
    until(lambda: len(program.threads()) == 1)


def test_fork_after_and_while(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("basic", 1)))
    program.ask("work", "fork", 1, "version")
    for turn in range(4):
        version = 1 if turn % 2 else 2
        if turn % 2:
            hu.rolled_back(program)
        else:
            hu.upgraded(program, build.library("basic", 2))
        assert program.facts("fork", "version") == {"value": str(version), "status": "0"}
        assert program.facts("fork", "keep", 5) == {"value": "12", "status": "0"}
        assert program.call("keep") == 7, "the child's state is its own"
    workers = program.workers()
    assert workers.failures == 0, "every child ended well"
    assert workers.least > 20


@pytest.mark.parametrize(
    ("way", "pause"),
    [("blocked", 2), ("blocked", 0), ("small", 1), ("small", 0), ("altstack", 0)],
    ids=["blocked", "blocked-busy", "small-stack", "small-stack-busy", "signal-stack"],
)
def test_threads_that_are_hard_to_stop(build: Builder, start: Start, hu: HotUpgrade, way: str, pause: int) -> None:
    """All signals blocked; a stack of 16 KiB; most of the time in a signal handler on a stack of its own."""
    program = start(build.host(build.library("basic", 1)))
    program.ask("work", way, 1, "version", 0, pause)
    for turn in range(4):
        if turn % 2:
            hu.rolled_back(program)
        else:
            hu.upgraded(program, build.library("basic", 2))
        until(lambda turn=turn: program.workers().last == {1 if turn % 2 else 2})
    workers = program.workers()
    assert workers.changes == 4
    assert workers.values == {1, 2}
    assert program.status("TracerPid") == 0


@pytest.mark.parametrize("blocked", [0, 1], ids=["by-signal", "by-ptrace"])
def test_restartable_sequences_are_started_anew(build: Builder, start: Start, hu: HotUpgrade, blocked: int) -> None:
    """Threads that are nearly always within one (rseq); those that no signal reaches are stopped by ptrace."""
    program = start(build.host(build.library("basic", 1)))
    program.ask("work", "sequence", 2, "version", blocked)
    with Driver(hu) as driver:
        for turn in range(40):
            if turn % 2:
                driver.rolled_back(program)
            else:
                driver.upgraded(program, build.library("basic", 2))
    answer = program.facts("stop")
    assert int(answer["sequences"]) > 10000
    assert int(answer["anew"]) > 0
    assert answer["lost"] == "0", answer


def test_128_sleepers_inside_the_library(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("many", 1)))
    for _ in range(128):
        program.ask("thread", "sleep_long", 60000)
    document = hu.upgraded(program, build.library("many", 2))
    assert program.call("version") == 2
    assert len(document["threads"]) == 129
    assert document["break_us"]["max"] < 1_000_000
    hu.rolled_back(program)
    assert len(program.threads()) == 129


def test_a_loop_that_never_returns_runs_on_when_what_it_calls_changes(
    build: Builder, start: Start, hu: HotUpgrade
) -> None:
    program = start(build.host(build.library("forever", 1)))
    program.ask("thread", "never_returns")
    until(lambda: program.call("seen") == 1)
    hu.upgraded(program, build.library("forever", 2))
    until(lambda: program.call("seen") == 2, what="the old loop calls the new function")
    hu.rolled_back(program)
    until(lambda: program.call("seen") == 1)


def test_a_changed_loop_that_never_returns_is_named(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("forever", 1)))
    program.ask("thread", "never_returns")
    until(lambda: program.call("count_turns") > 2)
    tid = next(tid for tid, name in program.threads().items() if name == "never_returns")
    begin = time.monotonic()
    answer = hu.upgrade(
        program.pid, build.library("forever", 2, Options(flags=("-DLOOP=7",))), "--timeout", 2, limit=30
    )
    assert answer.code == NOT_NOW, str(answer)
    assert time.monotonic() - begin < 15
    reasons = answer.document["reasons"]
    assert any("never_returns" in reason["subject"] + reason["text"] for reason in reasons), reasons
    assert any(str(tid) in reason["subject"] + reason["text"] for reason in reasons), reasons
    turns = program.call("count_turns")
    until(lambda: program.call("count_turns") > turns + 2, what="the loop runs on")
    assert program.call("seen") == 1, "nothing was upgraded"
    assert hu.status(program.pid).document["generation"] == 0
    hu.upgraded(program, build.library("forever", 2))
    until(lambda: program.call("seen") == 2, what="another build is possible afterwards")
