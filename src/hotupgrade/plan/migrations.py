"""What a new build brings along to bring old state into its own form: hooks, found by name.

The names are those of ``include/hotupgrade.h``.  A static object with a hook of its own is taken for a new object: it
gets a place in the new image, every function that names it runs from there, and the hook fills it from the old one.
"""

from __future__ import annotations

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Flags, Kind

MIGRATE, RETURN, TYPE = "hotupgrade_migrate__", "hotupgrade_return__", "hotupgrade_type__"
BEFORE, SYNC, AFTER = "hotupgrade_before", "hotupgrade_sync", "hotupgrade_after"
CANCEL, SYNC_BACK = "hotupgrade_cancel", "hotupgrade_sync_back"
_NAMES = (BEFORE, SYNC, AFTER, CANCEL, SYNC_BACK)


def hook(build: Build, name: str) -> int | None:
    """The row of an exported function, if the build has it."""
    row = build.by_name.get(name)
    return row if row is not None and int(build.entities.kind[row]) == Kind.FUNCTION else None


def hooks(build: Build) -> Flags:
    """Rows of all hooks: they always run from the image of their own build."""
    flags = np.zeros(len(build.entities), np.bool_)
    for name, row in build.by_name.items():
        if name in _NAMES or name.startswith((MIGRATE, RETURN)):
            flags[row] = int(build.entities.kind[row]) == Kind.FUNCTION
    return flags


def migrated_pairs(old: Build, new: Build) -> list[tuple[int, int]]:
    """(old row, new row) of the objects that do not keep their place from one build to the other.

    A build goes on bringing its hooks when the change that they are for is long past: a hook that both builds have
    counts only if the object's size differs.
    """
    found = []
    for name in claimed_objects(new):
        ours, theirs = variables(old, name), variables(new, name)
        if len(ours) == 1 == len(theirs):
            known = hook(old, MIGRATE + name) is not None
            if not known or old.entities.size[ours[0]] != new.entities.size[theirs[0]]:
                found.append((ours[0], theirs[0]))
    return found


def claimed_objects(build: Build) -> list[str]:
    """Names of the objects for which a build brings a hook."""
    return sorted(name[len(MIGRATE) :] for name in build.by_name if name.startswith(MIGRATE) and hook(build, name))


def claimed_types(old: Build, new: Build) -> frozenset[str]:
    """Names of the types whose old instances the new build's hooks deal with."""
    return frozenset(name[len(TYPE) :] for name in new.by_name if name.startswith(TYPE) and name not in old.by_name)


def variables(build: Build, name: str) -> list[int]:
    """Rows of the variables of this name."""
    return [
        row
        for row, (found, kind) in enumerate(zip(build.entities.names, build.entities.kind.tolist(), strict=True))
        if found == name and kind in (Kind.OBJECT, Kind.TLS)
    ]
