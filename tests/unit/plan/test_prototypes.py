"""Prototypes of changed functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.binary.debug.model import Debug
from hotupgrade.plan.compare import compare
from hotupgrade.plan.prototypes import changed_prototypes, prototype_reasons
from unit.conftest import Compiler

TEXT = """
struct key;
{function} {{ return x * 1000003 + {n}; }}
__attribute__((noinline)) static int own({own}) {{ return x * 1000033 + {n}; }}
int uses(int x) {{ return own(x) + {n}; }}
"""


def build(compiler: Compiler, n: int, function: str = "int f(int x)", own: str = "int x", *flags: str) -> Build:
    return compiler.build(TEXT.format(function=function, own=own, n=n), "-g", *flags)


def changed(old: Build, new: Build) -> dict[str, str]:
    return {found.name: str(found) for found in changed_prototypes(compare(old, new))}


CHANGES = {
    "int f(int x, int y)": "f: (int32) -> int32 becomes (int32, int32) -> int32",
    "long f(int x)": "f: (int32) -> int32 becomes (int32) -> int64",
    "int f(unsigned x)": "f: (int32) -> int32 becomes (uint32) -> int32",
    "int f(int x, struct key *k)": "f: (int32) -> int32 becomes (int32, struct key *) -> int32",
    "int f(int x, ...)": "f: (int32) -> int32 becomes (int32, ...) -> int32",
}


@pytest.mark.parametrize("function", CHANGES)
def test_a_changed_prototype(compiler: Compiler, function: str) -> None:
    assert changed(build(compiler, 1), build(compiler, 2, function)) == {"f": CHANGES[function]}


@pytest.mark.parametrize("function", ["int f(const int x)", "int f(int renamed __attribute__((unused)), int x)"])
def test_what_is_no_change(compiler: Compiler, function: str) -> None:
    old = build(compiler, 1, function.replace("const ", ""))
    assert changed(old, build(compiler, 2, function)) == {}


def test_a_function_that_did_not_change_is_not_asked(compiler: Compiler) -> None:
    """The same instructions serve both prototypes."""
    old, new = (build(compiler, 1, f"{kind} f({kind} x)", "int x") for kind in ("int", "unsigned"))
    assert changed(old, new) == {}


def test_clones_of_the_compiler(compiler: Compiler) -> None:
    """isra and constprop take parameters away; the source's prototype is what counts."""
    old, new = build(compiler, 1), build(compiler, 2, own="int x, ...")
    assert set(changed(old, new)) <= {name for name in new.entities.names if name.startswith("own")}
    assert len(changed(old, new)) == 1


@pytest.mark.parametrize("imports", [True, False])
def test_who_calls_it(compiler: Compiler, imports: bool) -> None:
    comparison = compare(build(compiler, 1), build(compiler, 2, "int f(int x, int y)"))

    def reasons(upgraded: Mapping[str, Debug], imports: bool = imports) -> list[tuple[str, str]]:
        importers: dict[str, Callable[[str], bool]] = {"libother": lambda name: imports and name == "f"}
        return [(r.code, r.subject) for r in prototype_reasons(comparison, importers, upgraded)]

    assert reasons({}) == ([("prototype-changed", "f")] if imports else [])
    assert reasons({"libother": Debug(imports={"f": ["(int32) -> int32"]})}) == reasons({})
    assert reasons({"libother": Debug(imports={"f": ["(int32, int32) -> int32"]})}) == []
    assert reasons({"libother": Debug(missing="it has none")}) == reasons({})
