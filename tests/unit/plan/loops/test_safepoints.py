"""Loops with a safe point that was compiled in: they need no profile."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotupgrade.plan.loops.model import Door
from unit.conftest import Compiler
from unit.plan.loops.workers import BY_FIELDS, BY_SLEEP, OPTIONS, TYPES, Resolved, resolve

FLAG = "static volatile unsigned hotupgrade_safe_point;\n"
LOOP = """
extern int rest(int);
static void *worker_main(void *argument) {
    struct worker *w = argument;
    while (!hotupgrade_safe_point) w->id += rest(N);
    return 0;
}
void *start_of_worker = (void *) worker_main;
"""
LOCAL = LOOP.replace("struct worker *w", FLAG.strip() + " struct worker *w")


def source(n: int, loop: str = LOOP, flag: str = FLAG) -> str:
    return f"#define N {n}\n" + TYPES + flag + loop


def found(compiler: Compiler, folder: Path, old: str, new: str, profile: str = BY_SLEEP, *options: str) -> Resolved:
    other = profile.replace('"worker_main"', '"another"') if profile == BY_SLEEP else profile
    return resolve(folder, other, *(compiler.build(text, *OPTIONS, *options) for text in (new, old)))


@pytest.mark.parametrize(("loop", "flag"), [(LOOP, FLAG), (LOCAL, ""), (LOOP, FLAG.replace(";", " = 0;"))])
def test_a_safe_point(compiler: Compiler, tmp_path: Path, loop: str, flag: str) -> None:
    old, new = (compiler.build(source(n, loop, flag), *OPTIONS) for n in (1, 2))
    plan = resolve(tmp_path, [], new, old).plan
    assert (plan.function, plan.door, plan.changed) == ("worker_main", Door.FLAG, True)
    assert (plan.hold_main, plan.one_by_one, plan.pairs, plan.thread) == (False, False, (), None)
    row = new.entities.names.index(plan.flag)
    assert plan.flag.startswith("hotupgrade_safe_point")
    assert plan.flag_vaddr == int(new.entities.address[row])
    for build, side in ((old, plan.sides[0]), (new, plan.new)):
        function = build.entities.names.index("worker_main")
        entry = int(build.entities.address[function])
        assert (side.entry, side.sites) == (entry, ())
        assert side.ranges == ((entry, entry + int(build.entities.size[function])),)


def test_the_same_loop_is_left_alone(compiler: Compiler, tmp_path: Path) -> None:
    assert found(compiler, tmp_path, source(1), source(1) + "int more(int x) { return x * 3; }") == Resolved([], [])


def test_a_profile_goes_first(compiler: Compiler, tmp_path: Path) -> None:
    loop = LOOP.replace("!hotupgrade_safe_point", "!hotupgrade_safe_point && !w->stop")
    profile = BY_FIELDS.replace('work = ["work"]', 'work = ["rest"]')
    assert found(compiler, tmp_path, source(1, loop), source(2, loop), profile).plan.door is Door.FIELDS


def test_a_loop_that_had_none_before(compiler: Compiler, tmp_path: Path) -> None:
    """There is no way out of it: whoever stands in it is refused by name, not here."""
    old = source(1, LOOP.replace("!hotupgrade_safe_point", "!w->stop"), "")
    assert found(compiler, tmp_path, old, source(2)) == Resolved([], [])


def test_a_loop_whose_address_nobody_takes(compiler: Compiler, tmp_path: Path) -> None:
    loop = LOOP.replace("static void *worker_main", "void *worker_main").replace("void *start_of_worker", "//")
    assert found(compiler, tmp_path, source(1, loop), source(2, loop), BY_SLEEP, "-Wl,-Bsymbolic") == Resolved([], [])


def test_loops_that_share_a_flag(compiler: Compiler, tmp_path: Path) -> None:
    helper = LOOP.replace("worker", "helper").replace("struct helper", "struct worker").replace("rest(N)", "rest(7)")
    plans = found(compiler, tmp_path, source(1, LOOP + helper), source(2, LOOP + helper)).plans
    assert {plan.function: plan.changed for plan in plans} == {"worker_main": True, "helper_main": False}
    assert len({plan.flag_vaddr for plan in plans}) == 1


def test_loops_with_flags_of_their_own(compiler: Compiler, tmp_path: Path) -> None:
    def built(n: int) -> dict[str, str]:
        helper = source(7).replace("worker_main", "helper_main").replace("start_of_worker", "start_of_helper")
        return {"one.c": source(n), "two.c": helper}

    old, new = (compiler.build(built(n), *OPTIONS) for n in (1, 2))
    assert resolve(tmp_path, [], new, old).plan.function == "worker_main"


ENDLESS = LOOP.replace("while (!hotupgrade_safe_point)", "for (;; (void) hotupgrade_safe_point)")
TWO = LOCAL.replace("while", "{ " + FLAG + " if (hotupgrade_safe_point) return w; } while")
FAULTS = {
    "of another size": (LOOP, FLAG.replace("unsigned", "unsigned char"), "does not have 4 bytes"),
    "without a way out": (ENDLESS, FLAG, "it never returns"),
    "two": (TWO, "", "it has 2 safe points"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_used_is_refused(compiler: Compiler, tmp_path: Path, fault: str) -> None:
    loop, flag, words = FAULTS[fault]
    result = found(compiler, tmp_path, source(1, loop, flag), source(2, loop, flag))
    assert result.plans == []
    assert {reason.code for reason in result.reasons} == {"loop-profile-mismatch"}
    assert any(words in reason.text for reason in result.reasons), result.reasons


def test_a_flag_that_is_not_the_same_variable(compiler: Compiler, tmp_path: Path) -> None:
    """From a variable of the function to one of the file: it may be paired or not, but never silently taken."""
    result = found(compiler, tmp_path, source(1, LOCAL, ""), source(2))
    if result.reasons:
        assert "cannot be told that the flag of its safe point is the same variable" in result.refusal[1]
    else:
        assert result.plan.door is Door.FLAG
