"""Which loops must be restarted, what is known of them then, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.plan.loops.model import Door, Place, SiteKind, Store
from hotupgrade.plan.loops.paths import Types
from unit.conftest import Compiler
from unit.plan.loops.workers import (
    BY_FIELDS,
    BY_LATCH,
    BY_SLEEP,
    FIELDS,
    LATCH,
    NO_DOOR,
    OPTIONS,
    SLEEP,
    TYPES,
    WORK,
    Resolved,
    resolve,
    source,
)

MISMATCH = "loop-profile-mismatch"


def built(compiler: Compiler, text: str, *options: str) -> Build:
    return compiler.build(text, *OPTIONS, *options)


def resolved(compiler: Compiler, folder: Path, profile: str, old: str, new: str) -> Resolved:
    return resolve(folder, profile, built(compiler, new), built(compiler, old))


def place_of(build: Build, path: str) -> Place:
    return Types(build.debug, "module.c").locate("struct worker", path).place


# Plans


def test_fields(compiler: Compiler, tmp_path: Path) -> None:
    more = 'hold = "main"\none-by-one = true\nlimit-us = 700\nleaving = "stop"\nwake = [["ring", "bell"]]\n'
    old, new = (built(compiler, source(FIELDS, n)) for n in (1, 2))
    plan = resolve(tmp_path, BY_FIELDS + more, new, old).plan
    stop = place_of(new, "stop")
    assert (plan.function, plan.thread_names, plan.door, plan.changed) == ("worker_main", "workers", Door.FIELDS, True)
    assert (plan.hold_main, plan.one_by_one, plan.limit_us) == (True, True, 700)
    assert (plan.ask, plan.clear) == ((Store(stop, 1),), (Store(stop, 0),))
    assert stop.size == 4
    assert plan.leaving == stop
    assert plan.wake == (("ring", place_of(new, "bell")),)
    assert plan.thread == place_of(new, "thread")
    assert (plan.latch, plan.flag, plan.flag_vaddr) == (None, "", -1)
    for build, side in ((old, plan.sides[0]), (new, plan.new)):
        row = build.entities.names.index("worker_main")
        entry = int(build.entities.address[row])
        assert side.entry == entry
        assert side.ranges == ((entry, entry + int(build.entities.size[row])),)
        assert {site.kind for site in side.sites} == {SiteKind.WORK}


def test_a_latch(compiler: Compiler, tmp_path: Path) -> None:
    old, new = (built(compiler, source(LATCH, n)) for n in (1, 2))
    plan = resolve(tmp_path, BY_LATCH, new, old).plan
    assert (plan.door, plan.hold_main, plan.one_by_one) == (Door.LATCH, False, False)
    assert plan.latch == Place((8, 8), 8, "pool->exit")
    assert (plan.ask, plan.clear, plan.wake, plan.leaving) == ((), (), (), None)


def test_a_bare_pair_of_descriptors(compiler: Compiler, tmp_path: Path) -> None:
    profile = BY_LATCH.replace("pool->exit", "pool->exit.fds")
    plan = resolved(compiler, tmp_path, profile, source(LATCH, 1), source(LATCH, 2)).plan
    assert plan.latch == Place((8, 8), 8, "pool->exit.fds")


def test_a_latch_is_looked_at_by_a_function_of_the_loop(compiler: Compiler, tmp_path: Path) -> None:
    more = "__attribute__((noinline)) int done(struct worker *w) { return latch_is_set(&w->pool->exit) + w->id; }\n"
    sources = [source(LATCH.replace("latch_is_set(&w->pool->exit)", "done(w)"), n, more=more) for n in (1, 2)]
    assert resolved(compiler, tmp_path, BY_LATCH, *sources).plan.door is Door.LATCH


def test_a_sleeper_needs_no_debug_information(compiler: Compiler, tmp_path: Path) -> None:
    old, new = (compiler.build(source(SLEEP, n)) for n in (1, 2))
    plan = resolve(tmp_path, BY_SLEEP, new, old).plan
    assert (plan.door, plan.thread) == (Door.SLEEP, None)
    assert SiteKind.SLEEP in {site.kind for site in plan.sides[0].sites}


def test_cold_parts_are_in_the_ranges(compiler: Compiler, tmp_path: Path) -> None:
    loop = FIELDS.replace("work(w, rest(1))", "work(w, rest(1)); if (__builtin_expect(w->id == 5, 0)) rare(w)")
    more = "extern void rare(void *) __attribute__((cold));\n"
    plan = resolved(compiler, tmp_path, BY_FIELDS, source(loop, 1, more=more), source(loop, 2, more=more)).plan
    assert len(plan.sides[0].ranges) == len(plan.new.ranges) == 2


# Which loops


@pytest.mark.parametrize("profile", [BY_FIELDS, BY_FIELDS.replace('"stop"', '"nothing"'), NO_DOOR])
def test_of_a_loop_that_is_the_same_nothing_is_said(compiler: Compiler, tmp_path: Path, profile: str) -> None:
    old = source(FIELDS, 1)
    new = source(FIELDS, 1, more="int also_new(int x) { return x * 12345; }")
    assert resolved(compiler, tmp_path, profile, old, new) == Resolved([], [])


def test_nor_of_another_module(compiler: Compiler, tmp_path: Path) -> None:
    old, new = (built(compiler, source(FIELDS, n)) for n in (1, 2))
    assert resolve(tmp_path, BY_FIELDS, new, old, module="libother.so.1") == Resolved([], [])
    pattern = BY_FIELDS.replace("libworker.so.1", "libworker.so.*")
    assert len(resolve(tmp_path, pattern, new, old).plans) == 1


def test_nor_of_a_loop_that_is_not_there(compiler: Compiler, tmp_path: Path) -> None:
    profile = BY_FIELDS.replace("worker_main", "other_main")
    assert resolved(compiler, tmp_path, profile, source(FIELDS, 1), source(FIELDS, 2)) == Resolved([], [])


def test_a_dragged_loop_is_restarted(compiler: Compiler, tmp_path: Path) -> None:
    """What it calls changed, and cannot be redirected: a callback that is gone may yet call it."""
    work = WORK.replace("noinline)) long", "noinline)) static long")
    gone = "static long gone(struct worker *w) { return work(w, 8) + 3; } long (*hook)(struct worker *) = gone;\n"
    new = source(FIELDS, 1, work=work.replace("77", "79"))
    assert resolved(compiler, tmp_path, BY_FIELDS, source(FIELDS, 1, work=work), new).plans == []
    assert resolved(compiler, tmp_path, BY_FIELDS, source(FIELDS, 1, work=work, more=gone), new).plan.changed


def test_the_first_profile_counts(compiler: Compiler, tmp_path: Path) -> None:
    old, new = (built(compiler, source(FIELDS, n)) for n in (1, 2))
    own = BY_FIELDS + "limit-us = 123\n"
    assert resolve(tmp_path, [own, BY_FIELDS], new, old).plan.limit_us == 123
    assert resolve(tmp_path, [BY_FIELDS, own], new, old).plan.limit_us == 50_000


def test_images_of_earlier_upgrades(compiler: Compiler, tmp_path: Path) -> None:
    """A loop may run in any of them; one that was never placed there has no thread."""
    first, second, third = (built(compiler, source(FIELDS, n)) for n in (1, 2, 3))
    plan = resolve(tmp_path, BY_FIELDS, third, first, second, current=1).plan
    rows = [build.entities.names.index("worker_main") for build in (first, second)]
    assert {i: s.entry for i, s in plan.sides.items()} == {
        i: int(build.entities.address[row]) for i, build, row in zip((0, 1), (first, second), rows, strict=True)
    }
    again = resolve(tmp_path, BY_FIELDS, first, first, second, current=1).plan
    assert set(again.sides) == {0, 1}
    assert again.new.entry == plan.sides[0].entry


LATCHES = LATCH + LATCH.replace("worker_main", "helper_main").replace("long sum = N", "long sum = 5")
HELPED = "void *start_of_helper = (void *) helper_main;\n"


def test_a_group_is_restarted_together(compiler: Compiler, tmp_path: Path) -> None:
    """Whoever sets the latch for the one has the other leave too, though it did not change."""
    one = BY_LATCH + 'group = "pool"\n'
    texts = [one, one.replace("worker_main", "helper_main")]
    old, new = (built(compiler, source(LATCHES + HELPED, n)) for n in (1, 2))
    found = resolve(tmp_path, texts, new, old)
    assert found.reasons == []
    assert {plan.function: plan.changed for plan in found.plans} == {"worker_main": True, "helper_main": False}
    alone = resolve(tmp_path, [one, texts[1].replace('"pool"', '"other"')], new, old)
    assert [plan.function for plan in alone.plans] == ["worker_main"]


def test_who_cannot_leave_with_its_group_is_refused(compiler: Compiler, tmp_path: Path) -> None:
    one = BY_LATCH + 'group = "pool"\n'
    other = one.replace("worker_main", "helper_main").replace("pool->exit", "pool->door")
    old, new = (built(compiler, source(LATCHES + HELPED, n)) for n in (1, 2))
    found = resolve(tmp_path, [one, other], new, old)
    assert [plan.function for plan in found.plans] == ["worker_main"]
    (reason,) = found.reasons
    assert (reason.code, reason.subject) == (MISMATCH, "helper_main")
    assert reason.text.startswith("helper_main leaves with the others of group 'pool', but its loop profile")


CALLBACK = "void on_exit_command(struct worker *w) { w->stop = %d; }\n"


@pytest.mark.parametrize("callback", [1, 2])
def test_a_callback_that_shares_the_locals(compiler: Compiler, tmp_path: Path, callback: int) -> None:
    profile = BY_FIELDS + 'together = ["on_exit_command"]\n'
    old = source(FIELDS, 1, more=CALLBACK % 1)
    found = resolved(compiler, tmp_path, profile, old, source(FIELDS, 1, more=CALLBACK % callback))
    assert [plan.function for plan in found.plans] == (["worker_main"] if callback == 2 else [])
    assert found.reasons == []


def test_a_callback_of_a_loop_without_door(compiler: Compiler, tmp_path: Path) -> None:
    profile = NO_DOOR + 'together = ["on_exit_command"]\n'
    sources = [source(FIELDS, 1, more=CALLBACK % number) for number in (1, 2)]
    code, text = resolved(compiler, tmp_path, profile, *sources).refusal
    assert code == "loop-together"
    assert "on_exit_command changed and shares the variables of worker_main" in text
    assert "its frame is known elsewhere" in text


def test_no_door(compiler: Compiler, tmp_path: Path) -> None:
    code, text = resolved(compiler, tmp_path, NO_DOOR, source(FIELDS, 1), source(FIELDS, 2)).refusal
    assert code == "loop-no-door"
    assert "worker_main changed, and it never returns: its frame is known elsewhere" in text


# What does not fit

OWN_STOP = "while (!own_stop(w))"
HELPER = "__attribute__((noinline)) int own_stop(struct worker *w) { return w->stop; }\n"
ENDLESS = FIELDS.replace("!w->stop", "1").replace("long sum", "w->stop = N; long sum")

WRONG = {
    "a field that is not there": (BY_FIELDS.replace('["stop", 1]', '["halt", 1]'), FIELDS, "'ask'", "no member 'halt'"),
    "a field that nobody reads": (
        BY_FIELDS.replace('"stop", 1', '"bell", 1'),
        FIELDS,
        "'ask'",
        "reads or writes 'bell'",
    ),
    "a value without room": (
        BY_FIELDS.replace('"stop", 1', '"stop", 0x100000000'),
        FIELDS,
        "'ask'",
        "4294967296 has no room",
    ),
    "a structure": (BY_FIELDS.replace('"stop", 1', '"cache", 1'), FIELDS, "'ask'", "struct cache, which is no number"),
    "a pointer to nowhere": (
        BY_FIELDS + 'leaving = "thread->x"\n',
        FIELDS,
        "'leaving'",
        "there is no pointer but uint64",
    ),
    "a thread that is none": (BY_FIELDS.replace('"thread"', '"stop"'), FIELDS, "'thread'", "not a word of 8 bytes"),
    "a wake-up with less than a word": (
        BY_FIELDS + 'wake = [["f", "stop"]]\n',
        FIELDS,
        "'wake'",
        "not a word of 8 bytes",
    ),
    "a latch that is none": (BY_LATCH.replace("pool->exit", "pool->size"), LATCH, "'latch'", "not a structure"),
    "another argument": (
        BY_FIELDS.replace("struct worker", "struct robot"),
        FIELDS,
        "'argument'",
        "no type 'struct robot'",
    ),
    "no such work": (BY_FIELDS.replace('["work"]', '["play"]'), FIELDS, "'work'", "no direct call of play"),
    "no such sleep": (
        BY_SLEEP.replace('["rest"]', '["nap", "doze"]'),
        SLEEP,
        "'sleeps'",
        "no direct call of nap or doze",
    ),
    "a loop without end": (BY_FIELDS, ENDLESS, "'door'", "it never returns"),
    "a latch that nobody tests": (BY_LATCH, FIELDS, "'latch-test'", "nothing calls latch_is_set"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused(compiler: Compiler, tmp_path: Path, wrong: str) -> None:
    profile, loop, key, words = WRONG[wrong]
    found = resolved(compiler, tmp_path, profile, source(loop, 1), source(loop, 2))
    assert found.plans == []
    assert {reason.code for reason in found.reasons} == {MISMATCH}
    assert any(key in reason.text and words in reason.text for reason in found.reasons), found.reasons
    assert {reason.subject for reason in found.reasons} == {"worker_main"}


def test_a_field_that_another_function_reads(compiler: Compiler, tmp_path: Path) -> None:
    loop = FIELDS.replace("while (!w->stop)", OWN_STOP)
    code, text = resolved(
        compiler, tmp_path, BY_FIELDS, source(loop, 1, more=HELPER), source(loop, 2, more=HELPER)
    ).refusal
    assert (code, "reads or writes 'stop'" in text) == (MISMATCH, True)


def test_a_field_that_moved(compiler: Compiler, tmp_path: Path) -> None:
    moved = TYPES.replace("volatile int stop;", "volatile int other; volatile int stop;")
    code, text = resolved(compiler, tmp_path, BY_FIELDS, source(FIELDS, 1), source(FIELDS, 2, types=moved)).refusal
    assert code == MISMATCH
    assert "'stop' is at 528 (int32, 4 bytes) in " in text
    assert ", but at 532 (int32, 4 bytes) in " in text


def test_a_field_of_another_size(compiler: Compiler, tmp_path: Path) -> None:
    wider = TYPES.replace("volatile int stop;", "volatile long stop;")
    code, text = resolved(compiler, tmp_path, BY_FIELDS, source(FIELDS, 1), source(FIELDS, 2, types=wider)).refusal
    assert (code, "but at 528 (int64, 8 bytes)" in text) == (MISMATCH, True)


def test_a_field_behind_a_pointer_that_moved(compiler: Compiler, tmp_path: Path) -> None:
    moved = TYPES.replace("struct pool { long size;", "struct pool { long size, more;")
    code, text = resolved(compiler, tmp_path, BY_LATCH, source(LATCH, 1), source(LATCH, 2, types=moved)).refusal
    assert (code, "at 8 → 8 (struct latch, 8 bytes)" in text, "at 8 → 16" in text) == (MISMATCH, True, True)


@pytest.mark.parametrize("side", ["old", "new"])
def test_no_debug_information(compiler: Compiler, tmp_path: Path, side: str) -> None:
    old, new = (
        compiler.build(source(FIELDS, n), *(OPTIONS if side != which else OPTIONS[1:]))
        for n, which in ((1, "old"), (2, "new"))
    )
    code, text = resolve(tmp_path, BY_FIELDS, new, old).refusal
    assert code == MISMATCH
    assert f"('argument'): {(old if side == 'old' else new).label}: it has no debug information; build with -g" in text


def test_a_loop_that_the_new_build_does_not_have(compiler: Compiler, tmp_path: Path) -> None:
    renamed = source(FIELDS, 2).replace("worker_main", "worker_loop")
    code, text = resolved(compiler, tmp_path, BY_FIELDS, source(FIELDS, 1), renamed).refusal
    assert (code, "has no function of that name" in text) == (MISMATCH, True)


def test_a_variant_of_the_loop(compiler: Compiler, tmp_path: Path) -> None:
    old, new = (built(compiler, source(FIELDS, n)) for n in (1, 2))
    text = ".globl worker_main.constprop.0\n.type worker_main.constprop.0, @function\nworker_main.constprop.0: ret\n"
    text += ".size worker_main.constprop.0, 1\n"
    variant = compiler.build({"module.c": source(FIELDS, 2), "other.s": text}, *OPTIONS)
    code, words = resolve(tmp_path, BY_FIELDS, variant, old).refusal
    assert (code, "another calling convention of it, worker_main.constprop.0" in words) == (MISMATCH, True)
    assert resolve(tmp_path, BY_FIELDS, new, variant).refusal[0] == MISMATCH


def test_another_prototype_of_the_loop(compiler: Compiler, tmp_path: Path) -> None:
    new = source(FIELDS, 2).replace("void *argument", "struct worker *argument")
    code, text = resolved(compiler, tmp_path, BY_FIELDS, source(FIELDS, 1), new).refusal
    assert (code, "its prototype changed" in text) == (MISMATCH, True)


def test_all_mismatches_are_told(compiler: Compiler, tmp_path: Path) -> None:
    profile = BY_FIELDS.replace('["work"]', '["play"]').replace('"stop", 1', '"halt", 1')
    found = resolved(compiler, tmp_path, profile, source(FIELDS, 1), source(FIELDS, 2))
    assert [reason.code for reason in found.reasons] == [MISMATCH] * 3  # in both builds, and the field
    assert len({reason.text for reason in found.reasons}) == 3


# What no profile can mend

BRANCHING = """
.globl worker_main
.type worker_main, @function
worker_main: push %rbx
1:  mov ${n}, %edi
    call rest@PLT
    jmp 1b
