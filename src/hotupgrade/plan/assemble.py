"""Puts the bytes of a new image together: only what is needed, where the linker had it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from hotupgrade.binary.model import Kind, Section
from hotupgrade.plan.homes import NEW, Homes
from hotupgrade.plan.memory import ImageMemory
from hotupgrade.plan.model import ImagePlan, Scene
from hotupgrade.plan.relink import Linker
from hotupgrade.plan.select import Selection
from hotupgrade.plan.unnamed import Unnamed
from hotupgrade.plan.unwind import UnwindTables, unwind_tables

_STUB = 16
_SLACK = 1024  # bytes around unnamed data: code may name a place a little before a table and index it from above 0
_REFERENCE = "DW.ref."


def assemble(
    linker: Linker,
    homes: Homes,
    selection: Selection,
    unnamed: Unnamed,
    extra: Iterable[int],
    scene: Scene,
    *,
    whole: bool,
) -> ImagePlan:
    """The plan of the new image.  ``extra``: vaddrs of unnamed data that constants outside of it point to."""
    return _Assembler(linker, homes, selection, scene).assemble(unnamed, extra, whole)


class _Assembler:
    def __init__(self, linker: Linker, homes: Homes, selection: Selection, scene: Scene) -> None:
        self._linker = linker
        self._new = linker.new
        self._homes = homes
        self._selection = selection
        self._scene = scene
        self._memory = ImageMemory(self._new)
        self._last_section: Section | None = None

    def assemble(self, unnamed: Unnamed, extra: Iterable[int], whole: bool) -> ImagePlan:
        # Where tables have no names, nobody knows how far what is used reaches: all of their section comes along.
        self._put_unnamed(unnamed, [*self._selection.unnamed, *extra], whole or self._new.bare)
        self._put_functions()
        self._put_stubs_and_slots()
        self._put_data()
        tables = unwind_tables(self._new, self._selection.functions)
        if tables is not None:
            self._put_unwind_tables(tables)
        return ImagePlan(
            base=self._linker.base,
            size=self._memory.size,
            pieces=self._memory.pieces(),
            protections=self._memory.protections(),
            eh_frame=None if tables is None else self._linker.base + tables.start,
        )

    def _put_functions(self) -> None:
        entities = self._new.entities
        for row in np.flatnonzero(self._selection.functions).tolist():
            low = int(entities.address[row])
            self._memory.copy(low, low + int(self._new.extent[row]))
        fields = self._linker.fields()
        self._memory.put_fields(fields.position, fields.value)

    def _put_stubs_and_slots(self) -> None:
        for stub in self._selection.stubs:
            section = self._new.section_at(stub)
            high = stub + _STUB if section is None else min(stub + _STUB, section.vaddr + section.size)
            self._memory.copy(stub, high)
        for index in self._selection.slots:
            for vaddr, word in self._linker.slot(index):
                self._memory.put_word(vaddr, word.value)

    def _put_data(self) -> None:
        entities = self._new.entities
        for row in np.flatnonzero(self._selection.data & ~self._linker.copied).tolist():
            low = int(entities.address[row])
            self._put_range(low, low + int(entities.size[row]) if entities.size[row] else self._next_boundary(low))

    def _next_boundary(self, vaddr: int) -> int:
        """The end of an object whose symbol says no size."""
        bounds = self._new.boundaries
        return int(bounds[np.searchsorted(bounds, vaddr, side="right")])

    def _put_unnamed(self, unnamed: Unnamed, items: Iterable[int], whole: bool) -> None:
        present: set[tuple[int, int]] = set()
        relocated: set[tuple[int, int]] = set()
        for vaddr in set(items):
            section = self._section_at(vaddr)
            if section is None:
                continue
            low, high = section.vaddr, section.vaddr + section.size
            end = min(unnamed.end(vaddr), high)
            relocated.add((vaddr, end))
            present.add((low, high) if whole else (max(low, vaddr - _SLACK), min(high, end + _SLACK)))
        for low, high in merged(present):
            self._memory.copy(low, high)
        for low, high in merged(relocated):
            self._relocate(low, high)

    def _section_at(self, vaddr: int) -> Section | None:
        """Items are many, sections few: the last answer is mostly right."""
        last = self._last_section
        if last is None or not last.vaddr <= vaddr < last.vaddr + last.size:
            self._last_section = self._new.section_at(vaddr)
        return self._last_section

    def _put_range(self, low: int, high: int) -> None:
        self._memory.copy(low, high)
        self._relocate(low, high)

    def _relocate(self, low: int, high: int) -> None:
        for index in self._linker.targets.within(low, high):
            self._memory.put_word(int(self._linker.targets.vaddr[index]), self._linker.word(index).value)

    def _put_unwind_tables(self, tables: UnwindTables) -> None:
        self._memory.put(tables.start, tables.frames)
        for low, high in tables.ranges:
            self._put_range(low, high)
        for vaddr in tables.words:
            self._put_indirection(vaddr)
        base, places = self._linker.base, np.asarray(list(tables.pointers), dtype=np.int64)
        targets = [self._absolute(vaddr) for vaddr in tables.pointers.values()]
        values = np.asarray(targets, dtype=np.int64) - base - places
        self._memory.put_fields(places, values.astype(np.int32))

    def _put_indirection(self, vaddr: int) -> None:
        """A word that unwinding reads through (a personality routine's address, a type's)."""
        row, addend = self._linker.targets.rows.one_at(vaddr)
        kept = row >= 0 and not addend and self._homes.owner[row] != NEW
        if kept and self._new.entities.names[row].startswith(_REFERENCE):
            # The compiler's own word for this purpose; the loader filled in the old one.
            self._memory.put(vaddr, self._scene.read(int(self._homes.address[row]), 8))
        else:
            self._put_range(vaddr, vaddr + 8)

    def _absolute(self, vaddr: int) -> int:
        row, addend = self._linker.targets.rows.one_at(vaddr)
        if row >= 0 and int(self._new.entities.kind[row]) == Kind.FUNCTION:
            return int(self._linker.code[row]) + addend
        return self._linker.pointer(row, addend, vaddr).value


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same addresses in as few ranges as possible."""
    result: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if result and low <= result[-1][1]:
            result[-1] = (result[-1][0], max(high, result[-1][1]))
        else:
            result.append((low, high))
    return result
