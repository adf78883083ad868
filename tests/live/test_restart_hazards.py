"""What else may happen while threads are restarted: forks, births, deaths, long sleeps, another upgrade."""

from __future__ import annotations

import time

import pytest

from live.conftest import Start
from live.harness import Builder, Driver, until
from live.loops import PROFILED, Loops, loops, switch

pytestmark = pytest.mark.timeout(180)


def back_and_forth(driver: Driver, there: Loops, build: Builder, times: int) -> None:
    two = loops(build, 2)
    for turn in range(times):
        switch(driver, there, None if turn % 2 else two)


def test_threads_that_fork(build: Builder, start: Start, driver: Driver) -> None:
    """A child that was born on the way goes on alone: nobody asks it, lets it in, or waits for it."""
    there = Loops(start, build, loops(build, 1), forking=3, safe=1)
    back_and_forth(driver, there, build, 20)
    there.check(1, entered=21)
    until(lambda: there.program.call("count_children") > 100)
    time.sleep(2.5)  # then the last that were lost have ended
    assert there.program.call("lost_children") == 0
    there.end()


def test_a_child_is_upgraded_by_itself(build: Builder, start: Start, driver: Driver) -> None:
    """One that the main thread has forked after an upgrade: it has none of the other threads."""
    there = Loops(start, build, loops(build, 1), safe=2, latched=1)
    switch(driver, there, loops(build, 2))
    assert there.program.facts("fork", "version") == {"value": "2", "status": "0"}
    switch(driver, there, None)
    assert there.program.facts("fork", "version") == {"value": "1", "status": "0"}
    there.check(1, entered=3)
    there.end()


def test_threads_that_are_born_meanwhile(build: Builder, start: Start, driver: Driver) -> None:
    """Some in the old code, some in the new, some while the others are asked to leave: all are there afterwards."""
    there = Loops(start, build, loops(build, 1), safe=2)
    for turn in range(4):
        there.program.ask("thread", "breed_safe", 12)
        for _ in range(3):
            switch(driver, there, None if driver.status(there.pid).document["generation"] else loops(build, 2))
        until(lambda: "breed_safe" not in there.program.threads().values())
        there.counts["safe"] += 12
        there.threads = there.described()
        assert len(there.tids("safe")) == there.counts["safe"], f"a thread was lost in turn {turn}"
        there.check(1 if turn % 2 else 2)
    there.end()


def test_threads_that_end_meanwhile(build: Builder, start: Start, driver: Driver) -> None:
    """They end as the program wanted, whether they were asked to leave their loop at that time or not."""
    two = loops(build, 2)
    for turn in range(6):
        there = Loops(start, build, loops(build, 1), safe=10)
        there.program.ask("thread", "end_even", 0)
        for _ in range(2 + turn % 2):
            switch(driver, there, None if driver.status(there.pid).document["generation"] else two)
        until(lambda there=there: len(there.tids("safe")) == 5, what="half of the threads end")
        until(lambda there=there: "end_even" not in there.program.threads().values())
        before = {tid: there.described()[tid] for tid in there.tids("safe")}
        assert before.items() <= there.threads.items()
        assert there.totals().wrong == 0
        there.program.kill()


def test_further_upgrades_while_sleepers_sleep(build: Builder, start: Start, driver: Driver) -> None:
    """They are led to the code that is in force when they wake, whichever it is then."""
    there = Loops(start, build, loops(build, 1), sleeping=2, safe=1)
    there.program.call("set_nap", 170000)
    time.sleep(0.1)
    for library in (loops(build, 2), loops(build, 3), None, loops(build, 3), None, None):
        restarted = switch(driver, there, library)
        assert {restarted[tid]["state"] for tid in there.tids("sleeping")} == {"sleeping"}
        version = there.program.call("version")
        until(lambda version=version: there.kind("safe").body == (version, version))
    switch(driver, there, loops(build, 3))
    assert there.kind("sleeping").entered == (1, 1), "they have slept through all of that"
    there.program.call("set_nap", 20)
    there.program.call("wake_all")
    there.check(3)
    assert there.kind("sleeping").entered == (2, 2)
    there.end()


def test_sleepers_are_cancelled_while_they_sleep(build: Builder, start: Start, driver: Driver) -> None:
    there = Loops(start, build, loops(build, 1), sleeping=2)
    there.program.call("set_nap", 60000)
    time.sleep(0.1)
    switch(driver, there, loops(build, 2))
    there.end()


def test_the_program_ends_while_threads_are_restarted(build: Builder, start: Start, driver: Driver) -> None:
    two = loops(build, 2)
    for ms in range(0, 120, 10):
        there = Loops(start, build, loops(build, 1), busy=1, latched=2, safe=2, sleeping=1)
        there.program.ask("end", "exit", ms)
        driver.upgrade(there.pid, two, *PROFILED, "--timeout", 5)
        assert there.program.process.wait(10) == 0, f"after {ms} ms"
        there.program.kill()


def test_a_latch_that_the_program_clears_itself(build: Builder, start: Start, driver: Driver) -> None:
    """There is nothing to read from it then, and it is a pipe that waits until there is."""
    there = Loops(start, build, loops(build, 1, "-DCLEARS"), latched=1)
    switch(driver, there, loops(build, 2, "-DCLEARS"))
    there.check(2, entered=2)
    switch(driver, there, None)
    there.check(1, entered=3)
    there.end()
