"""What the words that the loader fills in name: a row of the build's entities, or unnamed data."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import I32, I64, Kind, Slot
from hotupgrade.binary.relocations import Relocation
from hotupgrade.plan.rows import Rows

BY_ADDRESS = (Relocation.RELATIVE, Relocation.IRELATIVE)
BY_SYMBOL = (Relocation.ABS64, Relocation.GLOB_DAT, Relocation.JUMP_SLOT, Relocation.COPY)
THREAD_LOCAL = (Relocation.DTPMOD64, Relocation.DTPOFF64, Relocation.TPOFF64, Relocation.TLSDESC)


class Targets:
    """The dynamic relocations of a build with their targets resolved to rows.

    ``row`` is -1 for what is not defined here or has no name; ``addend`` counts from the start of the row.
    ``container`` is the row that holds the relocated word itself.  ``doubtful`` is -1 but for a word that may point to
    unnamed data or to the end of the object before them, which it names then.
    """

    def __init__(self, build: Build, rows: Rows) -> None:
        relocations = build.dynamic_relocations
        self.build = build
        self.rows = rows
        self.vaddr: I64 = relocations.vaddr.astype(np.int64)
        self.type: I32 = relocations.type.astype(np.int32)
        self.number: I32 = relocations.symbol.astype(np.int32)
        self.plain_addend: I64 = relocations.addend.astype(np.int64)
        self.container, self.offset = rows.at(self.vaddr)
        self.by_address = np.isin(self.type, BY_ADDRESS)
        row, addend = rows.at(np.where(self.by_address, self.plain_addend, -1))
        self.row: I32 = np.where(self.by_address, row, -1)
        self.addend: I64 = np.where(self.by_address, addend, self.plain_addend)
        for index in np.flatnonzero(np.isin(self.type, BY_SYMBOL)).tolist():
            self.row[index] = rows.of_symbol(int(self.number[index]))
        self.doubtful: I32 = np.full(len(self.vaddr), -1, dtype=np.int32)
        self._attribute_ends()

    def _attribute_ends(self) -> None:
        """Pointers to where an object ends and nothing named begins.

        A container that also points into the object means its end, if only padding follows; one that does not means
        what follows, if that is more than padding.
        """
        nameless = np.flatnonzero(self.by_address & (self.row < 0))
        ending = self.rows.ending_at(self.plain_addend[nameless])
        pointing = set(zip(self.container.tolist(), self.row.tolist(), strict=True))
        for index, row in zip(nameless[ending >= 0].tolist(), ending[ending >= 0].tolist(), strict=True):
            uses_both = (int(self.container[index]), row) in pointing and self.container[index] >= 0
            followed = self._something_at(int(self.plain_addend[index]))
            if followed and not uses_both:
                continue
            if followed or not (uses_both or self._is_writable(row)):
                self.doubtful[index] = row
                continue
            self.row[index] = row
            self.addend[index] = int(self.build.entities.size[row])

    def _something_at(self, vaddr: int) -> bool:
        """Whether more than padding begins at an address."""
        bounds = self.build.boundaries
        place = int(np.searchsorted(bounds, vaddr, side="right"))
        return place < len(bounds) and any(self.build.read(vaddr, int(bounds[place]) - vaddr))

    def _is_writable(self, row: int) -> bool:
        """Nothing unnamed follows there."""
        return int(self.build.entities.kind[row]) == Kind.OBJECT

    def within(self, low: int, high: int) -> range:
        """Indices of the relocations of words in [low, high)."""
        first, last = np.searchsorted(self.vaddr, (low, high))
        return range(int(first), int(last))

    def within_rows(self, wanted: Iterable[int]) -> list[int]:
        entities = self.build.entities
        found: list[int] = []
        for row in wanted:
            low = int(entities.address[row])
            found += self.within(low, low + int(entities.size[row]))
        return found

    def of_slot(self, slot: Slot) -> int | None:
        """The relocation of a GOT slot; None when the linker filled it in."""
        found = self.within(slot.vaddr, slot.vaddr + 1)
        return found[0] if found else None


def is_pair(slot: Slot) -> bool:
    """Whether the slot and the word behind it belong together (general and local dynamic, TLS descriptors)."""
    return slot.relocation in (Relocation.DTPMOD64, Relocation.TLSDESC)


def thread_local_offset(targets: Targets, slot: Slot) -> int | None:
    """The TLS offset in this build's block that a slot (or pair of slots) names.

    None: it names a variable of another module, or nothing thread-local.  0 may also mean the block itself: see
    :func:`hotupgrade.plan.tls.is_whole_block`.
    """
    if slot.relocation not in THREAD_LOCAL:
        return None
    if slot.symbol:
        index = targets.of_slot(slot)
        row = targets.rows.of_symbol(int(targets.number[index])) if index is not None else -1
        return int(targets.build.entities.address[row]) + slot.addend if row >= 0 else None
    if slot.relocation != Relocation.DTPMOD64:
        return slot.addend
    return int.from_bytes(targets.build.read(slot.vaddr + 8, 8), "little")
