"""Every reason why a new build cannot take over, by stable code and with the culprit's name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import THREAD_LOCAL_FORMS, Form, Kind, References, TargetKind
from hotupgrade.binary.relocations import Relocation
from hotupgrade.errors import Reason
from hotupgrade.plan import tls
from hotupgrade.plan.case import Case
from hotupgrade.plan.copies import unclear_code
from hotupgrade.plan.edits import entries_without_room
from hotupgrade.plan.homes import NEW, Rehomed
from hotupgrade.plan.hooks import migration_reasons
from hotupgrade.plan.layouts import layout_reasons
from hotupgrade.plan.migrations import claimed_objects, claimed_types
from hotupgrade.plan.pieces import rows_named
from hotupgrade.plan.select import DATA
from hotupgrade.plan.stem import stem_of
from hotupgrade.plan.unproven import unproven_reasons

IDENTITY = ("alias-split", "variables-merged")

_LISTED = 4  # names that a message lists before it says "and N more"
_STT_GNU_IFUNC = 10


def refusals(case: Case, exempt: Collection[str] = frozenset()) -> list[Reason]:
    """``exempt``: names of types and variables that are taken care of, besides those that hooks are for."""
    checks = (
        _text_relocations,
        _unclear_code,
        _inseparable,
        _unproven,
        _identities,
        _storage,
        _resized,
        _rehomed,
        _thread_locals,
        _short_functions,
        _coroutines,
        _boundaries,
        _outside,
        _labels_in_variables,
        _new_ifuncs,
        unproven_reasons,
        migration_reasons,
    )
    found: dict[tuple[str, str], Reason] = {}
    for check in checks:
        for reason in check(case):
            found.setdefault((reason.code, reason.subject), reason)
    claimed = claimed_types(case.running.old, case.new).union(claimed_objects(case.new))
    for reason in layout_reasons(case, claimed.union(exempt)):
        found.setdefault((reason.code, reason.subject), reason)
    return list(found.values())


# Code


def _text_relocations(case: Case) -> Iterator[Reason]:
    for build in (case.images[0].build, case.new):
        if build.text_relocations:
            text = f"{build.label} has relocations in its code; build it as position-independent code"
            yield Reason("text-relocations", build.label, text)


_ADVICE_UBSAN = (
    "UndefinedBehaviorSanitizer describes what it checks in variables without names; build with "
    "-fsanitize-undefined-trap-on-error (gcc) or -fsanitize-trap=undefined (clang), which needs none"
)


def _unclear_code(case: Case) -> Iterator[Reason]:
    every = case.selection.every
    described = any(symbol.name.startswith("__ubsan_handle_") for symbol in case.new.dynamic_symbols)
    for row in np.flatnonzero(unclear_code(case.new) & case.selection.functions).tolist():
        name = case.name(row)
        if row in case.new.undecodable:
            text = (
                f"{name} must run from the new build but holds bytes that are no instruction: nobody knows what it uses"
            )
            yield Reason("undecodable", name, text)
            continue
        unknown = every.target[(every.function == row) & (every.target_kind == TargetKind.UNKNOWN)]
        places = ", ".join(f"{vaddr:#x}" for vaddr in unknown[:_LISTED].tolist())
        text = f"{name} must run from the new build but refers to {places}, where the symbol table knows nothing; "
        text += _ADVICE_UBSAN if described else "do not strip local symbols from the new build"
        yield Reason("unknown-reference", name, text)


def _inseparable(case: Case) -> Iterator[Reason]:
    """Jumps into the middle of a function that stays where it is, and jumps too short to lead there."""
    every, index = case.selection.every, case.selection.references
    entity = rows_named(every)[index]
    apart = (every.target_kind[index] == TargetKind.ENTITY) & ~case.selection.functions[entity]
    apart &= case.new.entities.kind[entity] == Kind.FUNCTION
    apart &= (every.addend[index] != 0) | (every.form[index] == Form.SHORT)
    for place in index[apart].tolist():
        user, target = case.name(int(every.function[place])), case.name(int(every.entity[place]))
        text = f"{user} leads into {target} in a way that needs both in one image, but {target} cannot be placed"
        yield Reason("jump-into-function", target, text)


def _short_functions(case: Case) -> Iterator[Reason]:
    for index, row in entries_without_room(case.images, case.new, case.comparisons):
        build = case.images[index].build
        name = build.entities.names[row]
        text = (
            f"{name} changed, but the running copy has {int(build.extent[row])} bytes and no padding behind them: no"
            " room for the jump to the new one"
        )
        yield Reason("short-function", name, text)


def _coroutines(case: Case) -> Iterator[Reason]:
    """C++20 coroutines: their frames are on the heap, in a layout that the compiler made for the old body.

    gcc 12 calls the pieces ``NAME.actor`` and ``NAME.destroy``, clang 15 ``NAME.resume``, ``.destroy``, ``.cleanup``.
    """
    old = case.running.old
    for row in np.flatnonzero(case.running.old_replaced).tolist():
        name = old.entities.names[row]
        if name.endswith((".actor", ".resume")):
            text = (
                f"{name} is the body of a coroutine and changed; coroutines that are suspended keep frames of the old"
                " body, which nothing can find"
            )
            yield Reason("coroutine-changed", name, text)


def _new_ifuncs(case: Case) -> Iterator[Reason]:
    """Resolvers run at start only."""
    targets = case.targets
    for index in case.selection.slots:
        word = targets.of_slot(case.new.slots[index])
        if word is None or targets.row[word] < 0 or case.homes.owner[targets.row[word]] != NEW:
            continue
        named = targets.number[word] and case.new.dynamic_symbols[int(targets.number[word])].type == _STT_GNU_IFUNC
        if named or case.new.slots[index].relocation == Relocation.IRELATIVE:
            name = case.name(int(targets.row[word]))
            yield Reason("ifunc-new", name, f"{name} is a new IFUNC; only a restart runs its resolver")


# State


def _unproven(case: Case) -> Iterator[Reason]:
    for row in np.flatnonzero(case.used & case.homes.unproven).tolist():
        text = (
            f"{case.described(row)} holds state, and it cannot be told which variable of the running build it is (used"
            f" by {_users(case, row)}); debug information of both builds may help"
        )
        yield Reason("ambiguous-static", case.name(row), text)


def _identities(case: Case) -> Iterator[Reason]:
    """One address was two things, or two are one now: pointers in the process and in other modules cannot tell."""
    for comparison in case.comparisons:
        if comparison.old.build_id == case.new.build_id:
            continue
        for note in comparison.notes:
            if note.code in IDENTITY:
                text = f"{note.text}; what points to the old address cannot be told apart: only a restart helps"
                yield Reason(note.code, note.subject, text)


def _storage(case: Case) -> Iterator[Reason]:
    """Variables of the process that became variables of each thread, or the other way round, are not even paired."""
    old, new = case.running.old, case.new
    mutable = (Kind.OBJECT, Kind.TLS)
    lost: dict[tuple[str, str], set[int]] = defaultdict(set)
    for row in np.flatnonzero(np.isin(old.entities.kind, mutable) & (case.running.new_of < 0)).tolist():
        lost[_identity(old, row)].add(int(old.entities.kind[row]))
    used = case.used
    if new.facts.unproven:
        used = used | (new.entities.kind == Kind.TLS)  # code does not always tell which thread-local it means
    fresh = np.isin(new.entities.kind, mutable) & (case.homes.owner == NEW) & used
    for row in np.flatnonzero(fresh).tolist():
        kind = int(new.entities.kind[row])
        if not lost[_identity(new, row)] - {kind}:
            continue
        now = "each thread has its own" if kind == Kind.TLS else "all threads share it"
        text = (
            f"{case.described(row)} holds state, and {now} in the new build, unlike before: the running value would be"
            f" lost (used by {_users(case, row)})"
        )
        yield Reason("storage-changed", case.name(row), text)


def _identity(build: Build, row: int) -> tuple[str, str]:
    file = build.entities.files[row].rsplit("/", 1)[-1]
    return stem_of(build.entities.names[row]).base, file


def _resized(case: Case) -> Iterator[Reason]:
    """Variables keep their place, and with it their size."""
    for index, comparison in enumerate(case.comparisons):
        if case.images[index].build.build_id == case.new.build_id:
            continue
        for old_row, row in comparison.resized:
            kept = int(case.homes.owner[row]) == index or index == case.current
            variable = int(case.new.entities.kind[row]) in (Kind.OBJECT, Kind.TLS)
            if comparison.new.bare and (comparison.old.unbounded[old_row] or comparison.new.unbounded[row]):
                continue  # a distance, and no size: see plan/unproven.py
            if not (kept and variable and (case.used[row] or case.new.entities.exported[row])):
                continue
            before, after = int(comparison.old.entities.size[old_row]), int(case.new.entities.size[row])
            text = (
                f"{case.described(row)} holds state and changed from {before} to {after} bytes (used by"
                f" {_users(case, row)}); a running process cannot give it another layout"
            )
            yield Reason("object-resized", case.name(row), text)


def _rehomed(case: Case) -> Iterator[Reason]:
    """A constant gets a new home only if nothing goes on using the old one."""
    for entry in case.homes.rehomed:
        stale = _stale_users(case, entry)
        if not stale:
            continue
        before = int(case.images[entry.image].build.entities.size[entry.partner])
        after = int(case.new.entities.size[entry.row])
        how = f"changed from {before} to {after} bytes" if before != after else "became or ceased to be constant"
        text = f"{case.described(entry.row)} {how}, and {_listing(stale)} would go on using the old one"
        yield Reason("object-resized", case.name(entry.row), text)


def _stale_users(case: Case, entry: Rehomed) -> list[str]:
    """Who keeps the old address of a constant that moves: code that stays, variables, other modules."""
    users = [case.name(row) for row in case.users(entry.row) if not case.selection.functions[row]]
    holders = case.targets.container[case.targets.row == entry.row]
    holders = holders[holders >= 0]
    variables = (case.new.entities.kind[holders] == Kind.OBJECT) & (case.homes.owner[holders] != NEW)
    users += [case.name(row) for row in holders[variables].tolist()]
    if case.new.entities.exported[entry.row]:
        users.append("other modules")
    return users


def _labels_in_variables(case: Case) -> Iterator[Reason]:
    """A variable that holds addresses of labels inside a function goes on pointing into the old code."""
    targets, kinds = case.targets, case.new.entities.kind
    known = targets.by_address & (targets.row >= 0) & (targets.container >= 0) & (targets.addend != 0)
    for word in np.flatnonzero(known).tolist():
        function, holder = int(targets.row[word]), int(targets.container[word])
        if int(kinds[function]) != Kind.FUNCTION or not case.selection.needed[function]:
            continue
        if int(kinds[holder]) == Kind.OBJECT and case.homes.owner[holder] != NEW:
            text = (
                f"the variable {case.described(holder)} holds addresses inside {case.name(function)}, which changed;"
                " make the table const"
            )
            yield Reason("label-in-variable", case.name(holder), text)


# Thread-locals


def _thread_locals(case: Case) -> Iterator[Reason]:
    if not tls.moved(case.homes, case.images[0].build, case.new):
        return  # whatever the code adds to whatever base, it finds what it means
    yield from _unproven_thread_locals(case)
    yield from _unnamed_thread_locals(case)
    yield from _doubtful_thread_locals(case)


def _unproven_thread_locals(case: Case) -> Iterator[Reason]:
    places: dict[int, list[int]] = defaultdict(list)
    for vaddr, row in case.new.facts.unproven:
        if case.selection.functions[row]:
            places[row].append(vaddr)
    for row, vaddrs in places.items():
        text = (
            "thread-local variables have other offsets in the new build, and it cannot be told whether"
            f" {case.name(row)} counts on one at {', '.join(f'{vaddr:#x}' for vaddr in vaddrs[:_LISTED])}; link the new"
            " build with -Wl,--emit-relocs"
        )
        yield Reason("tls-layout", case.name(row), text)


def _unnamed_thread_locals(case: Case) -> Iterator[Reason]:
    every, index = case.selection.every, case.selection.references
    unnamed = np.isin(every.form[index], THREAD_LOCAL_FORMS) & (every.entity[index] < 0)
    for row in np.unique(every.function[index[unnamed]]).tolist():
        offsets = every.target[index[unnamed & (every.function[index] == row)]].astype(np.int64)[:_LISTED].tolist()
        text = (
            f"thread-local variables have other offsets in the new build, and {case.name(row)} uses what is at"
            f" {', '.join(map(str, offsets))} in their block, which has no name; do not strip local symbols from the"
            " new build"
        )
        yield Reason("tls-layout", case.name(row), text)


def _doubtful_thread_locals(case: Case) -> Iterator[Reason]:
    """Where one thread-local ends and another begins, a pointer may mean either: no matter, unless they part."""
    every = case.selection.every
    for position, other in case.new.facts.doubtful:
        place = int(np.searchsorted(every.position, position))
        function, row = int(every.function[place]), int(every.entity[place])
        if not case.selection.functions[function] or row < 0:
            continue
        distances = [tls.distance(case.homes, case.new, each) for each in (row, other)]
        if None not in distances and distances[0] == distances[1]:
            continue
        text = (
            f"{case.name(function)} takes an address that may be of {case.name(row)} or belong to {case.name(other)},"
            " thread-local variables that are not neighbours any more; link the new build with -Wl,--emit-relocs"
        )
        yield Reason("tls-layout", case.name(function), text)


# Addresses


def _boundaries(case: Case) -> Iterator[Reason]:
    for unclear in case.selection.unclear:
        user, ending = case.name(unclear.function), case.name(unclear.ending)
        text = (
            f"{user} takes the address {unclear.vaddr:#x}, which may be the end of {ending} or the start of what"
            " follows; the two will not be neighbours any more, and the code does not tell which is meant"
        )
        yield Reason("adjacency", user, text)


def _outside(case: Case) -> Iterator[Reason]:
    """Places before an object, or well behind it: what the linker put there may be elsewhere in the process."""
    every, index = case.selection.every, case.selection.references
    entity = rows_named(every)[index]
    size, addend = case.new.entities.size[entity].astype(np.int64), every.addend[index]
    outside = (every.target_kind[index] == TargetKind.ENTITY) & np.isin(case.new.entities.kind[entity], DATA)
    outside &= (size > 0) & ((addend > size) | (addend < 0)) & (case.homes.owner[entity] != NEW)
    for place in index[outside].tolist():
        if _ends_a_shifted_loop(every, place, int(case.new.entities.size[every.entity[place]])):
            continue
        user, target = case.name(int(every.function[place])), case.name(int(every.entity[place]))
        text = f"{user} refers to a place outside of {target} as if it were part of it; what is there may be elsewhere"
        yield Reason("adjacency", user, text)


def _ends_a_shifted_loop(every: References, place: int, size: int) -> bool:
    """Whether the same function takes the address just as far behind the object's start (see plan/boundary.py)."""
    begins = (every.function == every.function[place]) & (every.form == Form.LEA)
    begins &= (every.target_kind == TargetKind.ENTITY) & (every.entity == every.entity[place])
    return bool((begins & (every.addend == every.addend[place] - size) & (every.addend > 0)).any())


def _users(case: Case, row: int) -> str:
    return _listing([case.name(user) for user in case.users(row)]) or "data only"


def _listing(names: Sequence[str]) -> str:
    unique = sorted(set(names))
    more = f" and {len(unique) - _LISTED} more" if len(unique) > _LISTED else ""
    return ", ".join(unique[:_LISTED]) + more
