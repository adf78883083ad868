"""What the new image must hold: functions, new data, GOT slots, unnamed constants.  Knows no process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.elf import SHF_WRITE
from hotupgrade.binary.model import THREAD_LOCAL_FORMS, Flags, Kind, References, TargetKind
from hotupgrade.plan.boundary import Unclear, settle
from hotupgrade.plan.copies import immovable, startup
from hotupgrade.plan.homes import NEW, READ_ONLY, Homes, unsized
from hotupgrade.plan.migrations import hooks
from hotupgrade.plan.model import Comparison, Image
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.pieces import Indices, rows_named, with_pieces
from hotupgrade.plan.targets import Targets, is_pair
from hotupgrade.plan.tls import row_of_slot
from hotupgrade.plan.unnamed import Unnamed

DATA = (Kind.OBJECT, Kind.RELRO, Kind.CONSTANT)

Intact = Callable[[Image, int], bool]  # whether a function of an image (a row of its build) has its own first bytes


@dataclass(frozen=True)
class Selection:
    """Flags are parallel to the rows of the new build."""

    needed: Flags  # functions that must run from the new image
    functions: Flags  # functions whose code is in the image: those needed, and what belongs to them, or all
    every: References  # the build's references, with end pointers attributed to what ends there
    references: Indices  # those of these functions
    unclear: tuple[Unclear, ...]  # references that may mean either of two things which will part
    slots: tuple[int, ...]  # indices into Build.slots
    stubs: tuple[int, ...]  # vaddrs of the PLT stubs that are called
    data: Flags  # new objects and constants that are in use
    thread_locals: tuple[int, ...]  # rows of new thread-locals that are in use
    unnamed: tuple[int, ...]  # vaddrs of unnamed read-only data that code and new data name


def select(
    images: Sequence[Image],
    current: int,
    targets: Targets,
    comparisons: Sequence[Comparison],
    homes: Homes,
    options: PlanOptions,
    intact: Intact | None = None,
) -> Selection:
    new = targets.build
    needed = needed_functions(images, current, new, comparisons, homes, intact)
    everything = (new.entities.kind == Kind.FUNCTION) & ~immovable(new)
    functions = with_pieces(new, needed | everything if options.whole else needed, neighbours=True)
    every, unclear = settle(new, homes, functions)
    references = np.flatnonzero(functions[np.maximum(every.function, 0)] & (every.function >= 0))
    slots, stubs = _slots(new, every, references)
    data, unnamed = _data(targets, homes, every, references, slots)
    return Selection(
        needed=needed,
        functions=functions,
        every=every,
        references=references,
        unclear=unclear,
        slots=slots,
        stubs=stubs,
        data=data,
        thread_locals=_thread_locals(targets, homes, every, references, slots),
        unnamed=unnamed,
    )


def needed_functions(
    images: Sequence[Image],
    current: int,
    new: Build,
    comparisons: Sequence[Comparison],
    homes: Homes,
    intact: Intact | None = None,
) -> Flags:
    """Functions that are new, or that do not mean what stands at their home.

    A home in a later image may have been redirected since, and its bytes cannot be restored (only those of the running
    image are known to be intact): the function is needed again, unless ``intact`` says of its address that nothing
    happened there.
    """
    functions = new.entities.kind == Kind.FUNCTION
    needed: Flags = functions & (homes.owner == NEW)
    if images[current].build.build_id != new.build_id:
        needed |= hooks(new)
    for index, (image, comparison) in enumerate(zip(images, comparisons, strict=True)):
        if image.build.build_id == new.build_id:
            continue
        at_home = functions & (homes.owner == index)
        needed |= at_home & comparison.replaced
        if index in (0, current):
            continue
        for row in np.flatnonzero(at_home & ~needed).tolist():
            needed[row] = intact is None or not intact(image, int(homes.partner[row]))
    return needed & ~startup(new)


def _slots(new: Build, every: References, references: Indices) -> tuple[tuple[int, ...], tuple[int, ...]]:
    kinds = every.target_kind[references]
    through_stub = kinds == TargetKind.PLT
    named = through_stub | (kinds == TargetKind.GOT)
    slots = set(np.unique(every.entity[references[named]]).tolist()) - {-1}
    for index in tuple(slots):
        if is_pair(new.slots[index]) and (behind := new.slot_at(new.slots[index].vaddr + 8)) is not None:
            slots.add(behind)
    stubs = np.unique(every.target[references[through_stub]]).tolist()
    return tuple(sorted(slots)), tuple(stubs)


def _data(
    targets: Targets, homes: Homes, every: References, references: Indices, slots: tuple[int, ...]
) -> tuple[Flags, tuple[int, ...]]:
    """New data (named by code, a slot, a table with a home or by each other, or exported), and unnamed data in use."""
    new = targets.build
    fresh = np.isin(new.entities.kind, DATA) & (homes.owner == NEW)
    rows = rows_named(every)[references]
    named = every.target_kind[references] == TargetKind.ENTITY
    unnamed = set(every.target[references[every.target_kind[references] == TargetKind.ANONYMOUS]].tolist())
    frontier = set(rows[named & fresh[rows]].tolist())
    frontier |= set(np.flatnonzero(fresh & new.entities.exported).tolist())  # other modules may need them
    by_slot = [found for slot in slots if (found := targets.of_slot(new.slots[slot])) is not None]
    unnamed.update(_unnamed_targets(targets, by_slot))
    from_tables = np.flatnonzero(
        (targets.container >= 0)
        & (homes.owner[targets.container] != NEW)
        & np.isin(new.entities.kind[targets.container], READ_ONLY)
    ).tolist()
    frontier |= _fresh_targets(targets, fresh, [*by_slot, *from_tables])
    holders = _Holders(targets)
    unnamed.update(holders.among(_unnamed_targets(targets, from_tables)))
    data = np.zeros(len(new.entities), dtype=np.bool_)
    followed: set[int] = set()
    while frontier or unnamed - followed:
        data[list(frontier)] = True
        sizeless = frontier & set(np.flatnonzero(data & unsized(new)).tolist())
        unnamed.update(new.entities.address[list(sizeless)].tolist())
        words = [*targets.within_rows(frontier), *holders.words(unnamed - followed)]
        followed |= unnamed
        unnamed.update(_unnamed_targets(targets, words))
        frontier = {row for row in _fresh_targets(targets, fresh, words) if not data[row]}
    return data & ~unsized(new), tuple(sorted(unnamed))


class _Holders:
    """Unnamed data that hold pointers: what a clang's template of a local array names is in use, too."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._unnamed = Unnamed(targets)
        filled = [section for section in targets.build.sections.values() if section.flags & SHF_WRITE]
        self._ranges = [(section.vaddr, section.vaddr + section.size) for section in filled]

    def among(self, vaddrs: Iterable[int]) -> list[int]:
        """Those that may: the loader writes only where somebody may write."""
        places = np.asarray(sorted(vaddrs), dtype=np.int64)
        inside = np.zeros(len(places), dtype=np.bool_)
        for low, high in self._ranges:
            inside |= (places >= low) & (places < high)
        found: list[int] = places[inside].tolist()
        return found

    def words(self, vaddrs: Iterable[int]) -> list[int]:
        """Indices of the relocations within."""
        return [word for vaddr in self.among(vaddrs) for word in self._targets.within(vaddr, self._unnamed.end(vaddr))]


def _fresh_targets(targets: Targets, fresh: Flags, words: Sequence[int]) -> set[int]:
    rows = targets.row[list(words)]
    return set(rows[(rows >= 0) & fresh[np.maximum(rows, 0)]].tolist())


def _unnamed_targets(targets: Targets, words: Sequence[int]) -> list[int]:
    wanted = list(words)
    nameless = targets.by_address[wanted] & (targets.row[wanted] < 0)
    found: list[int] = targets.plain_addend[wanted][nameless].tolist()
    return found


def _thread_locals(
    targets: Targets, homes: Homes, every: References, references: Indices, slots: tuple[int, ...]
) -> tuple[int, ...]:
    new = targets.build
    direct = references[np.isin(every.form[references], THREAD_LOCAL_FORMS)]
    rows = set(every.entity[direct].tolist())
    rows |= {row_of_slot(targets, new.slots[slot]) for slot in slots}
    return tuple(sorted(row for row in rows if row >= 0 and homes.owner[row] == NEW))
