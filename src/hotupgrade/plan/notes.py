"""What an operator should know of an upgrade that can be done."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hotupgrade.binary.model import Kind
from hotupgrade.errors import Reason
from hotupgrade.plan.case import Case
from hotupgrade.plan.copies import startup
from hotupgrade.plan.homes import NEW
from hotupgrade.plan.layouts import layout_notes
from hotupgrade.plan.prototypes import prototype_notes
from hotupgrade.plan.refusals import IDENTITY


def notes(case: Case) -> list[Reason]:
    found = [note for note in case.running.notes if note.code not in IDENTITY]
    if not case.nothing_changes:
        for topic in (layout_notes, _initial_values, _constructors, _destructors, _removed):
            found += topic(case)
        found += prototype_notes(case.running)
    return found


def _initial_values(case: Case) -> Iterator[Reason]:
    for _, row in case.running.initial_changed:
        if int(case.new.entities.kind[row]) not in (Kind.OBJECT, Kind.TLS):
            continue  # constants get their new contents
        name = case.name(row)
        text = f"{name} has another initial value in the new build; the running value stays as it is"
        yield Reason("initial-changed", name, text)


def _constructors(case: Case) -> Iterator[Reason]:
    started = startup(case.new)
    for vaddr in case.new.init_array:
        row, _ = case.targets.rows.one_at(vaddr)
        if row < 0 or started[row]:
            continue
        name = case.name(row)
        if case.homes.owner[row] == NEW:
            text = f"{name} is a new constructor; it runs once, after the upgrade"
            yield Reason("constructor-new", name, text)
        elif case.running.replaced[row]:
            text = f"{name} is a constructor and changed; it ran at start and will not run again"
            yield Reason("constructor-changed", name, text)


def _destructors(case: Case) -> Iterator[Reason]:
    for vaddr in case.new.fini_array:
        row, _ = case.targets.rows.one_at(vaddr)
        if row >= 0 and case.homes.owner[row] == NEW:
            name = case.name(row)
            text = f"{name} is a new destructor; it will not run when this process exits"
            yield Reason("destructor-new", name, text)


def _removed(case: Case) -> Iterator[Reason]:
    old = case.running.old
    constructors = set(old.init_array)
    gone = (case.running.new_of < 0) & (old.entities.kind == Kind.FUNCTION) & ~startup(old)
    for row in np.flatnonzero(gone).tolist():
        name = old.entities.names[row]
        if int(old.entities.address[row]) in constructors:
            text = f"{name} was a constructor and is gone; what it did at start stays done"
            yield Reason("constructor-removed", name, text)
        elif old.entities.exported[row]:
            text = f"{name} is gone from the new build; who still calls it gets the old code, which stays"
            yield Reason("export-removed", name, text)
