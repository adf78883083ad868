"""Whether a new build can take over: every reason against it, by name.  Looks at files only, not at the process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import iced_x86
import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Flags, Form, Kind, TargetKind
from hotupgrade.binary.relocations import Relocation
from hotupgrade.errors import Reason
from hotupgrade.plan import tls
from hotupgrade.plan.copies import startup, unclear_code
from hotupgrade.plan.edits import entries_without_room
from hotupgrade.plan.homes import NEW, Homes, Rehomed, find_homes
from hotupgrade.plan.model import Comparison, Image
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.rows import Rows
from hotupgrade.plan.select import DATA, Intact, Selection, rows_named, select
from hotupgrade.plan.targets import Targets

_LISTED = 4  # names that a message lists before it says "and N more"
_STT_GNU_IFUNC = 10


@dataclass(frozen=True)
class Case:
    """Everything that can be known of an upgrade without the process."""

    images: tuple[Image, ...]
    current: int
    new: Build
    comparisons: tuple[Comparison, ...]
    options: PlanOptions
    targets: Targets
    homes: Homes
    selection: Selection

    @cached_property
    def is_back(self) -> bool:
        """The new build is in the process already."""
        return any(image.build.build_id == self.new.build_id for image in self.images)


def open_case(
    images: Sequence[Image],
    current: int,
    new: Build,
    comparisons: Sequence[Comparison],
    options: PlanOptions,
    intact: Intact | None = None,
) -> Case:
    """``intact``: see :func:`hotupgrade.plan.select.needed_functions`."""
    targets = Targets(new, Rows(new))
    homes = find_homes(images, current, new, comparisons)
    selection = select(images, current, targets, comparisons, homes, options, intact)
    return Case(tuple(images), current, new, tuple(comparisons), options, targets, homes, selection)


def verdict(
    images: Sequence[Image], current: int, new: Build, comparisons: Sequence[Comparison], options: PlanOptions
) -> tuple[list[Reason], list[Reason]]:
    """Reasons to refuse, and notes.  No refusals: upgradable."""
    case = open_case(images, current, new, comparisons, options)
    return refusals(case), notes(case)


def refusals(case: Case) -> list[Reason]:
    checks = (
        _kind_of_build,
        _unknown_references,
        _middles,
        _unproven,
        _resized,
        _rehomed,
        _thread_locals,
        _short_functions,
        _boundaries,
        _labels_in_data,
        _new_ifuncs,
    )
    found: dict[tuple[str, str], Reason] = {}
    for check in checks:
        for reason in check(case):
            found.setdefault((reason.code, reason.subject), reason)
    return list(found.values())


def notes(case: Case) -> list[Reason]:
    found = [*case.comparisons[case.current].notes]
    for check in (_initial_values, _constructors, _removed):
        found += check(case)
    return found


# -- refusals -----------------------------------------------------------------------------------------------------------


def _kind_of_build(case: Case) -> Iterator[Reason]:
    for build in (case.images[0].build, case.new):
        if build.text_relocations:
            yield Reason(
                "text-relocations",
                build.label,
                f"{build.label} has relocations in its code; build it as position-independent code",
            )


def _unknown_references(case: Case) -> Iterator[Reason]:
    unclear = unclear_code(case.new) & case.selection.needed
    every = case.selection.every
    for row in np.flatnonzero(unclear).tolist():
        places = (every.function == row) & (every.target_kind == TargetKind.UNKNOWN)
        name = case.new.entities.names[row]
        if row in case.new.undecodable:
            yield Reason(
                "undecodable",
                name,
                f"{name} must run from the new build but holds bytes that are no instruction, so its references are not known",
            )
            continue
        where = ", ".join(f"{vaddr:#x}" for vaddr in every.target[places][:_LISTED].tolist())
        yield Reason(
            "unknown-reference",
            name,
            f"{name} must run from the new build but refers to {where}, where the symbol table knows nothing; do not strip the"
            " new build's local symbols",
        )


def _middles(case: Case) -> Iterator[Reason]:
    """Jumps into a function that stays where it is, at other places than its entry, or too short to lead there."""
    every, index, functions = case.selection.every, case.selection.references, case.selection.functions
    entity = rows_named(every)[index]
    wrong = (every.target_kind[index] == TargetKind.ENTITY) & ~functions[entity]
    wrong &= (every.addend[index] != 0) | (every.form[index] == Form.SHORT)
    wrong &= case.new.entities.kind[entity] == Kind.FUNCTION
    for place in index[wrong].tolist():
        user, target = _name(case, int(every.function[place])), _name(case, int(every.entity[place]))
        yield Reason(
            "jump-into-function",
            target,
            f"{user} leads into {target} in a way that needs both in one image, but {target} cannot be placed",
        )


def _unproven(case: Case) -> Iterator[Reason]:
    rows = _used_rows(case) & case.homes.unproven
    for row in np.flatnonzero(rows).tolist():
        name = _name(case, row)
        yield Reason(
            "ambiguous-static",
            name,
            f"{name}{_in_file(case.new, row)} holds state, and it cannot be told which variable of the running build it is"
            f" (used by {_users(case, row)}); debug information of both builds may help",
        )


def _resized(case: Case) -> Iterator[Reason]:
    """Variables keep their place, and with it their size."""
    kinds = case.new.entities.kind
    for index, comparison in enumerate(case.comparisons):
        if case.images[index].build.build_id == case.new.build_id:
            continue
        for old_row, row in comparison.resized:
            kept = int(case.homes.owner[row]) == index and int(kinds[row]) in (Kind.OBJECT, Kind.TLS)
            if not kept or not (_used_rows(case)[row] or case.new.entities.exported[row]):
                continue
            name = _name(case, row)
            before, after = int(comparison.old.entities.size[old_row]), int(case.new.entities.size[row])
            yield Reason(
                "object-resized",
                name,
                f"{name}{_in_file(case.new, row)} holds state and changed from {before} to {after} bytes (used by"
                f" {_users(case, row)}); a running process cannot give it another layout",
            )


def _rehomed(case: Case) -> Iterator[Reason]:
    """A constant gets a new home only if nothing goes on using the old one."""
    for entry in case.homes.rehomed:
        name = _name(case, entry.row)
        old = case.images[entry.image].build
        before, after = int(old.entities.size[entry.partner]), int(case.new.entities.size[entry.row])
        changed = f"changed from {before} to {after} bytes" if before != after else "is no longer constant"
        if stale := _stale_users(case, entry):
            yield Reason(
                "object-resized",
                name,
                f"{name}{_in_file(case.new, entry.row)} {changed}, and {_listing(stale)} would go on using the old one",
            )


def _stale_users(case: Case, entry: Rehomed) -> list[str]:
    """Who keeps the old address of a constant that moves: code that stays, variables that point to it, other modules."""
    users = [_name(case, row) for row in _functions_using(case, entry.row) if not case.selection.functions[row]]
    targets = case.targets
    kinds = case.new.entities.kind
    for word in np.flatnonzero(targets.row == entry.row).tolist():
        holder = int(targets.container[word])
        if holder >= 0 and int(kinds[holder]) == Kind.OBJECT and case.homes.owner[holder] != NEW:
            users.append(_name(case, holder))
    if case.new.entities.exported[entry.row]:
        users.append("other modules")
    return users


def _thread_locals(case: Case) -> Iterator[Reason]:
    if not tls.moved(case.homes, case.new):
        yield from _changed_block(case)
        return
    if not case.new.has_relocation_records:
        yield from _without_records(case)
    yield from _local_exec(case)


def _changed_block(case: Case) -> Iterator[Reason]:
    """Local-exec code counts from the end of the block."""
    old, new = case.images[0].build.tls, case.new.tls
    if case.new.executable and old is not None and new is not None:
        if _block_size(case.images[0].build) != _block_size(case.new):
            yield from _local_exec(case)


def _block_size(build: Build) -> int:
    if build.tls is None:
        return 0
    return -(-build.tls.memory_size // max(build.tls.alignment, 1)) * max(build.tls.alignment, 1)


def _without_records(case: Case) -> Iterator[Reason]:
    """Local-dynamic code adds offsets that only relocation records tell."""
    every, index = case.selection.every, case.selection.references
    blocks = [slot for slot in case.selection.slots if tls.is_whole_block(case.targets, slot)]
    uses = (every.target_kind[index] == TargetKind.GOT) & np.isin(every.entity[index], blocks)
    users = [_name(case, row) for row in np.unique(every.function[index[uses]]).tolist()]
    if users:
        yield Reason(
            "tls-layout",
            users[0],
            f"thread-local variables have other offsets in the new build, and {_listing(users)} count on them; link the new"
            " build with -Wl,--emit-relocs",
        )


def _local_exec(case: Case) -> Iterator[Reason]:
    if not case.new.executable:
        return
    users = [
        _name(case, row) for row in np.flatnonzero(case.selection.functions).tolist() if _counts_from_fs(case.new, row)
    ]
    if users:
        yield Reason(
            "tls-layout",
            users[0],
            f"thread-local variables of the program have other places in the new build, and {_listing(users)} have these"
            " places in their code",
        )


def _counts_from_fs(build: Build, row: int) -> bool:
    """Local-exec access: the thread pointer with a negative offset, or taken as an address."""
    entry = int(build.entities.address[row])
    code = build.read(entry, int(build.extent[row]))
    if b"\x64" not in code:
        return False
    for instruction in iced_x86.Decoder(64, code, ip=entry):
        if instruction.memory_segment == iced_x86.Register.FS and instruction.memory_base == iced_x86.Register.NONE:
            if instruction.memory_displacement == 0 or instruction.memory_displacement >> 31:
                return True
    return False


def _short_functions(case: Case) -> Iterator[Reason]:
    for index, row in entries_without_room(case.images, case.new, case.comparisons):
        build = case.images[index].build
        name = build.entities.names[row]
        yield Reason(
            "short-function",
            name,
            f"{name} changed, but the running copy has {int(build.extent[row])} bytes and no padding behind them: no room for"
            " the jump to the new one",
        )


def _boundaries(case: Case) -> Iterator[Reason]:
    for unclear in case.selection.unclear:
        user, ending = _name(case, unclear.function), _name(case, unclear.ending)
        yield Reason(
            "adjacency",
            user,
            f"{user} takes the address {unclear.vaddr:#x}, which may be the end of {ending} or the start of what follows it;"
            " these two will no longer be neighbours, and the code does not tell which is meant",
        )
    every, index, sizes = case.selection.every, case.selection.references, case.new.entities.size.astype(np.int64)
    entity = rows_named(every)[index]
    beyond = (every.target_kind[index] == TargetKind.ENTITY) & np.isin(case.new.entities.kind[entity], DATA)
    beyond &= (sizes[entity] > 0) & ((every.addend[index] > sizes[entity]) | (every.addend[index] < 0))
    beyond &= case.homes.owner[entity] != NEW
    for place in index[beyond].tolist():
        user, target = _name(case, int(every.function[place])), _name(case, int(every.entity[place]))
        yield Reason(
            "adjacency",
            user,
            f"{user} refers to a place outside of {target} by way of it, and what is there may be elsewhere in the process",
        )


def _labels_in_data(case: Case) -> Iterator[Reason]:
    """A variable that holds addresses of labels inside a function goes on pointing into the old code."""
    targets, kinds = case.targets, case.new.entities.kind
    inner = targets.by_address & (targets.row >= 0) & (targets.addend != 0) & (targets.container >= 0)
    inner &= (kinds[np.maximum(targets.row, 0)] == Kind.FUNCTION) & (
        kinds[np.maximum(targets.container, 0)] == Kind.OBJECT
    )
    inner &= (case.homes.owner[np.maximum(targets.container, 0)] != NEW) & case.selection.needed[
        np.maximum(targets.row, 0)
    ]
    for word in np.flatnonzero(inner).tolist():
        name, function = _name(case, int(targets.container[word])), _name(case, int(targets.row[word]))
        yield Reason(
            "label-in-variable",
            name,
            f"the variable {name} holds addresses inside {function}, which changed; make the table const",
        )


def _new_ifuncs(case: Case) -> Iterator[Reason]:
    """Resolvers run at start only."""
    for slot_index in case.selection.slots:
        relocation = case.targets.of_slot(case.new.slots[slot_index])
        if relocation is None:
            continue
        row = int(case.targets.row[relocation])
        symbol = (
            case.new.dynamic_symbols[int(case.targets.number[relocation])] if case.targets.number[relocation] else None
        )
        resolver = case.new.slots[slot_index].relocation == Relocation.IRELATIVE or (
            symbol is not None and symbol.type == _STT_GNU_IFUNC
        )
        if resolver and row >= 0 and case.homes.owner[row] == NEW:
            name = _name(case, row)
            yield Reason("ifunc-new", name, f"{name} is a new IFUNC; only a restart runs its resolver")


# -- notes --------------------------------------------------------------------------------------------------------------


def _initial_values(case: Case) -> Iterator[Reason]:
    for _, row in case.comparisons[case.current].initial_changed:
        if int(case.new.entities.kind[row]) not in (Kind.OBJECT, Kind.TLS):
            continue  # constants get their new contents
        name = _name(case, row)
        yield Reason(
            "initial-changed",
            name,
            f"{name} has another initial value in the new build; the running value stays as it is",
        )


def _constructors(case: Case) -> Iterator[Reason]:
    comparison = case.comparisons[case.current]
    for vaddr in case.new.init_array:
        row, _ = case.targets.rows.one_at(vaddr)
        if row < 0:
            continue
        name = _name(case, row)
        if case.homes.owner[row] == NEW:
            yield Reason("constructor-new", name, f"{name} is a new constructor; it runs once, after the upgrade")
        elif comparison.old.build_id != case.new.build_id and comparison.replaced[row]:
            yield Reason(
                "constructor-changed",
                name,
                f"{name} is a constructor and changed; it ran at start and will not run again",
            )


def _removed(case: Case) -> Iterator[Reason]:
    comparison = case.comparisons[case.current]
    old = comparison.old
    if old.build_id == case.new.build_id:
        return
    constructors = set(old.init_array)
    for row in np.flatnonzero((comparison.new_of < 0) & (old.entities.kind == Kind.FUNCTION) & ~startup(old)).tolist():
        name = old.entities.names[row]
        if int(old.entities.address[row]) in constructors:
            yield Reason(
                "constructor-removed", name, f"{name} was a constructor and is gone; what it did at start stays done"
            )
        elif old.entities.exported[row]:
            yield Reason(
                "export-removed",
                name,
                f"{name} is gone from the new build; who still calls it gets the old code, which stays",
            )


# -- who uses what ------------------------------------------------------------------------------------------------------


def _used_rows(case: Case) -> Flags:
    """Rows of data and thread-locals that the new image uses."""
    every, index = case.selection.every, case.selection.references
    flags = case.selection.data.copy()
    named = index[every.target_kind[index] == TargetKind.ENTITY]
    flags[every.entity[named]] = True
    for slot in case.selection.slots:
        relocation = case.targets.of_slot(case.new.slots[slot])
        if relocation is not None and case.targets.row[relocation] >= 0:
            flags[case.targets.row[relocation]] = True
        if (row := tls.row_of_slot(case.targets, case.new.slots[slot])) >= 0:
            flags[row] = True
    return flags


def _functions_using(case: Case, row: int) -> list[int]:
    """All functions of the new build that use a row, directly or through a slot."""
    every = case.selection.every
    uses = (every.target_kind == TargetKind.ENTITY) & (every.entity == row)
    slots = [
        index
        for word in np.flatnonzero(case.targets.row == row).tolist()
        if (index := case.new.slot_at(int(case.targets.vaddr[word]))) is not None
    ]
    slots += [index for index, slot in enumerate(case.new.slots) if tls.row_of_slot(case.targets, slot) == row]
    uses |= (every.target_kind == TargetKind.GOT) & np.isin(every.entity, slots)
    users = np.unique(every.function[uses])
    return users[users >= 0].tolist()


def _users(case: Case, row: int) -> str:
    return _listing([_name(case, user) for user in _functions_using(case, row)]) or "data only"


def _listing(names: Sequence[str]) -> str:
    unique = sorted(set(names))
    more = f" and {len(unique) - _LISTED} more" if len(unique) > _LISTED else ""
    return ", ".join(unique[:_LISTED]) + more


def _name(case: Case, row: int) -> str:
    return case.new.entities.names[row]


def _in_file(build: Build, row: int) -> str:
    file = build.entities.files[row]
    return f" ({file})" if file else ""
