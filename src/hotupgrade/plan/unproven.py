"""What a build without names lets nobody prove, and is refused by name where new code depends on it.

A reference that structure pairs leads to the right address.  Whether what lies there reaches as far as the new code
thinks is another question, and so is which function a pointer in the heap means, or which variable of each thread.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hotupgrade.binary.model import THREAD_LOCAL_FORMS, Form, Kind, TargetKind
from hotupgrade.binary.relocations import Relocation
from hotupgrade.errors import Reason
from hotupgrade.plan.case import Case
from hotupgrade.plan.homes import NEW
from hotupgrade.plan.migrations import claimed_objects
from hotupgrade.plan.pieces import rows_named
from hotupgrade.plan.shape import equal_shapes, paired_references, shapes_of

_ADVICE = "debug information or symbols of both builds would tell"
_TLS_SLOTS = (Relocation.DTPMOD64, Relocation.DTPOFF64, Relocation.TPOFF64, Relocation.TLSDESC)


def unproven_reasons(case: Case) -> Iterator[Reason]:
    """Nothing for builds with symbols."""
    if not case.new.bare or case.nothing_changes:
        return
    yield from _identities(case)
    yield from _extents(case)
    yield from _thread_locals(case)
    yield from _guessed_bounds(case)
    for name in claimed_objects(case.new):
        text = f"a hook is to migrate {name}, but without symbols it cannot be told which variable that is; {_ADVICE}"
        yield Reason("migration-ambiguous", name, text)


def _identities(case: Case) -> Iterator[Reason]:
    """Functions that may be the same though nothing proves it: who kept the address of the old one would go on with it.

    Who is only called is called by code that changes with it.
    """
    running, new = case.running, case.new
    gone = (running.old.entities.kind == Kind.FUNCTION) & (running.new_of < 0)
    lost = np.flatnonzero(gone & running.plain_old & ~running.old.entities.exported)
    if not len(lost):
        return
    fresh = case.selection.needed & (running.old_of < 0) & running.plain_new & (case.homes.owner == NEW)
    fresh &= ~new.entities.exported
    for row in np.flatnonzero(fresh).tolist():
        others = ", ".join(running.old.entities.names[old] for old in lost[:3].tolist())
        text = (
            f"{case.name(row)} is a function whose address is taken, and it cannot be told whether it is one of the"
            f" running build ({others}{' …' if len(lost) > 3 else ''}) that changed; {_ADVICE}"
        )
        yield Reason("ambiguous-function", case.name(row), text)


def _extents(case: Case) -> Iterator[Reason]:
    """New code takes the address of an object that may be larger now: what follows it in the process is something else.

    An instruction that reads or writes a few bytes there says itself how far it reaches.
    """
    every, index = case.selection.every, case.selection.references
    row = rows_named(every)[index]
    named = (every.target_kind[index] == TargetKind.ENTITY) & (case.new.entities.kind[row] == Kind.OBJECT)
    named &= (case.homes.owner[row] != NEW) & case.new.unbounded[row]
    room = _room(case)[row]
    wanted = np.where(every.form[index] == Form.LEA, case.new.entities.size[row].astype(np.int64), 0)
    wanted = np.maximum(wanted, case.new.access[index])
    for place in np.flatnonzero(named & (wanted > room)).tolist():
        target, user = int(row[place]), case.name(int(every.function[index[place]]))
        text = (
            f"{case.described(target)}, used by {user}, may have grown: the next that anything refers to lies"
            f" {int(case.new.entities.size[target])} bytes behind it, and in the running build {int(room[place])};"
            f" {_ADVICE}"
        )
        yield Reason("object-resized", case.name(target), text)


def _room(case: Case) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Per row, how far the object at its home can reach."""
    room = case.new.entities.size.astype(np.int64)
    for number, image in enumerate(case.images):
        here = case.homes.owner == number
        room[here] = image.build.entities.size[case.homes.partner[here]].astype(np.int64)
    return room