.size worker_main, . - worker_main
"""


def test_a_branch_into_the_entry(compiler: Compiler, tmp_path: Path) -> None:
    profile = BY_SLEEP.replace('work = ["work"]\n', "")
    old, new = (compiler.build({"module.s": BRANCHING.replace("{n}", n)}) for n in "12")
    code, text = resolve(tmp_path, profile, new, old).refusal
    assert code == "loop-entry-branch"
    assert "branches into its own first five bytes" in text
    padded = compiler.build({"module.s": BRANCHING.replace("{n}", "1").replace("push %rbx", "push %rbx; nopl 8(%rax)")})
    assert resolve(tmp_path, profile, new, padded).plan.door is Door.SLEEP


MORE = WORK.replace("int n)", "int n, long more)").replace("+ n", "+ n + more")
CALLING_MORE = FIELDS.replace("rest(1))", "rest(1), 9)")


def test_a_callee_with_another_prototype(compiler: Compiler, tmp_path: Path) -> None:
    """Exported, so the old loop would call the new one at once, with an argument less."""
    code, text = resolved(compiler, tmp_path, BY_FIELDS, source(FIELDS, 1), source(CALLING_MORE, 2, work=MORE)).refusal
    assert code == "loop-callee-prototype"
    assert text.startswith("work: (struct worker *, int32) -> int64 becomes (struct worker *, int32, int64) -> int64;")
    assert "worker_main is in its loop" in text


STEP = "__attribute__((noinline)) static long step(struct worker *w, int n) { return work(w, n CALLED) + w->id * n; }\n"


def test_a_callee_that_a_local_function_calls(compiler: Compiler, tmp_path: Path) -> None:
    profile = BY_FIELDS.replace('["work"]', '["step"]')
    loop = FIELDS.replace("work(w,", "step(w,")
    old = source(loop, 1, more=STEP.replace(" CALLED", ""))
    new = source(loop, 2, work=MORE, more=STEP.replace(" CALLED", ", 9"))
    assert resolved(compiler, tmp_path, profile, old, new).refusal[0] == "loop-callee-prototype"


def test_a_local_callee_whose_address_is_used(compiler: Compiler, tmp_path: Path) -> None:
    """Its entry leads to the new code, but the loop's direct call may count on registers that the old one leaves."""
    profile = BY_FIELDS.replace('["work"]', '["step"]')
    loop = FIELDS.replace("work(w,", "step(w,")
    kept = STEP.replace(" CALLED", "") + "long (*kept)(struct worker *, int) = step;\n"
    old = source(loop, 1, more=kept)
    code, text = resolved(compiler, tmp_path, profile, old, source(loop, 2, more=kept.replace("* n", "+ n"))).refusal
    assert code == "loop-callee-convention"
    assert "step changed, and worker_main" in text
    assert resolved(compiler, tmp_path, profile, old, source(loop, 2, more=kept)).plan.door is Door.FIELDS


def test_a_local_callee_changes_with_the_loop(compiler: Compiler, tmp_path: Path) -> None:
    """Its address is not taken, so the old loop goes on calling the old one."""
    local = "noinline)) static long"
    old = source(FIELDS, 1, work=WORK.replace("noinline)) long", local))
    new = source(CALLING_MORE, 2, work=MORE.replace("noinline)) long", local))
    assert resolved(compiler, tmp_path, BY_FIELDS, old, new).plan.changed


def test_a_callee_that_changed_otherwise(compiler: Compiler, tmp_path: Path) -> None:
    new = source(FIELDS, 2, work=WORK.replace("77", "79"))
    assert resolved(compiler, tmp_path, BY_FIELDS, source(FIELDS, 1), new).plan.changed


def test_a_prototype_that_the_loop_has_nothing_to_do_with(compiler: Compiler, tmp_path: Path) -> None:
    other = "long other(%s) { return %s; }\n"
    old = source(FIELDS, 1, more=other % ("int x", "x * 3"))
    new = source(FIELDS, 2, more=other % ("int x, int y", "x * 5 + y"))
    assert resolved(compiler, tmp_path, BY_FIELDS, old, new).plan.changed
