"""Threads in loops that changed are restarted: led out of the old code, and into the new, as the same threads."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from live.conftest import Start
from live.harness import NOT_NOW, REFUSED, Builder, Driver, HotUpgrade, until
from live.loops import PROFILE, PROFILED, Loops, loops, switch

EACH = {
    "busy": {"busy": 1},
    "group": {"latched": 2, "other": 1},
    "safe": {"safe": 2, "direct": 1},
    "sleeping": {"sleeping": 2},
}
BACK = 0
ALL = {"busy": 1, "direct": 1, "latched": 2, "other": 1, "safe": 2, "sleeping": 2}
FLAVOURS = {
    "gcc-O0": ("gcc", "-O0"),
    "gcc-O3": ("gcc", "-O3"),
    "gcc-frame-pointers": ("gcc", "-fno-omit-frame-pointer"),
    "gcc-protected": ("gcc", "-fstack-protector-strong", "-fcf-protection=full", "-D_FORTIFY_SOURCE=2"),
    "clang-O2": ("clang", "-O2"),
    "clang-O0": ("clang", "-O0"),
    "clang-frame-pointers": ("clang", "-fno-omit-frame-pointer"),
}

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("kind", EACH)
def test_there_and_back_and_there(build: Builder, start: Start, hu: HotUpgrade, kind: str) -> None:
    there = Loops(start, build, loops(build, 1), **EACH[kind])
    there.check(1, entered=1)
    two = loops(build, 2)
    for turn in range(4):
        restarted = switch(hu, there, None if turn % 2 else two)
        assert sorted(restarted) == sorted(tid for name in EACH[kind] for tid in there.tids(name))
        assert {item["state"] for item in restarted.values()} <= {"arrived", "sleeping"}
        there.check(1 if turn % 2 else 2, entered=turn + 2)
    there.end()


def test_calls_that_cancel_out_are_skipped_once(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """What is set up stays set up; a pair of which one has changed is not skipped but made."""
    there = Loops(start, build, loops(build, 1), busy=1)
    (restarted,) = switch(hu, there, loops(build, 2)).values()
    assert restarted["skipped"] == ["drop_cache", "detach"]
    there.check(2, entered=2)
    (restarted,) = switch(hu, there, loops(build, 3, "-DTHOROUGH")).values()
    assert restarted["skipped"] == ["detach"]
    totals = there.totals()
    assert (totals.made, totals.dropped) == (2, 1)
    assert (totals.attached, totals.detached) == (1, 0)
    (restarted,) = switch(hu, there, None).values()
    assert restarted["skipped"] == ["detach"]
    there.end()


@pytest.mark.parametrize("option", ["--measure-empty", "--whole", "--imports"])
def test_options(build: Builder, start: Start, driver: Driver, option: str) -> None:
    """A stop without edits, that knows who stands where; more that is redirected."""
    there = Loops(start, build, loops(build, 1), **ALL)
    driver.upgraded(there.program, loops(build, 2), *PROFILED, option)
    there.check(2, entered=2)
    switch(driver, there, None)
    there.check(1, entered=3)
    there.end()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_flavours(build: Builder, start: Start, hu: HotUpgrade, flavour: str) -> None:
    compiler, *flags = FLAVOURS[flavour]
    one, two = (loops(build, version, *flags, compiler=compiler) for version in (1, 2))
    there = Loops(start, build, one, **ALL)
    switch(hu, there, two)
    there.check(2, entered=2)
    switch(hu, there, None)
    there.check(1, entered=3)
    there.end()


@pytest.mark.parametrize("flavour", ["gcc-O2", *FLAVOURS])
def test_a_thread_that_was_started_with_another_function(
    build: Builder, start: Start, driver: Driver, flavour: str
) -> None:
    """That function keeps the loop and its argument where the compiler likes."""
    compiler, *flags = FLAVOURS.get(flavour, ("gcc",))
    one, two = (loops(build, version, *flags, compiler=compiler) for version in (1, 2))
    there = Loops(start, build, one, wrapped=2)
    switch(driver, there, two)
    there.check(2, entered=2)
    switch(driver, there, None)
    there.check(1, entered=3)
    there.end()


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_a_thread_whose_first_function_is_gone(build: Builder, start: Start, driver: Driver, compiler: str) -> None:
    """It has called the loop as its last deed: nothing is left that says with which argument."""
    one, two = (loops(build, version, "-DLAST_DEED", compiler=compiler) for version in (1, 2))
    there = Loops(start, build, one, wrapped=1)
    answer = driver.upgrade(there.pid, two, "--timeout", 1)
    assert answer.code == NOT_NOW, str(answer)
    assert "wrapped_main" in answer.about()
    there.check(1, entered=1)
    there.end()


@pytest.mark.timeout(240)
def test_fifty_times(build: Builder, start: Start, driver: Driver) -> None:
    """The same threads with all that is theirs, and not an item lost; clean-up calls are made when the program ends."""
    files = {version: loops(build, version) for version in (1, 2, 3)}
    there = Loops(start, build, files[1], **ALL)
    versions = [1]
    for turn, wanted in enumerate([2, BACK, 2, 3, 1, BACK, BACK, BACK] * 6 + [3, BACK]):
        if wanted == BACK:
            versions.pop()
        else:
            versions.append(wanted)
        restarted = switch(driver, there, files.get(wanted))
        assert len(restarted) == sum(ALL.values())
        there.check(versions[-1], entered=turn + 2)
    there.end()


# What cannot be


def test_one_that_refuses_to_leave(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """All is taken back, byte for byte; and when it leaves after all, all is done."""
    there = Loops(start, build, loops(build, 1), stubborn=2, latched=1)
    two = loops(build, 2, "-DSTUBBORN=2")
    first = there.tids("stubborn")[0]
    there.program.call("refuse", 1)
    code = there.code()
    for _ in range(3):
        answer = hu.upgrade(there.pid, two, *PROFILED)
        assert answer.code == NOT_NOW, str(answer)
        assert answer.codes() == {"restart-failed"}
        assert str(first) in answer.about()
        assert "stubborn_main" in answer.about()
        there.check(1, kinds=("stubborn", "latched"))
        assert there.code() == code
        assert hu.status(there.pid).document["generation"] == 0
    there.program.call("refuse", 0)
    switch(hu, there, two)
    there.check(2, kinds=("stubborn", "latched"))
    switch(hu, there, None)
    there.check(1, kinds=("stubborn", "latched"))
    there.end()


@pytest.mark.parametrize("kind", ["stubborn", "deaf"])
def test_one_that_refuses_to_leave_after_others(build: Builder, start: Start, driver: Driver, kind: str) -> None:
    """It has been in the new code before, whose traces are still on its stack; "deaf": nothing tells that it works."""
    there = Loops(start, build, loops(build, 1), **{kind: 1, "safe": 1})
    two = loops(build, 2, "-DSTUBBORN=2")
    entered = 1
    for _ in range(3):
        for library in (two, None):
            switch(driver, there, library)
            there.program.call("refuse", 1)
            for _ in range(2):
                answer = driver.rollback(there.pid) if library else driver.upgrade(there.pid, two, *PROFILED)
                assert answer.code == NOT_NOW, str(answer)
                assert answer.codes() == {"restart-failed"}
                there.check(2 if library else 1, kinds=(kind, "safe"))
            there.program.call("refuse", 0)
            entered += 1
            assert there.kind(kind).entered == (entered, entered)
    there.end()


def test_one_that_refuses_to_be_rolled_back(build: Builder, start: Start, hu: HotUpgrade) -> None:
    there = Loops(start, build, loops(build, 1), stubborn=1, safe=1)
    switch(hu, there, loops(build, 2, "-DSTUBBORN=2"))
    there.check(2, kinds=("stubborn", "safe"))
    there.program.call("refuse", 1)
    answer = hu.rollback(there.pid)
    assert answer.code == NOT_NOW, str(answer)
    there.check(2, kinds=("stubborn", "safe"))
    assert hu.status(there.pid).document["generation"] == 1
    there.program.call("refuse", 0)
    switch(hu, there, None)
    there.check(1, kinds=("stubborn", "safe"))
    there.end()


def test_a_loop_without_a_profile(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """It is said at once, and by check already."""
    there = Loops(start, build, loops(build, 1), wild=1)
    code, maps = there.code(), there.program.maps()
    two = loops(build, 2, "-DWILD=2")
    begin = time.monotonic()
    for answer in (hu.check(there.pid, two), hu.upgrade(there.pid, two, "--timeout", 30)):
        assert answer.code == REFUSED, str(answer)
        assert answer.codes() == {"loop-without-profile"}
        assert answer.document["reasons"][0]["subject"] == "wild_main"
        assert str(there.tids("wild")[0]) in answer.about()
        assert "--profile" in answer.about()
        assert "hotupgrade.h" in answer.about()
    assert time.monotonic() - begin < 20
    there.check(1, kinds=("wild",))
    assert (there.code(), there.program.maps()) == (code, maps), "not even the agent was brought in"
    hu.upgraded(there.program, loops(build, 2))
    there.check(1, kinds=("wild",))
    there.end()


@pytest.mark.parametrize("kind", ["busy", "latched"])
def test_a_loop_that_may_return_without_a_profile(build: Builder, start: Start, hu: HotUpgrade, kind: str) -> None:
    """It is waited for, as for any function; when the time is up, it is said what it is."""
    there = Loops(start, build, loops(build, 1), **{kind: 1})
    answer = hu.upgrade(there.pid, loops(build, 2), "--timeout", 1)
    assert answer.code == REFUSED, str(answer)
    assert answer.codes() == {"loop-without-profile"}
    assert answer.document["reasons"][0]["subject"] == f"{kind}_main"
    assert str(there.tids(kind)[0]) in answer.about()
    there.check(1, entered=1)
    switch(hu, there, loops(build, 2))
    there.check(2, entered=2)
    there.end()


def test_a_loop_that_no_thread_is_in_needs_no_profile(build: Builder, start: Start, hu: HotUpgrade) -> None:
    there = Loops(start, build, loops(build, 1), safe=1)
    hu.upgraded(there.program, loops(build, 2, "-DWILD=2"))
    there.check(2, entered=2)
    there.end()


def test_a_profile_that_does_not_match(build: Builder, start: Start, hu: HotUpgrade, tmp_path: Path) -> None:
    there = Loops(start, build, loops(build, 1), busy=1, latched=1)
    wrong = tmp_path / "wrong.toml"
    for before, after in (('["stop", 1]', '["halt", 1]'), ('["finish"]', '["finished"]'), ("pool->exit", "pool->way")):
        wrong.write_text(PROFILE.read_text().replace(before, after))
        answer = hu.upgrade(there.pid, loops(build, 2), "--profile", wrong)
        assert answer.code == REFUSED, str(answer)
        assert answer.codes() == {"loop-profile-mismatch"}
    wrong.write_text("[[loop]]\nfunction = 1\n")
    assert hu.upgrade(there.pid, loops(build, 2), "--profile", wrong).codes() == {"bad-profile"}
    there.check(1, entered=1)
    until(lambda: there.program.status("TracerPid") == 0)
    there.end()
