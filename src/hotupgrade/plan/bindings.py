"""What the loader bound: the values of GOT slots, seen through the image that the loader itself placed."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Slot
from hotupgrade.binary.relocations import PLT_SECTIONS, Relocation
from hotupgrade.plan.copies import present
from hotupgrade.plan.model import Image, Scene
from hotupgrade.plan.rows import Rows

Key = tuple[str, str]


class Bindings:
    """Symbols as image 0 sees them.  Addresses of copies in later images are given as the homes of their functions."""

    def __init__(self, images: Sequence[Image], scene: Scene) -> None:
        self._scene = scene
        self._first = images[0]
        self._slots: dict[int, dict[Key, Slot]] = {}
        for slot in self._first.build.slots:
            if slot.symbol:
                self._slots.setdefault(slot.relocation, {}).setdefault((slot.symbol, slot.version), slot)
        self._stub_of_slot = {index: vaddr for vaddr, index in self._first.build.plt_slot.items()}
        self._stubs = _plt_ranges(self._first)
        self._later = [_Copies(image, index) for index, image in enumerate(images) if index]
        self._known: dict[Key, int | None] = {}

    def address(self, symbol: str, version: str) -> int | None:
        """The address that the symbol is bound to, as it is compared; None where nobody defines it.

        Slots for calls come last: with ``--imports`` they may lead past the home of another module's function.
        """
        key = (symbol, version)
        if key not in self._known:
            self._known[key] = self._find(key)
        return self._known[key]

    def callee(self, symbol: str, version: str) -> int | None:
        """Where a call of the symbol leads, if the loader has bound a slot of image 0 for it already."""
        value = self.word(Relocation.JUMP_SLOT, symbol, version)
        if value is None or self.in_stubs(value):
            value = self.word(Relocation.GLOB_DAT, symbol, version)
        return None if value is None else self.home_of(value)

    def stub(self, symbol: str, version: str) -> int | None:
        """The address of image 0's own PLT stub for this symbol: as good as the function itself for calls."""
        slot = self._slots.get(Relocation.JUMP_SLOT, {}).get((symbol, version))
        index = self._first.build.slot_at(slot.vaddr) if slot is not None else None
        vaddr = self._stub_of_slot.get(index) if index is not None else None
        return None if vaddr is None else self._first.base + vaddr

    def word(self, relocation: Relocation, symbol: str, version: str) -> int | None:
        """The content of image 0's slot with this relocation for this symbol."""
        slot = self._slots.get(relocation, {}).get((symbol, version))
        return None if slot is None else self.word_at(slot.vaddr)

    def slot(self, relocation: Relocation, symbol: str, version: str) -> Slot | None:
        return self._slots.get(relocation, {}).get((symbol, version))

    def slots(self, relocation: Relocation) -> list[Slot]:
        """All slots of image 0 with this relocation."""
        return [slot for slot in self._first.build.slots if slot.relocation == relocation]

    def word_at(self, vaddr: int) -> int:
        """The content of a slot of image 0."""
        value: int = struct.unpack("<Q", self._scene.read(self._first.base + vaddr, 8))[0]
        return value

    def in_stubs(self, address: int) -> bool:
        """Whether an address lies in image 0's procedure linkage table: a slot that holds it is not bound yet."""
        return any(low <= address < high for low, high in self._stubs)

    def home_of(self, address: int) -> int:
        """The address itself, or the home if it is a function's copy in a later image of this module."""
        for copies in self._later:
            if (row := copies.row_at(address)) is not None:
                return self._home_by_name(copies.build, row, address)
        return address

    def _find(self, key: Key) -> int | None:
        found = self.word(Relocation.GLOB_DAT, *key)
        if found is None:
            found = self._scene.resolve(*key)
        return self.callee(*key) if found is None else self.home_of(found)

    def _home_by_name(self, build: Build, row: int, address: int) -> int:
        for name in build.entities.aliases[row]:
            home = self._first.build.by_name.get(name)
            if home is not None:
                return self._first.base + int(self._first.build.entities.address[home])
        return address


class _Copies:
    """Entry addresses of the function copies in one later image."""

    def __init__(self, image: Image, index: int) -> None:
        self.build = image.build
        self._low, self._high = image.base, image.base + image.build.span
        self._base = image.base
        self._present = present(image, index)
        self._rows = Rows(image.build)

    def row_at(self, address: int) -> int | None:
        if not self._low <= address < self._high:
            return None
        row, addend = self._rows.one_at(address - self._base)
        return row if row >= 0 and addend == 0 and self._present[row] else None


def _plt_ranges(image: Image) -> list[tuple[int, int]]:
    sections = (image.build.sections.get(name) for name in PLT_SECTIONS)
    return [(image.base + one.vaddr, image.base + one.vaddr + one.size) for one in sections if one is not None]
