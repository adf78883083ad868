"""Variables that LLVM keeps in parts, or shortens: what is where, debug information tells and names do not."""

from __future__ import annotations

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.binary.debug.model import Variable
from hotupgrade.plan.compare import compare
from hotupgrade.plan.model import Image
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.verdict import verdict
from unit.conftest import Compiler

# Only members that are in use have a place: "state.0", "state.1", ... in their order.
SPLIT = """
static struct { long %s a, b, c; } state;
long first(long x) { return state.a += x * %d; }
long third(long x) { return state.c += x; }
"""
SECOND = "long second(long x) { return state.b += x; }\n"
FRONT = "long front(long x) { return state.front += x; }\n"
# Only ever nought or one other value: a byte that says which.
ONCE = """
static long chosen;
long choose(long x) { if (x) { chosen = %d; } return x + %d; }
long get(void) { return chosen; }
"""


def opened(compiler: Compiler, text: str) -> Build:
    return Build.open(compiler.file(text, "-g", driver="clang"))


def variables(build: Build) -> dict[str, Variable]:
    """By the symbol that is at a variable's place."""
    at = dict(zip(build.entities.address.tolist(), build.entities.names, strict=True))
    return {at[variable.address]: variable for variable in build.debug.variables}


def test_parts_of_a_structure(compiler: Compiler) -> None:
    found = variables(opened(compiler, SPLIT % ("", 1)))
    assert {name: variable.part for name, variable in found.items()} == {"state.0": "[0:8]", "state.1": "[16:24]"}


def test_a_value_that_fits_in_a_byte(compiler: Compiler) -> None:
    five, seven = (variables(opened(compiler, ONCE % (value, value)))["chosen"].part for value in (5, 7))
    assert five.startswith("as ")
    assert five != seven


def refusals(old: Build, new: Build) -> set[tuple[str, str]]:
    found, _ = verdict([Image(old, 0x7F0000000000)], 0, new, [compare(old, new)], PlanOptions())
    return {(reason.code, reason.subject) for reason in found}


def test_parts_are_paired_by_who_uses_them(compiler: Compiler) -> None:
    """ "state.1" was the third member, and is the second in the new build."""
    old, new = opened(compiler, SPLIT % ("", 1)), opened(compiler, SPLIT % ("", 1) + SECOND)
    found = compare(old, new)
    pairs = {
        old.entities.names[row]: new.entities.names[partner]
        for row, partner in enumerate(found.new_of.tolist())
        if partner >= 0 and old.entities.names[row].startswith("state")
    }
    assert pairs == {"state.0": "state.0", "state.1": "state.2"}
    assert refusals(old, new) == set()


@pytest.mark.parametrize("case", ["another member in front", "another value"])
def test_what_the_same_bytes_mean_now(compiler: Compiler, case: str) -> None:
    """Sizes and names are equal, and yet the new code would misread what is there."""
    if case == "another value":
        old, new, name = opened(compiler, ONCE % (5, 5)), opened(compiler, ONCE % (7, 7)), "chosen"
    else:
        old, new = (opened(compiler, text) for text in (SPLIT % ("", 1), SPLIT % ("front, ", 2) + FRONT))
        name = "state.1"
    assert ("object-retyped", name) in refusals(old, new)
