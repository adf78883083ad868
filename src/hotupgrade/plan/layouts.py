"""Types of both builds, compared: whether new code understands what old code left in memory.

Every type with a name counts that both builds define, for a process may hold an object of it anywhere: the heap is
reached through casts, and nobody can list what is there.  A type is left out only if it is proven that no old object
of it can be alive (:mod:`hotupgrade.plan.lifetimes`), or if the operator brings a migration for it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.debug.model import ATOMIC, Debug, Definition, names_in, plain, without_atomics
from hotupgrade.binary.model import Flags, Kind
from hotupgrade.errors import Reason
from hotupgrade.plan.case import Case
from hotupgrade.plan.copies import startup
from hotupgrade.plan.fields import LISTED, added_enumerators, changed_enumerators, difference, listed
from hotupgrade.plan.homes import NEW
from hotupgrade.plan.lifetimes import short_lived
from hotupgrade.plan.scopes import variables_of

_START_FILES = ("crtstuff.c",)
_MERGED = ("<artificial>", "ld-temp.o")  # what gcc and LLVM call all that was optimised at link time

# What the linker takes from libc_nonshared.a and libgcc.a knows no types of the program.
_TOOLCHAIN = re.compile(r"__.*|atexit|at_quick_exit|pthread_atfork")


@dataclass(frozen=True)
class Change:
    """One type that both builds define differently, in some files (none named: in all)."""

    name: str
    files: tuple[str, ...]
    old: Definition
    new: Definition

    @property
    def subject(self) -> str:
        return f"{self.name} ({', '.join(self.files[:LISTED])})" if self.files else self.name


def layout_reasons(case: Case, exempt: Collection[str] = frozenset()) -> list[Reason]:
    """Why new code would misread what the process holds.

    ``exempt`` names types (``struct conn`` or ``conn``), variables and enumerators for which a migration is given.
    """
    if case.nothing_changes:
        return []
    absent = [] if case.options.trust_layout else [*_missing(case), *_holes(case)]
    return [*absent, *_types(case, exempt), *_constants(case, exempt), *_variables(case, exempt)]


def layout_notes(case: Case) -> Iterator[Reason]:
    if case.nothing_changes:
        return
    for reason in [*_missing(case), *_holes(case)] if case.options.trust_layout else ():
        text = f"{reason.text.partition(';')[0]}; that types are the same was not compared but taken on trust"
        yield Reason("layout-trusted", reason.subject, text)
    yield from _harmless(case)


def compared_types(old: Debug, new: Debug) -> int:
    """How many types were compared."""
    return len(old.types.keys() & new.types.keys())


# Where nothing can be compared


def _missing(case: Case) -> Iterator[Reason]:
    for build in dict.fromkeys((case.running.old, case.new)):
        if build.debug.missing:
            text = (
                f"{build.label}: {build.debug.missing}; so nobody can tell whether types are the same in both builds:"
                " build with -g, or say --trust-layout if you know that they are"
            )
            yield Reason("no-debug-information", build.label, text)
            yield from build.separate.problems


def _holes(case: Case) -> Iterator[Reason]:
    """What changes hands, or stays, though part of a build was compiled without debug information."""
    old, new = case.running.old, case.new
    if old.debug.missing or new.debug.missing:
        return
    replaced = case.running.old_replaced & (old.entities.kind == Kind.FUNCTION) & ~startup(old)
    names = [*_uncovered(old, replaced), *_uncovered(new, case.selection.needed)]
    kept = (case.homes.owner != NEW) & np.isin(new.entities.kind, (Kind.OBJECT, Kind.TLS)) & case.used
    names += [case.described(row) for row in np.flatnonzero(kept).tolist() if not _known_file(new, row)]
    for name in dict.fromkeys(names):
        text = (
            f"{name} was compiled without debug information, unlike the rest; so nobody can tell which types it uses:"
            " compile it with -g, or say --trust-layout if you know that they are the same in both builds"
        )
        yield Reason("no-debug-information", name, text)


def _uncovered(build: Build, functions: Flags) -> list[str]:
    rows = np.flatnonzero(functions)
    ranges = np.array(build.debug.covered, np.int64).reshape(-1, 2)
    address = build.entities.address[rows].astype(np.int64)
    place = np.searchsorted(ranges[:, 0], address, side="right") - 1
    inside = (place >= 0) & (address < np.append(ranges[:, 1], 0)[place])
    names, exported = build.entities.names, build.entities.exported
    outside = rows[~inside].tolist()
    return [names[row] for row in outside if exported[row] or not _TOOLCHAIN.fullmatch(names[row])]


def _known_file(build: Build, row: int) -> bool:
    """Whether the file of a local variable has debug information; of a global one it is not known."""
    file = build.entities.files[row].rsplit("/", 1)[-1]
    return not file or file in build.debug.files or file in _START_FILES or file.startswith(_MERGED)


# Types with a name


def changes(old: Debug, new: Debug) -> list[Change]:
    """All types that both define, and that differ; by name."""
    found: list[Change] = []
    for name, ours in old.types.items():
        theirs = new.types.get(name)
        if theirs is None:
            found += _renamed(name, old, new)
            continue
        if len(ours) == 1 == len(theirs):
            before, after = old.definitions[ours[0][0]], new.definitions[theirs[0][0]]
            if before != after and not _differ_in_atomics(before, after, old, new):
                found.append(Change(name, (), before, after))
        else:
            found += _by_file(name, old, new)
    return sorted(found, key=lambda change: change.name)


def _renamed(name: str, old: Debug, new: Debug) -> list[Change]:
    """A type that is not there by its name, but by another: a typedef of it, or its tag as another kind of type."""
    kind, _, tag = name.partition(" ")
    others = {f"{other} {tag}" for other in ("struct", "union", "enum") if tag and other != kind}
    names = [name] if not tag else [typedef for typedef, targets in old.typedefs.items() if name in targets]
    for typedef in names:
        others |= {typedef, *new.typedefs.get(typedef, ())}
    before = [old.definitions[index] for index, _ in old.types[name]]
    found = []
    for other in sorted(others & new.types.keys()):
        after = [new.definitions[index] for index, _ in new.types[other]]
        if not any(known in after for known in before):
            found.append(Change(name, (), before[0], after[0]))
    return found[:1]


def _by_file(name: str, old: Debug, new: Debug) -> list[Change]:
    """Files may each have a private type of this name."""
    ours, theirs = _definitions(old, name), _definitions(new, name)
    files = sorted(ours.keys() & theirs.keys())
    if not files or "" in ours or "" in theirs:  # it moved, or one of the two does not say where it belongs
        ours = {"": set().union(*ours.values())}
        theirs = {"": set().union(*theirs.values())}
        files = [""]
    found: dict[tuple[Definition, Definition], list[str]] = defaultdict(list)
    for file in files:
        gone, fresh = sorted(ours[file] - theirs[file], key=repr), sorted(theirs[file] - ours[file], key=repr)
        for before, after in zip(gone, fresh, strict=False):
            if _differ_in_atomics(before, after, old, new):
                continue
            found[before, after].append(file)
    return [Change(name, tuple(file for file in where if file), *pair) for pair, where in found.items()]


def _differ_in_atomics(before: Definition, after: Definition, old: Debug, new: Debug) -> bool:
    """Whether the only difference is one that one of the two has no way to tell."""
    return not (old.atomics and new.atomics) and without_atomics(before) == without_atomics(after)


def _definitions(debug: Debug, name: str) -> dict[str, set[Definition]]:
    found: dict[str, set[Definition]] = defaultdict(set)
    for index, files in debug.types[name]:
        for file in files:
            found[debug.files[file]].add(debug.definitions[index])
    return found


def _types(case: Case, exempt: Collection[str]) -> Iterator[Reason]:
    found = [change for change in _all_changes(case) if not _is_exempt(change.name, exempt)]
    gone = _gone(case, found)
    for change in found:
        if change.name not in gone:
            yield from _reasons(change, case)


def _gone(case: Case, found: Sequence[Change]) -> frozenset[str]:
    """Types of which no old object can be alive; it takes a while to find out, so only what differs is asked."""
    return short_lived(case.comparisons, {change.name for change in found}) if found else frozenset()


def _all_changes(case: Case) -> list[Change]:
    """Against the running build; for types that it does not have, against the earlier ones, whose objects may live."""
    running, new = case.running.old.debug, case.new.debug
    found = changes(running, new)
    for image in case.images:
        earlier = image.build.debug
        if image.build is case.running.old or earlier.missing:
            continue
        found += [change for change in changes(earlier, new) if change.name not in running.types]
    return found


def _is_exempt(name: str, exempt: Collection[str]) -> bool:
    return name in exempt or name.partition(" ")[2] in exempt


def _reasons(change: Change, case: Case) -> Iterator[Reason]:
    old, new = change.old, change.new
    if old.kind == "enum" == new.kind:
        if renumbered := changed_enumerators(old, new):
            text = (
                f"{change.subject}: {', '.join(listed(renumbered))}; old objects hold the old numbers, which the new"
                " code would take for something else"
            )
            yield Reason("enumerator-changed", change.name, text)
        if old.size == new.size:
            return
    holders = _holders(change, case)
    text = (
        f"{change.subject}: {difference(old, new)}; objects of this type may be alive"
        f"{f' ({holders})' if holders else ''}, and a running process cannot give them another layout:"
        " restart, or bring a migration"
    )
    yield Reason("type-changed", change.name, text)


def _holders(change: Change, case: Case) -> str:
    """Static objects that hold or lead to one."""
    names = sorted({v.name for v in case.running.old.debug.variables if change.name in names_in(v.text)})
    return f"{', '.join(listed(names))}" if names else ""


def _harmless(case: Case) -> Iterator[Reason]:
    found = changes(case.running.old.debug, case.new.debug)
    gone = _gone(case, found)
    for change in found:
        if change.name in gone:
            text = (
                f"{change.subject}: {difference(change.old, change.new)}; all objects of it live on the stacks of"
                " functions that are replaced, so none is alive at the commit"
            )
            yield Reason("type-changed-unused", change.name, text)
        added = added_enumerators(change.old, change.new)
        if change.old.kind == "enum" and added and not changed_enumerators(change.old, change.new):
            text = (
                f"{change.subject} has new enumerators ({', '.join(listed(added))}); the old ones keep their numbers"
                " (after a rollback, old code would meet the new ones)"
            )
            yield Reason("enumerator-added", change.name, text)
    for name, alone, before, after in _changed_constants(case):
        if alone:
            text = f"{name} is {after} and was {before}; what was computed from it in the running process stays"
            yield Reason("constant-changed", name, text)


# Enumerators of enumerations without a name


def _constants(case: Case, exempt: Collection[str]) -> Iterator[Reason]:
    for name, alone, before, after in _changed_constants(case):
        if not alone and name not in exempt:
            text = (
                f"{name} {before} → {after}: old objects may hold the old number, which the new code would take for"
                " something else"
            )
            yield Reason("enumerator-changed", name, text)


def _changed_constants(case: Case) -> Iterator[tuple[str, bool, str, str]]:
    """(name, whether it is the only one of its enumeration and so a mere number, old value, new value)."""
    if case.running.old.debug.constants == case.new.debug.constants:
        return
    old, new = _values(case.running.old.debug), _values(case.new.debug)
    seen: set[str] = set()
    for (name, file), (alone, before) in old.items():
        if name in seen or (name, file) not in new:
            continue
        also_alone, after = new[name, file]
        gone, fresh = before - after, after - before
        if gone and fresh:
            seen.add(name)
            yield name, alone and also_alone, _numbers(gone), _numbers(fresh)


def _values(debug: Debug) -> dict[tuple[str, str], tuple[bool, set[int]]]:
    found: dict[tuple[str, str], tuple[bool, set[int]]] = {}
    for name, file, alone, values in debug.constants:
        also_alone, others = found.get((name, file), (True, set()))
        found[name, file] = alone and also_alone, others | set(values)
    return found


def _numbers(values: set[int]) -> str:
    return " or ".join(map(str, sorted(values)))


# Variables that stay


def _variables(case: Case, exempt: Collection[str]) -> Iterator[Reason]:
    """Kept variables whose own type is another.  (Another size is refused elsewhere, with or without debug
    information; a change within a type with a name is reported for that type.)"""
    known = _Texts(case)
    kinds, homes = case.new.entities.kind, case.homes
    kept = (homes.owner != NEW) & np.isin(kinds, (Kind.OBJECT, Kind.TLS))
    kept &= case.used | case.new.entities.exported
    for row in np.flatnonzero(kept).tolist():
        name = case.name(row)
        build, partner = _before(case, row)
        before, after = known.of(build, partner), known.of(case.new, row)
        if not before or not after or before == after or name in exempt:
            continue
        if int(build.entities.size[partner]) != int(case.new.entities.size[row]):
            continue
        text = (
            f"{case.described(row)} holds state and its type changed: {_either(before)} → {_either(after)}; the new"
            " code would misread it"
        )
        yield Reason("object-retyped", name, text)


def _before(case: Case, row: int) -> tuple[Build, int]:
    """The variable in the running build; if that lacks it, in the build that first had it."""
    running = int(case.running.old_of[row])
    if running >= 0:
        return case.running.old, running
    return case.images[int(case.homes.owner[row])].build, int(case.homes.partner[row])


class _Texts:
    """Row to the texts of the variable there, read once for each build."""

    def __init__(self, case: Case) -> None:
        self._atomics = case.running.old.debug.atomics and case.new.debug.atomics
        self._tables = {id(build): _texts(build) for build in (case.running.old, case.new)}

    def of(self, build: Build, row: int) -> frozenset[str]:
        if id(build) not in self._tables:
            self._tables[id(build)] = _texts(build)
        found = self._tables[id(build)].get(row, frozenset())
        return found if self._atomics else frozenset(text.replace(ATOMIC, "") for text in found)


def _texts(build: Build) -> dict[int, frozenset[str]]:
    return {
        row: frozenset(f"{v.text} {v.part}".rstrip() for v in variables)
        for row, variables in variables_of(build).items()
    }


def _either(texts: frozenset[str]) -> str:
    return " or ".join(plain(text) for text in sorted(texts))
