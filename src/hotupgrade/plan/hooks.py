"""The hooks of one upgrade: why they cannot be used, and the calls that they come to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Kind
from hotupgrade.errors import Reason
from hotupgrade.plan.case import Case
from hotupgrade.plan.homes import NEW
from hotupgrade.plan.migrations import (
    AFTER,
    BEFORE,
    CANCEL,
    MIGRATE,
    RETURN,
    SYNC,
    SYNC_BACK,
    claimed_objects,
    hook,
    migrated_pairs,
    variables,
)
from hotupgrade.plan.model import Call, Hooks, Image


def migration_reasons(case: Case) -> Iterator[Reason]:
    """Hooks that cannot do what their names promise."""
    if case.nothing_changes:
        return
    old, new = case.running.old, case.new
    for name in claimed_objects(new):
        rows = variables(new, name)
        before = variables(old, name)
        if len(rows) != 1 or len(before) > 1:
            found = "no variable" if not rows else f"{max(len(rows), len(before))} variables"
            text = f"{MIGRATE}{name}() is to migrate {name}, but there are {found} of that name; rename what is meant"
            yield Reason("migration-ambiguous", name, text)
        elif before and (before[0], rows[0]) in migrated_pairs(old, new):
            yield from _unmovable(case, name, before[0], rows[0])
    may_fail = hook(new, AFTER) is not None or any(case.homes.owner[row] == NEW for row in _constructors(case))
    if may_fail and (one_way := _one_way(new)):
        text = (
            f"the new build is to run more code after the commit ({AFTER}() or a constructor); should that fail, the"
            f" upgrade is taken back, but {one_way}() has no counterpart for the way back (HOTUPGRADE_RETURN,"
            " HOTUPGRADE_SYNC_BACK)"
        )
        yield Reason("hook-no-way-back", one_way, text)


def _unmovable(case: Case, name: str, before: int, row: int) -> Iterator[Reason]:
    entities = case.new.entities
    if int(entities.kind[row]) == Kind.TLS:
        text = f"{name} is thread-local: every thread has one, and a hook is called for one object only"
        yield Reason("migration-thread-local", name, text)
    elif entities.exported[row] or case.running.old.entities.exported[before]:
        text = f"{name} is exported: other modules know its address, and would go on using the old object"
        yield Reason("migration-exported", name, text)
    else:
        targets = case.targets
        holders = targets.container[(targets.row == row) & (targets.container >= 0)]
        kept = (entities.kind[holders] == Kind.OBJECT) & (case.homes.owner[holders] != NEW)
        for holder in np.unique(holders[kept]).tolist():
            text = (
                f"the variable {case.described(holder)} holds the address of {name} and would go on pointing to the"
                " old object"
            )
            yield Reason("migration-held", name, text)


def _constructors(case: Case) -> Iterator[int]:
    for vaddr in case.new.init_array:
        row, addend = case.targets.rows.one_at(vaddr)
        if row >= 0 and not addend:
            yield row


def _one_way(build: Build) -> str:
    """The first hook that changes state and has no counterpart for the way back; "" if there is none."""
    for name in claimed_objects(build):
        if hook(build, RETURN + name) is None:
            return MIGRATE + name
    return SYNC if hook(build, SYNC) is not None and hook(build, SYNC_BACK) is None else ""


# The calls


def plan_hooks(case: Case, code: Sequence[int], address: Sequence[int]) -> Hooks:
    """The calls of an upgrade, and of its rollback.

    Args:
        code: where each row of the new build runs, absolute.
        address: where each row of the new build lives, absolute.
    """
    new = case.new
    if case.nothing_changes:
        return Hooks()

    def calls(*names: str) -> tuple[Call, ...]:
        rows = [(name, hook(new, name)) for name in names]
        return tuple(Call(int(code[row]), name) for name, row in rows if row is not None)

    forth: list[Call] = []
    back: list[Call] = []
    one_way = ""
    for name in claimed_objects(new):
        rows, here = variables(new, name), _lives_at(case.images[: case.current + 1], name)
        if len(rows) != 1 or here is None or here[0] == int(address[rows[0]]):
            continue
        old_at, old_size = here
        new_at, new_size = int(address[rows[0]]), int(new.entities.size[rows[0]])
        forth += (Call(c.address, c.name, (old_at, old_size, new_at, new_size)) for c in calls(MIGRATE + name))
        back += (Call(c.address, c.name, (new_at, new_size, old_at, old_size)) for c in calls(RETURN + name))
        one_way = one_way or ("" if calls(RETURN + name) else MIGRATE + name)
    if calls(SYNC) and not calls(SYNC_BACK):
        one_way = one_way or SYNC
    return Hooks(
        before=calls(BEFORE),
        sync=(*forth, *calls(SYNC)),
        after=calls(AFTER),
        cancel=calls(CANCEL),
        back=(*calls(SYNC_BACK), *back),
        one_way=one_way,
    )


def _lives_at(images: Sequence[Image], name: str) -> tuple[int, int] | None:
    """Address and size of a variable of the build in force (the last of the images)."""
    running = images[-1].build
    rows = variables(running, name)
    if len(rows) != 1:
        return None
    size = int(running.entities.size[rows[0]])
    for index, image in enumerate(images):
        candidates = variables(image.build, name)
        if len(candidates) != 1 or (index and candidates[0] not in image.owned):
            continue
        moved = image.build is not running and (candidates[0], rows[0]) in migrated_pairs(image.build, running)
        if not moved and int(image.build.entities.size[candidates[0]]) == size:
            return image.base + int(image.build.entities.address[candidates[0]]), size
    return None
