"""The tool is killed before every step that it takes; here before some of each kind, in the soak before every one."""

from __future__ import annotations

import pytest

from live import stress
from live.conftest import Start
from live.harness import NOT_NOW, Builder, Driver, until
from live.kills import LoopVictim, Tally, Victim, steps_of_a_first_upgrade, steps_of_later_ones
from live.loops import PROFILED, Loops, loops
from live.steps import Stepper

MOST_STEPS = 5000  # more than any run takes


@pytest.mark.slow
def test_the_first_upgrade(build: Builder, start: Start, driver: Driver, stepper: Stepper) -> None:
    """A process that does not hold the agent yet."""
    tally = Tally()
    steps = range(0, MOST_STEPS, 89)
    assert steps_of_a_first_upgrade(lambda: Victim(build, start), driver, stepper, tally, steps), str(tally)
    assert tally.kills >= 5, str(tally)


@pytest.mark.slow
@pytest.mark.parametrize("hold", [0.0, 0.05], ids=["at-once", "held"])
def test_upgrades_and_rollbacks(build: Builder, start: Start, driver: Driver, stepper: Stepper, hold: float) -> None:
    """One process, upgraded and rolled back, with what the killed ones left still in it.

    "held": the target gets as far as it can before the tool is killed.
    """
    tally = Tally()
    steps = range(7, MOST_STEPS, 59)
    assert steps_of_later_ones(Victim(build, start), driver, stepper, tally, steps, hold=hold), str(tally)
    assert tally.kills >= 5, str(tally)
    assert tally.interrupted == 0


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("hold", [0.0, pytest.param(0.05, marks=pytest.mark.full)], ids=["at-once", "held"])
def test_threads_that_are_restarted(
    build: Builder, start: Start, driver: Driver, stepper: Stepper, hold: float
) -> None:
    """Whenever the tool is killed, they all run the code in force soon, and the next command tidies up."""
    tally = Tally()
    steps = range(13, MOST_STEPS, 59)
    victim = LoopVictim(build, start)
    assert steps_of_later_ones(victim, driver, stepper, tally, steps, hold=hold), str(tally)
    assert tally.kills >= 5, str(tally)
    assert tally.interrupted == 0
    print(tally)
    victim.end()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["stubborn", pytest.param("deaf", marks=pytest.mark.full)])
def test_a_thread_refuses_to_leave(build: Builder, start: Start, driver: Driver, stepper: Stepper, kind: str) -> None:
    """The tool is killed at any step, also while it takes back what it did; then the next command puts all right."""
    there = Loops(start, build, loops(build, 1), **{kind: 1, "latched": 1, "safe": 1})
    two, three = (loops(build, version, f"-DSTUBBORN={version}") for version in (2, 3))
    between = 0
    for turn, number in enumerate(range(5, MOST_STEPS, 37)):
        there.program.call("refuse", 1)
        run = stepper.run("upgrade", there.pid, two, *PROFILED, kill_at=number)
        there.program.call("refuse", 0)
        until(lambda: there.program.status("TracerPid") == 0, 5)
        between += there.program.call("version") == 2
        if turn % 3:
            driver.upgraded(there.program, three, *PROFILED)
            there.check(3, kinds=(kind, "latched", "safe"))
        while driver.status(there.pid).document["generation"]:
            driver.rolled_back(there.program)
        there.check(1, kinds=(kind, "latched", "safe"))
        assert driver.rollback(there.pid).codes() == {"nothing-to-roll-back"}
        assert there.coming_by() == [], "that settles what is not"
        if not run.killed:
            assert run.code == NOT_NOW, run.out
            break
    assert between, "at no step had it been killed between the commit and what took that back"
    there.end()


@pytest.mark.slow
def test_with_all_that_the_tool_started(build: Builder, start: Start, driver: Driver, stepper: Stepper) -> None:
    """As the end of a control group, or a machine without memory, kills: the helper too.  Then a system call that the
    kernel never restarts (``epoll_wait``, ``sigtimedwait``) may end with EINTR; all else is as before."""
    tally = Tally()
    steps = range(11, MOST_STEPS, 59)
    victim = Victim(build, start)
    assert steps_of_later_ones(victim, driver, stepper, tally, steps, everything=True), str(tally)
    assert tally.kills >= 5, str(tally)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exec", "exit"])
def test_the_process_ends_before_a_thread_is_seized(build: Builder, start: Start, stepper: Stepper, how: str) -> None:
    """A thread that executes another program waits for those that are traced, while PTRACE_SEIZE waits for it."""
    seen = stress.ends_at_steps(build, start, stepper, how, range(3, 30, 4), "ptrace SEIZE")
    assert sum(seen.values()) >= 4, seen
