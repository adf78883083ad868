"""Addresses at which one object ends and the next thing begins: which of the two does an instruction mean?

While both keep their distance it does not matter.  Where they part (one has a home, the other comes along in the new
image) the wrong answer sends a loop past the end of its table, so the code is asked, and in doubt the plan is refused.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import I32, I64, THREAD_LOCAL_FORMS, Flags, Form, Kind, References, TargetKind
from hotupgrade.binary.pointers import Meaning, Taken, is_end, meaning_of
from hotupgrade.binary.relocations import Relocation
from hotupgrade.binary.symbols import LOADER_SECTION_TYPES, LOADER_SECTIONS
from hotupgrade.plan.homes import NEW, Homes
from hotupgrade.plan.pieces import rows_named

Indices = npt.NDArray[np.intp]

_LARGEST_ROW = 4096  # bytes: no field of a table's first row lies further from its start


@dataclass(frozen=True, slots=True)
class Unclear:
    """A reference that means either of two things which part."""

    function: int
    ending: int  # row of the object that ends there
    vaddr: int


def settle(build: Build, homes: Homes, functions: Flags) -> tuple[References, tuple[Unclear, ...]]:
    """The build's references with end pointers attributed to the objects that end there, for some functions.

    Only where it matters, that is, where what ends and what begins at the address will part.
    """
    every = build.references
    candidates, endings, offsets = _candidates(build, functions)
    kind, entity, addend = every.target_kind.copy(), every.entity.copy(), every.addend.copy()
    unclear: list[Unclear] = []
    for index, ending, offset in zip(candidates.tolist(), endings.tolist(), offsets.tolist(), strict=True):
        if not _part(build, homes, index, ending, offset):
            continue
        meaning = _meaning(build, index, ending, offset)
        if meaning is Meaning.END:
            kind[index], entity[index] = TargetKind.ENTITY, ending
            addend[index] = int(build.entities.size[ending]) + offset
        elif meaning is Meaning.UNCLEAR:
            unclear.append(Unclear(int(every.function[index]), ending, int(every.target[index])))
    settled = dataclasses.replace(every, target_kind=kind, entity=entity, addend=addend)
    return settled, tuple(unclear)


def end_pointers(build: Build) -> Indices:
    """References to otherwise unknown places that are certainly the end of an object which the same function uses."""
    every = build.references
    unknown = (every.target_kind == TargetKind.UNKNOWN) & (every.function >= 0)
    functions = np.zeros(len(build.entities), dtype=np.bool_)
    functions[every.function[unknown]] = True
    found = [
        index
        for index, ending, offset in zip(*(column.tolist() for column in _candidates(build, functions)), strict=True)
        if unknown[index] and _is_end(build, index, ending, offset)
    ]
    return np.array(found, dtype=np.intp)


def _candidates(build: Build, functions: Flags) -> tuple[Indices, I32, I64]:
    """References that take an address at which an object ends that the same function also uses.

    Parallel: the object, and how far behind its end the address lies.  A loop over one field of a table begins at that
    field in the first row, and so ends at the same distance behind the last one.
    """
    every, entities = build.references, build.entities
    data = np.flatnonzero(np.isin(entities.kind, (Kind.OBJECT, Kind.RELRO, Kind.CONSTANT)) & (entities.size > 0))
    ends = (entities.address[data] + entities.size[data]).astype(np.int64)
    order = np.argsort(ends, kind="stable")
    data, ends = data[order].astype(np.int32), ends[order]
    takes = np.flatnonzero((every.form == Form.LEA) & functions[np.maximum(every.function, 0)] & (every.function >= 0))
    if not len(data) or not len(takes):
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64)
    place = np.minimum(np.searchsorted(ends, every.target[takes].astype(np.int64)), len(ends) - 1)
    ending = data[place]
    named = every.target_kind[takes] == TargetKind.ENTITY
    hit = (ends[place] == every.target[takes].astype(np.int64)) & ~(named & (every.entity[takes] == ending))
    exact, ending = takes[hit], ending[hit]
    uses = every.target_kind == TargetKind.ENTITY
    used = every.function[uses].astype(np.int64) << 32 | every.entity[uses]
    also = np.isin(every.function[exact].astype(np.int64) << 32 | ending, used)
    if build.bare:
        also |= _uses_what_lies_before(build, exact, ending)
    exact, ending = exact[also], ending[also]
    shifted, objects, offsets = _shifted_ends(build, takes)
    fresh = ~np.isin(shifted, exact)
    return (
        np.concatenate([exact, shifted[fresh]]),
        np.concatenate([ending, objects[fresh]]),
        np.concatenate([np.zeros(len(exact), dtype=np.int64), offsets[fresh]]),
    )


def _uses_what_lies_before(build: Build, indices: Indices, ending: I32) -> Flags:
    """Without names, an object may be in several rows: one that the function uses, and the one that ends there."""
    every, entities = build.references, build.entities
    sections = {row: build.section_at(int(entities.address[row])) for row in np.flatnonzero(build.unbounded).tolist()}
    used = (every.target_kind == TargetKind.ENTITY) & build.unbounded[rows_named(every)]
    lowest: dict[tuple[int, int], int] = {}  # by function and section, the first object that is used
    for function, row in zip(every.function[used].tolist(), every.entity[used].tolist(), strict=True):
        section = sections[row]
        key = (function, section.vaddr if section else -1)
        address = int(entities.address[row])
        lowest[key] = min(lowest.get(key, address), address)
    found = []
    for index, row in zip(indices.tolist(), ending.tolist(), strict=True):
        section, address = sections.get(row), int(entities.address[row])
        first = lowest.get((int(every.function[index]), section.vaddr if section else -1))
        found.append(row in sections and first is not None and first <= address)
    return np.array(found, np.bool_)


def _shifted_ends(build: Build, takes: Indices) -> tuple[Indices, I32, I64]:
    """Addresses that lie as far behind an object's end as another one, taken by the same function, behind its start."""
    every, entities = build.references, build.entities
    kinds = (Kind.OBJECT, Kind.RELRO, Kind.CONSTANT)
    by_function: dict[int, list[int]] = {}
    for index in takes.tolist():
        by_function.setdefault(int(every.function[index]), []).append(index)
    found: list[tuple[int, int, int]] = []
    for indices in by_function.values():
        ends: dict[int, tuple[int, int]] = {}
        for index in indices:
            row, offset = int(every.entity[index]), int(every.addend[index])
            if every.target_kind[index] != TargetKind.ENTITY or entities.kind[row] not in kinds:
                continue
            size = int(entities.size[row])
            if 0 < offset < min(size, _LARGEST_ROW):
                ends[int(entities.address[row]) + size + offset] = (row, offset)
        if ends:
            found += [(index, *ends[at]) for index in indices if (at := int(every.target[index])) in ends]
    table = np.array(found, dtype=np.int64).reshape(-1, 3)
    return table[:, 0].astype(np.intp), table[:, 1].astype(np.int32), table[:, 2]


