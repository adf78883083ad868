"""Loops that were compiled with a safe point (``hotupgrade.h``): they need no profile."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Flags, Kind, TargetKind
from hotupgrade.errors import Reason
from hotupgrade.plan.loops.code import Code, Functions
from hotupgrade.plan.loops.sites import OldLoop
from hotupgrade.plan.model import Comparison

FLAG = "hotupgrade_safe_point"
FLAG_SIZE = 4
#: A variable of a function: gcc numbers it, clang puts the function before it, C++ both in a way of its own.
_FLAG_NAME = re.compile(rf"(?:\A|.\.|\A_ZZ.+E{len(FLAG)}|\A_ZL{len(FLAG)}){FLAG}(?:_\d+|__\d+_)?(?:\.\d+)?\Z")


@dataclass(frozen=True)
class SafePoint:
    """A loop that looks at a flag, in every build that has it."""

    function: str
    old: tuple[OldLoop, ...]
    new: Code
    flag: str
    flag_vaddr: int  # in the new build
    changed: bool
    faults: tuple[Reason, ...] = ()


def functions_with_safe_points(build: Build) -> set[str]:
    """Names of the functions whose code looks at a safe point's flag."""
    return {name for row in _users(build) for name in build.entities.aliases[row]}


def safe_points(
    functions: Sequence[Functions],
    new: Functions,
    holding: Sequence[Flags],
    comparisons: Sequence[Comparison],
    profiled: Collection[str],
) -> Iterator[SafePoint]:
    """Loops with a safe point that are replaced in some image, and those that look at the same flag as one of them."""
    after = _users(new.build)
    before = [_users(old.build) for old in functions] if after else []
    found: list[SafePoint] = []
    for row, flags in sorted(after.items()):
        name = new.build.entities.names[row]
        if name in profiled or not new.build.taken[row]:
            continue
        old = _old(functions, holding, comparisons, row)
        # A loop that had none before has no door: who stands in it is found later, and refused.
        if not old or not all(loop.code.row in before[loop.image] for loop in old):
            continue
        faults = _faults(name, old, before, min(flags), len(flags))
        changed = any(loop.comparison.old_replaced[loop.code.row] for loop in old)
        entities = new.build.entities
        flag = min(flags)
        found.append(
            SafePoint(
                name, old, new.code(row), entities.names[flag], int(entities.address[flag]), changed, tuple(faults)
            )
        )
    shared = {point.flag_vaddr for point in found if point.changed}
    yield from (point for point in found if point.flag_vaddr in shared)


def _users(build: Build) -> dict[int, set[int]]:
    """Functions to the flags that their code looks at."""
    entities, references = build.entities, build.references
    flags = {
        row
        for row in np.flatnonzero(entities.kind == Kind.OBJECT).tolist()
        if any(FLAG in alias and _FLAG_NAME.search(alias) for alias in entities.aliases[row])
    }
    found: dict[int, set[int]] = defaultdict(set)
    if not flags:
        return found
    named = (references.target_kind == TargetKind.ENTITY) & np.isin(references.entity, sorted(flags))
    for index in np.flatnonzero(named & (references.function >= 0)).tolist():
        found[int(references.function[index])].add(int(references.entity[index]))
    return found


def _old(
    functions: Sequence[Functions], holding: Sequence[Flags], comparisons: Sequence[Comparison], new_row: int
) -> tuple[OldLoop, ...]:
    found = []
    for image, (old, held, comparison) in enumerate(zip(functions, holding, comparisons, strict=True)):
        row = int(comparison.old_of[new_row])
        if row >= 0 and held[row]:
            found.append(OldLoop(image, old.code(row), comparison))
    return tuple(found)


def _faults(
    name: str, old: Sequence[OldLoop], before: Sequence[dict[int, set[int]]], flag: int, count: int
) -> Iterator[Reason]:
    new = old[0].comparison.new
    sizes = {int(new.entities.size[flag])}
    for loop in old:
        flags = before[loop.image][loop.code.row]
        count = max(count, len(flags))
        sizes |= {int(loop.code.build.entities.size[row]) for row in flags}
        if {int(loop.comparison.new_of[row]) for row in flags} != {flag}:
            text = (
                f"{name} changed, and it cannot be told that the flag of its safe point is the same variable in"
                f" {loop.code.build.label} and in {new.label}; keep the file and the function that hold it"
            )
            yield Reason("loop-profile-mismatch", name, text)
    if count > 1:
        text = f"{name} changed, and it has {count} safe points with flags of their own; use one per loop"
        yield Reason("loop-profile-mismatch", name, text)
    if sizes != {FLAG_SIZE}:
        text = f"{name} changed, and the flag of its safe point does not have {FLAG_SIZE} bytes; include hotupgrade.h"
        yield Reason("loop-profile-mismatch", name, text)
