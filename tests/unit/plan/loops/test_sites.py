"""Which clean-up and set-up calls may be skipped, and where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotupgrade.plan.loops.model import LoopPlan, Pair, SiteKind
from unit.conftest import Compiler
from unit.plan.loops.test_code import calls_by_objdump
from unit.plan.loops.workers import BY_FIELDS, BY_SLEEP, CACHE, FIELDS, OPTIONS, PAIRS, SLEEP, TYPES, resolve, source

SKIPPED = [Pair("drop_cache", "make_cache"), Pair("detach", "attach")]


def plan_of(
    compiler: Compiler, folder: Path, profile: str, old: str, new: str, options: tuple[str, ...] = OPTIONS
) -> LoopPlan:
    return resolve(folder, profile, compiler.build(new, *options), compiler.build(old, *options)).plan


def why_not(plan: LoopPlan) -> str:
    """Of the first pair, which has no site then; the other is skipped."""
    first, *others = plan.pairs
    assert not any(pair.why_not for pair in others)
    for side in (*plan.sides.values(), plan.new):
        assert 0 not in {site.pair for site in side.sites}
        assert {site.pair for site in side.sites} == {-1, *range(1, len(plan.pairs))}
    return first.why_not


def test_a_pair_and_its_sites(compiler: Compiler, tmp_path: Path) -> None:
    old, new = (compiler.build(source(FIELDS, n), *OPTIONS) for n in (1, 2))
    plan = resolve(tmp_path, BY_FIELDS + PAIRS, new, old).plan
    assert list(plan.pairs) == SKIPPED
    for build, side in ((old, plan.sides[0]), (new, plan.new)):
        expected = {
            "make_cache": (SiteKind.SETUP, 0, None),
            "drop_cache": (SiteKind.CLEAN, 0, None),
            "attach": (SiteKind.SETUP, 1, 1),
            "detach": (SiteKind.CLEAN, 1, None),
            "work": (SiteKind.WORK, -1, None),
        }
        for name, (kind, pair, value) in expected.items():
            sites = [site for site in side.sites if site.name == name]
            assert [site.vaddr for site in sites] == calls_by_objdump(build, "worker_main", name)
            assert {(site.kind, site.pair, site.value) for site in sites} == {(kind, pair, value)}
        assert {site.name for site in side.sites} == expected.keys()
        assert [site.vaddr for site in side.sites] == sorted(site.vaddr for site in side.sites)


def test_a_changed_call_is_made(compiler: Compiler, tmp_path: Path) -> None:
    new = source(FIELDS, 2, cache=CACHE.replace("i * 3", "i * 5"))
    plan = plan_of(compiler, tmp_path, BY_FIELDS + PAIRS, source(FIELDS, 1), new)
    assert "make_cache is not the same in" in why_not(plan)


def test_a_changed_type_means_that_calls_are_made(compiler: Compiler, tmp_path: Path) -> None:
    """Of the same size: the code is the same."""
    types = TYPES.replace("long slots[64]", "unsigned long slots[64]")
    plan = plan_of(compiler, tmp_path, BY_FIELDS + PAIRS, source(FIELDS, 1), source(FIELDS, 2, types=types))
    assert why_not(plan) == "struct cache changed: slots: int64 [64] → uint64 [64]"


def test_a_type_within_the_type_counts(compiler: Compiler, tmp_path: Path) -> None:
    before = TYPES.replace(
        "struct cache { long slots[64]; }", "struct slot { long x; }; struct cache { struct slot s[64]; }"
    )
    after = before.replace("long x", "unsigned long x")
    cache = CACHE.replace("slots[i]", "s[i].x")
    plan = plan_of(
        compiler, tmp_path, BY_FIELDS + PAIRS, source(FIELDS, 1, types=before, cache=cache),
        source(FIELDS, 2, types=after, cache=cache),
    )  # fmt: skip
    assert why_not(plan) == "struct slot changed: x: int64 → uint64"


def test_another_type_does_not_count(compiler: Compiler, tmp_path: Path) -> None:
    types = TYPES.replace("struct pool { long size", "struct pool { unsigned long size")
    plan = plan_of(compiler, tmp_path, BY_FIELDS + PAIRS, source(FIELDS, 1), source(FIELDS, 2, types=types))
    assert list(plan.pairs) == SKIPPED


def test_a_type_that_nobody_knows(compiler: Compiler, tmp_path: Path) -> None:
    profile = BY_FIELDS + PAIRS.replace("struct cache", "struct caches")
    plan = plan_of(compiler, tmp_path, profile, source(FIELDS, 1), source(FIELDS, 2))
    assert "has no type 'struct caches'" in why_not(plan)


def test_no_debug_information_to_compare_types(compiler: Compiler, tmp_path: Path) -> None:
    profile = BY_SLEEP + '[[loop.skip]]\nsetup = [{ call = "attach", returns = 1 }]\ntypes = ["struct cache"]\n'
    plan = plan_of(compiler, tmp_path, profile, source(SLEEP, 1), source(SLEEP, 2), ("-g0",))
    assert "it has no debug information, so types cannot be compared" in plan.pairs[0].why_not


ALTERNATIVES = BY_FIELDS + '[[loop.skip]]\nclean = ["empty", "drop_cache"]\nsetup = ["fill", "make_cache"]\n'
INLINED = "static inline __attribute__((always_inline)) void %s(struct cache *c) { %s(c); }\n"
OUTER = "__attribute__((noinline)) static void %s(struct cache *c) { %s(c); %s(c); }\n"


def wrapped(clean: str, setup: str) -> tuple[str, str]:
    """Loops of both builds with calls of ``empty`` and ``fill``, inlined or not."""
    loop = FIELDS.replace("make_cache(&", "fill(&").replace("drop_cache(&", "empty(&")
    more = clean.replace("%s", "empty", 1).replace("%s", "drop_cache")
    more += setup.replace("%s", "fill", 1).replace("%s", "make_cache")
    return source(loop, 1, more=more), source(loop, 2, more=more)


@pytest.mark.parametrize("clean", [INLINED, OUTER])
@pytest.mark.parametrize("setup", [INLINED, OUTER])
def test_alternatives(compiler: Compiler, tmp_path: Path, clean: str, setup: str) -> None:
    plan = plan_of(compiler, tmp_path, ALTERNATIVES, *wrapped(clean, setup))
    names = ("drop_cache" if clean == INLINED else "empty", "make_cache" if setup == INLINED else "fill")
    assert list(plan.pairs) == [Pair(*names)]
    assert [site.name for site in plan.new.sites if site.pair == 0] == [names[1], names[0]]


def test_alternatives_may_differ_per_build(compiler: Compiler, tmp_path: Path) -> None:
    """What the one build calls and the other has inlined is no longer there to be the same."""
    plan = plan_of(compiler, tmp_path, ALTERNATIVES, wrapped(OUTER, INLINED)[0], wrapped(INLINED, INLINED)[1])
    assert "empty is not the same in" in plan.pairs[0].why_not


def test_alternatives_that_are_not_the_modules_own(compiler: Compiler, tmp_path: Path) -> None:
    profile = BY_FIELDS + '[[loop.skip]]\nclean = ["leave", "detach"]\nsetup = [{ call = "attach", returns = 1 }]\n'
    old = (
        source(FIELDS, 1).replace("extern void detach(void)", "extern void leave(void)").replace("detach()", "leave()")
    )
    plan = plan_of(compiler, tmp_path, profile, old, source(FIELDS, 2))
    assert plan.pairs == (Pair("leave", "attach"),)
    assert [site.name for site in plan.sides[0].sites if site.kind == SiteKind.CLEAN] == ["leave"]
    assert [site.name for site in plan.new.sites if site.kind == SiteKind.CLEAN] == ["detach"]


def test_inlined_in_one_place_only(compiler: Compiler, tmp_path: Path) -> None:
    loop = FIELDS.replace("drop_cache(&w->cache);", "drop_cache(&w->cache); empty(&w->cache);")
    more = OUTER.replace("%s", "empty", 1).replace("%s", "drop_cache")
    plan = plan_of(compiler, tmp_path, ALTERNATIVES, source(loop, 1, more=more), source(loop, 2, more=more))
    assert "calls empty and drop_cache: it was inlined in one place, but not in the other" in plan.pairs[0].why_not


def test_a_call_that_is_not_there(compiler: Compiler, tmp_path: Path) -> None:
    profile = BY_FIELDS + PAIRS.replace('"drop_cache"', '"drop_all"')
    plan = plan_of(compiler, tmp_path, profile, source(FIELDS, 1), source(FIELDS, 2))
    assert "has no direct call of drop_all" in why_not(plan)


def test_a_jump_beside_the_call(compiler: Compiler, tmp_path: Path) -> None:
    text = """
    .globl worker_main
    .type worker_main, @function
    worker_main: push %rbx
        call attach@PLT
    2:  mov ${n}, %edi
        call rest@PLT
        test %eax, %eax
        je 1f
        jmp 2b
    1:  pop %rbx
        je attach@PLT
        jmp attach@PLT
    .size worker_main, . - worker_main
    """
    profile = BY_SLEEP.replace('work = ["work"]\n', "") + '[[loop.skip]]\nsetup = ["attach"]\n'
    old, new = (compiler.build({"module.s": text.replace("{n}", n)}) for n in "12")
    plan = resolve(tmp_path, profile, new, old).plan
    assert "leads to attach by another instruction than a call" in plan.pairs[0].why_not


def test_a_result_that_the_profile_does_not_name(compiler: Compiler, tmp_path: Path) -> None:
    profile = BY_FIELDS + '[[loop.skip]]\nclean = ["detach"]\nsetup = ["attach"]\n'
    plan = plan_of(compiler, tmp_path, profile, source(FIELDS, 1), source(FIELDS, 2))
    assert plan.pairs[0].why_not == "attach returns something, and the profile does not say what ('returns')"


def test_a_set_up_without_partner(compiler: Compiler, tmp_path: Path) -> None:
    profile = BY_SLEEP + '[[loop.skip]]\nsetup = [{ call = "attach", returns = -1 }]\n'
    plan = plan_of(compiler, tmp_path, profile, source(SLEEP, 1), source(SLEEP, 2))
    assert plan.pairs == (Pair("", "attach"),)
    assert [(s.kind, s.value) for s in plan.new.sites if s.pair == 0] == [(SiteKind.SETUP, -1)]


LOCKING = """
extern void lock(void *);
static void *worker_main(void *argument) {
    struct worker *w = argument;
    lock(w);
    for (;;) { work(w, rest(N)); lock(w->pool); }
    return 0;
}
"""
FIRST = '[[loop.skip]]\nsetup = ["lock"]\nfirst = true\nrequired = true\n'


def test_the_first_call_alone(compiler: Compiler, tmp_path: Path) -> None:
    old, new = (compiler.build(source(LOCKING, n), *OPTIONS) for n in (1, 2))
    plan = resolve(tmp_path, BY_SLEEP + FIRST, new, old).plan
    for build, side in ((old, plan.sides[0]), (new, plan.new)):
        first, _ = calls_by_objdump(build, "worker_main", "lock")
        assert [site.vaddr for site in side.sites if site.kind == SiteKind.SETUP] == [first]


def test_a_required_skip(compiler: Compiler, tmp_path: Path) -> None:
    """Something else comes first in the new build; to lock again would be fatal."""
    later = LOCKING.replace("lock(w);", "attach(1); lock(w);", 1)
    old, new = (compiler.build(source(loop, n), *OPTIONS) for n, loop in ((1, LOCKING), (2, later)))
    code, text = resolve(tmp_path, BY_SLEEP + FIRST, new, old).refusal
    assert code == "loop-profile-mismatch"
    assert "('skip'): without the skip of lock it cannot enter again" in text
    assert f"the loop in {new.label} does not begin with a direct call of lock" in text


def test_every_build_of_the_process_counts(compiler: Compiler, tmp_path: Path) -> None:
    """The image of an earlier upgrade has another cache."""
    first, second, third = (
        compiler.build(source(FIELDS, n, cache=CACHE.replace("* 3", f"* {factor}")), *OPTIONS)
        for n, factor in ((1, 3), (2, 5), (3, 3))
    )
    plan = resolve(tmp_path, BY_FIELDS + PAIRS, third, first, second, current=1).plan
    assert set(plan.sides) == {0, 1}
    assert "make_cache is not the same in" in why_not(plan)
    assert second.label in plan.pairs[0].why_not


def test_sleeps_are_sites(compiler: Compiler, tmp_path: Path) -> None:
    old, new = (compiler.build(source(SLEEP, n), *OPTIONS) for n in (1, 2))
    plan = resolve(tmp_path, BY_SLEEP, new, old).plan
    for build, side in ((old, plan.sides[0]), (new, plan.new)):
        sleeps = [site.vaddr for site in side.sites if site.kind == SiteKind.SLEEP]
        assert sleeps == calls_by_objdump(build, "worker_main", "rest")