def _part(build: Build, homes: Homes, index: int, ending: int, offset: int) -> bool:
    """Whether what ends and what begins at the address will no longer be neighbours."""
    every = build.references
    if every.target_kind[index] == TargetKind.UNKNOWN:
        return True
    if every.target_kind[index] != TargetKind.ENTITY:
        return bool(homes.owner[ending] != NEW)
    begins = int(every.entity[index])
    if homes.owner[ending] == NEW or homes.owner[begins] == NEW:
        return bool(homes.owner[ending] != homes.owner[begins])
    distance = int(homes.address[begins]) + int(every.addend[index]) - int(homes.address[ending])
    return distance != int(build.entities.size[ending]) + offset


def _meaning(build: Build, index: int, ending: int, offset: int) -> Meaning:
    if build.references.target_kind[index] == TargetKind.UNKNOWN:
        return Meaning.END if _is_end(build, index, ending, offset) else Meaning.START  # of something unknown
    meaning = meaning_of(build.image, _taken(build, index, ending, offset))
    if meaning is Meaning.UNCLEAR and _is_only_use(build, index):
        return Meaning.START
    return meaning


def _is_end(build: Build, index: int, ending: int, offset: int) -> bool:
    """Of a place that has no name, in writable memory: nothing is there, or the code shows that it means the end."""
    vaddr = int(build.references.target[index])
    nothing = _is_the_loaders(build, vaddr) or _is_padding(build, vaddr)
    return nothing or is_end(build.image, _taken(build, index, ending, offset))


def _taken(build: Build, index: int, ending: int, offset: int) -> Taken:
    every, row = build.references, int(build.references.function[index])
    low = int(build.entities.address[row])
    return Taken(
        low,
        low + int(build.extent[row]),
        int(every.position[index]),
        int(every.following[index]),
        int(build.entities.address[ending]) + offset,
        every.target_kind[index] == TargetKind.ANONYMOUS,
    )


def _is_the_loaders(build: Build, vaddr: int) -> bool:
    """Whether a section without anything of the program's begins there, or none."""
    section = build.section_at(vaddr)
    return section is None or section.name in LOADER_SECTIONS or section.type in LOADER_SECTION_TYPES


def _is_padding(build: Build, vaddr: int) -> bool:
    """Whether nothing but zeros lies between here and what comes next, and no more than its alignment explains."""
    bounds = build.boundaries
    place = int(np.searchsorted(bounds, vaddr, side="right"))
    following = int(bounds[place]) if place < len(bounds) else vaddr
    return following - vaddr < following & -following and not any(build.read(vaddr, following - vaddr))


def _is_only_use(build: Build, index: int) -> bool:
    """Whether what begins at the address would have no user but this one.

    Compilers do not keep data that nobody uses, so this is the use.  Padding is no data.
    """
    every = build.references
    vaddr = int(every.target[index])
    if every.target_kind[index] == TargetKind.ENTITY:
        if build.entities.exported[every.entity[index]]:
            return False
    else:
        bounds = build.boundaries
        following = int(bounds[np.searchsorted(bounds, vaddr, side="right")])
        if not any(build.read(vaddr, following - vaddr)):
            return False
    relocations = build.dynamic_relocations
    pointers = np.isin(relocations.type, (Relocation.RELATIVE, Relocation.IRELATIVE)) & (relocations.addend == vaddr)
    uses = (every.target == vaddr) & ~np.isin(every.form, THREAD_LOCAL_FORMS)
    return int(uses.sum()) == 1 and not pointers.any()