def _guessed_bounds(case: Case) -> Iterator[Reason]:
    """Code without frame information may be several functions."""
    for row in np.flatnonzero(case.selection.functions & case.new.unframed).tolist():
        text = (
            f"{case.name(row)} must run from the new build, but has neither a name nor frame information: nobody knows"
            f" where it ends; {_ADVICE}"
        )
        yield Reason("unknown-bounds", case.name(row), text)


# Thread-locals


def _thread_locals(case: Case) -> Iterator[Reason]:
    """New code uses a thread-local that equal code of both builds does not use in the same place."""
    users = _thread_local_users(case)
    if not users:
        return
    old, new = case.images[0].build, case.new
    blocks = [(each.tls.memory_size, each.tls.alignment) if each.tls else None for each in (old, new)]
    known = _agreed_offsets(case) if blocks[0] == blocks[1] else None
    for row, offsets in sorted(users.items()):
        if known is None:
            why = "the block of thread-local variables has another size than in the running build"
        elif offsets <= known:
            continue
        else:
            places = ", ".join(map(str, sorted(offsets - known)[:4]))
            why = f"no code that is the same in both builds uses what is at {places} in the block of thread-locals"
        text = f"{case.name(row)} uses thread-local variables, and {why}; {_ADVICE}"
        yield Reason("tls-layout", case.name(row), text)


def _thread_local_users(case: Case) -> dict[int, set[int]]:
    """Functions to be placed, and the offsets that they use; exported thread-locals are told by their names."""
    every, index = case.selection.every, case.selection.references
    found: dict[int, set[int]] = {}
    unnamed = np.isin(every.form[index], THREAD_LOCAL_FORMS) & (every.target_kind[index] == TargetKind.UNKNOWN)
    for place in index[unnamed].tolist():
        found.setdefault(int(every.function[place]), set()).add(int(every.target[place]))
    for place in index[every.target_kind[index] == TargetKind.GOT].tolist():
        offset = _slot_offset(case, int(every.entity[place]))
        if offset is not None:
            found.setdefault(int(every.function[place]), set()).add(offset)
    for _, row in case.new.facts.unproven:
        if case.selection.functions[row]:
            found.setdefault(row, set()).add(-1)
    return found


def _slot_offset(case: Case, slot: int) -> int | None:
    """The offset that a slot names without a symbol; None for all other slots, and for that of the whole block."""
    entry = case.new.slots[slot]
    if entry.relocation not in _TLS_SLOTS or entry.symbol or slot in case.new.facts.block_slots:
        return None
    if entry.relocation == Relocation.DTPMOD64:
        return int.from_bytes(case.new.read(entry.vaddr + 8, 8), "little")
    return entry.addend


def _agreed_offsets(case: Case) -> set[int] | None:
    """Offsets that mean the same in both builds; None if any two equal functions disagree."""
    comparison = case.comparisons[0]
    old, new = shapes_of(comparison.old), shapes_of(comparison.new)
    pairs = np.flatnonzero((comparison.old.entities.kind == Kind.FUNCTION) & (comparison.new_of >= 0)).astype(np.int64)
    partners = comparison.new_of[pairs].astype(np.int64)
    equal = equal_shapes(old, new, pairs, partners)
    found = paired_references(old, new, pairs[equal], partners[equal])
    here = np.isin(old.references.form[found.old], THREAD_LOCAL_FORMS)
    ours, theirs = old.references.target[found.old][here], new.references.target[found.new][here]
    if (ours != theirs).any():
        return None
    agreed = {int(offset) for offset in ours.tolist()}
    slots = np.flatnonzero(new.references.target_kind[found.new] == TargetKind.GOT).tolist()
    for place in slots:
        offset = _slot_offset(case, int(new.references.entity[found.new[place]]))
        if offset is not None and comparison.same[new.references.function[found.new[place]]]:
            agreed.add(offset)
    return agreed
