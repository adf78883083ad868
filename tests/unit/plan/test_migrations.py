"""Hooks of a new build: found by name, and refused by name where they cannot do what they promise."""

from __future__ import annotations

from pathlib import Path

import pytest

import hotupgrade
from hotupgrade.binary.build import Build
from hotupgrade.errors import Reason
from hotupgrade.plan.compare import compare
from hotupgrade.plan.migrations import claimed_objects, claimed_types, hook, migrated_pairs
from hotupgrade.plan.model import Image
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.verdict import verdict
from unit.conftest import Compiler

BASE = 0x7F0000000000
INCLUDE = f"-I{Path(hotupgrade.__file__).parent / 'include'}"
HEADER = "#include <hotupgrade.h>\n"
OLD = """
struct s { long a; };
%s struct s state = {5};
long get(long x) { return state.a += x; }
long other(long x) { return x * 3; }
"""
NEW = (
    HEADER
    + """
struct s { long a, b; };
%s struct s state = {5, 6};
long get(long x) { state.b++; return state.a += x; }
long other(long x) { return x * 3; }
HOTUPGRADE_TYPE(s);
HOTUPGRADE_MIGRATE(state) { ((struct s *)new_object)->a = *(const long *)old_object; return old_size > new_size; }
"""
)
RETURN = "HOTUPGRADE_RETURN(state) { *(long *)old_object = *(const long *)new_object; return old_size > new_size; }\n"
AFTER = "HOTUPGRADE_AFTER() { return 0; }\n"


def built(compiler: Compiler, old: str, new: str) -> tuple[Build, Build]:
    return compiler.build(old, "-g", INCLUDE), compiler.build(new, "-g", INCLUDE)


def codes(old: Build, new: Build) -> set[str]:
    refusals, _ = verdict([Image(old, BASE)], 0, new, [compare(old, new)], PlanOptions())
    return {reason.code for reason in refusals}


def reasons(old: Build, new: Build) -> dict[str, Reason]:
    refusals, _ = verdict([Image(old, BASE)], 0, new, [compare(old, new)], PlanOptions())
    return {reason.code: reason for reason in refusals if "migration" in reason.code or "hook" in reason.code}


def test_hooks_are_found_by_name(compiler: Compiler) -> None:
    old, new = built(compiler, OLD % "static", NEW % "static")
    assert claimed_objects(new) == ["state"]
    assert claimed_objects(old) == []
    assert claimed_types(old, new) == {"s"}
    assert claimed_types(new, new) == frozenset(), "a claim is for the builds that do not know of it"
    assert hook(new, "hotupgrade_after") is None
    assert hook(new, "get") == new.by_name["get"]
    assert hook(new, "hotupgrade_type__s") is None, "that is no function"


def test_a_migrated_object_is_new_and_who_names_it_changed(compiler: Compiler) -> None:
    old, new = built(compiler, OLD % "static", NEW % "static")
    ((before, after),) = migrated_pairs(old, new)
    assert (old.entities.names[before], new.entities.names[after]) == ("state", "state")
    comparison = compare(old, new)
    assert comparison.old_of[after] == -1
    assert comparison.replaced[new.by_name["get"]]
    assert comparison.same[new.by_name["other"]]
    assert reasons(old, new) == {}


def test_a_hook_that_both_builds_have_counts_only_for_another_size(compiler: Compiler) -> None:
    third = (NEW % "static").replace("x * 3", "x * 4")
    _, second = built(compiler, OLD % "static", NEW % "static")
    assert migrated_pairs(second, compiler.build(third, "-g", INCLUDE)) == []
    larger = (NEW % "static").replace("long a, b;", "long a, b, c;")
    assert len(migrated_pairs(second, compiler.build(larger, "-g", INCLUDE))) == 1


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (OLD % "", NEW % "", "migration-exported"),
        (OLD % "static __thread", NEW % "static __thread", "migration-thread-local"),
        (
            OLD % "static" + "struct s *keeper = &state;",
            NEW % "static" + "struct s *keeper = &state;",
            "migration-held",
        ),
        (OLD % "static", NEW % "static" + "HOTUPGRADE_MIGRATE(nothing) { return 0; }", "migration-ambiguous"),
        (OLD % "static", NEW % "static" + AFTER, "hook-no-way-back"),
        (OLD % "static", NEW % "static" + RETURN + "HOTUPGRADE_SYNC() { return 0; }" + AFTER, "hook-no-way-back"),
    ],
    ids=["exported", "thread-local", "held", "ambiguous", "after-one-way", "sync-one-way"],
)
def test_what_a_hook_cannot_do(compiler: Compiler, old: str, new: str, code: str) -> None:
    found = reasons(*built(compiler, old, new))
    assert set(found) == {code}


def test_a_way_back_for_everything(compiler: Compiler) -> None:
    assert reasons(*built(compiler, OLD % "static", NEW % "static" + RETURN + AFTER)) == {}


COROUTINE = """
#include <coroutine>
struct task {
    struct promise_type {
        task get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
        std::suspend_always initial_suspend() { return {}; }
        std::suspend_always final_suspend() noexcept { return {}; }
        void return_void() {}
        void unhandled_exception() {}
    };
    std::coroutine_handle<promise_type> handle;
};
extern "C" __attribute__((noipa)) int use(int x) { return x * %d; }
task turns(int count) { for (int i = 0; i < count; i++) { use(i * %d); co_await std::suspend_always{}; } }
"""


def test_a_coroutine_that_changed_is_refused(compiler: Compiler) -> None:
    def library(*values: int) -> Build:
        return compiler.build({"module.cc": COROUTINE % values}, "-std=c++20")

    old = library(1, 1)
    assert "coroutine-changed" in codes(old, library(1, 2))
    assert "coroutine-changed" not in codes(old, library(2, 1)), "only what it calls has changed"
