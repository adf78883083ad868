"""Constant tables keep their home and get the contents of the new build.

Only what differs is edited.  A pointer to a string counts as equal when the string says the same, wherever it stands.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Flags
from hotupgrade.binary.relocations import Relocation
from hotupgrade.errors import Reason
from hotupgrade.plan.homes import NEW, READ_ONLY, Homes, unsized
from hotupgrade.plan.model import EditKind, Image, Scene
from hotupgrade.plan.patchwork import Patchwork
from hotupgrade.plan.relink import NAMELESS, Linker
from hotupgrade.plan.rows import Rows
from hotupgrade.plan.targets import Targets
from hotupgrade.plan.unnamed import Unnamed, equal


@dataclass
class ConstantUpdates:
    names: list[str] = field(default_factory=list)
    unnamed: list[int] = field(default_factory=list)  # vaddrs in the new build that updated pointers lead to
    notes: list[Reason] = field(default_factory=list)


def update_constants(
    images: Sequence[Image], homes: Homes, linker: Linker, ours: Unnamed, scene: Scene, patchwork: Patchwork
) -> ConstantUpdates:
    """Adds the edits of all constants that have a home to ``patchwork``."""
    return _Updater(images, homes, linker, ours, scene, patchwork).run()


class _Updater:
    def __init__(
        self, images: Sequence[Image], homes: Homes, linker: Linker, ours: Unnamed, scene: Scene, patchwork: Patchwork
    ) -> None:
        self._images = images
        self._homes = homes
        self._linker = linker
        self._new = linker.new
        self._ours = ours
        self._scene = scene
        self._patchwork = patchwork
        self._placed: dict[int, _Placed] = {}
        self._words = _words_by_row(linker.targets)
        self._result = ConstantUpdates()

    def run(self) -> ConstantUpdates:
        entities = self._new.entities
        at_home = np.isin(entities.kind, READ_ONLY) & (self._homes.owner != NEW) & (entities.size > 0)
        at_home &= ~self._copied()
        for index, image in enumerate(self._images):
            rows = np.flatnonzero(at_home & (self._homes.owner == index))
            present = _read_rows(image, self._homes.partner[rows].tolist(), self._scene)
            for row, current in zip(rows.tolist(), present, strict=True):
                self._update(row, current)
        return self._result

    def _copied(self) -> Flags:
        """A program's copies of other modules' constants: their contents are not the program's to give."""
        targets = self._linker.targets
        flags = np.zeros(len(self._new.entities), dtype=np.bool_)
        flags[targets.container[(targets.type == Relocation.COPY) & (targets.container >= 0)]] = True
        return flags

    def _update(self, row: int, current: bytes) -> None:
        wanted = self._new.read(int(self._new.entities.address[row]), len(current))
        words = self._words.get(row)
        if words is not None:
            wanted = self._with_pointers(row, wanted, current, words)
        if wanted == current:
            return
        name = self._new.entities.names[row]
        self._result.names.append(name)
        for home in self._places(row, current):
            self._patchwork.add(home, wanted, EditKind.CONSTANT, name)

    def _with_pointers(self, row: int, wanted: bytes, current: bytes, words: list[int]) -> bytes:
        content = bytearray(wanted)
        for word in words:
            offset = int(self._linker.targets.offset[word])
            if offset + 8 <= len(content):
                present: int = struct.unpack_from("<Q", current, offset)[0]
                struct.pack_into("<Q", content, offset, self._pointer(row, offset, word, present))
        return bytes(content)

    def _pointer(self, row: int, offset: int, word: int, present: int) -> int:
        """The pointer to be there; the one that is there, if it is as good."""
        targets = self._linker.targets
        unbound = targets.type[word] == Relocation.ABS64 and not self._linker.can_bind(int(targets.number[word]))
        if unbound and self._same_symbol(row, offset, word):
            return present
        vaddr = int(targets.plain_addend[word])
        if present == self._linker.end_meant(word) and self._says_the_same(present, vaddr):
            return present  # right in both meanings
        wanted = self._linker.word(word)
        if wanted.unnamed == NAMELESS:
            return wanted.value
        if self._says_the_same(present, wanted.unnamed):
            return present
        original = self._original(row, offset)
        if original is not None and self._says_the_same(original, wanted.unnamed):
            return original
        self._result.unnamed.append(wanted.unnamed)
        return wanted.value

    def _says_the_same(self, pointer: int, vaddr: int) -> bool:
        for index, image in enumerate(self._images):
            if image.base <= pointer < image.base + image.build.span:
                placed = self._image(index)
                theirs = pointer - image.base
                return placed.holds_unnamed(theirs) and equal(self._ours, vaddr, placed.unnamed, theirs)
        return False

    def _original(self, row: int, offset: int) -> int | None:
        """The address that the pointer had when its table was placed."""
        owner = int(self._homes.owner[row])
        placed = self._image(owner)
        word = placed.word_in(int(self._homes.partner[row]), offset)
        if word is None or not placed.targets.by_address[word]:
            return None
        return self._images[owner].base + int(placed.targets.plain_addend[word])

    def _same_symbol(self, row: int, offset: int, word: int) -> bool:
        placed = self._image(int(self._homes.owner[row]))
        other = placed.word_in(int(self._homes.partner[row]), offset)
        if other is None:
            return False
        return _symbol(placed.targets, other) == _symbol(self._linker.targets, word)

    def _places(self, row: int, current: bytes) -> list[int]:
        """The home, and the copy that the program made of it at start (COPY relocation), if there is one."""
        home = int(self._linker.address[row])
        bound = self._linker.bound_data(row)
        if bound is None or bound == home:
            return [home]
        if self._scene.read(bound, len(current)) == current:
            return [home, bound]
        name = self._new.entities.names[row]
        self._result.notes.append(
            Reason(
                "interposed-constant",
                name,
                f"{name} has new contents, but the process uses another module's definition, which stays as it is",
            )
        )
        return [home]

    def _image(self, index: int) -> _Placed:
        if index not in self._placed:
            self._placed[index] = _Placed(self._images[index].build)
        return self._placed[index]


class _Placed:
    """Unnamed data and relocations of a build that is in the process; made only when a pointer has to be looked at."""

    def __init__(self, build: Build) -> None:
        self.targets = Targets(build, Rows(build))
        self.unnamed = Unnamed(self.targets)
        self._words = _words_by_row(self.targets)
        self._unsized = unsized(build)

    def holds_unnamed(self, vaddr: int) -> bool:
        row, _ = self.targets.rows.one_at(vaddr)
        return row < 0 or bool(self._unsized[row])

    def word_in(self, row: int, offset: int) -> int | None:
        for word in self._words.get(row, []):
            if int(self.targets.offset[word]) == offset:
                return word
        return None


def _symbol(targets: Targets, word: int) -> tuple[str, str, int]:
    symbol = targets.build.dynamic_symbols[int(targets.number[word])]
    return symbol.name, symbol.version, int(targets.plain_addend[word])


def _words_by_row(targets: Targets) -> dict[int, list[int]]:
    """The relocated words of every constant."""
    kinds = targets.build.entities.kind[np.maximum(targets.container, 0)]
    found: dict[int, list[int]] = {}
    for word in np.flatnonzero((targets.container >= 0) & np.isin(kinds, READ_ONLY)).tolist():
        found.setdefault(int(targets.container[word]), []).append(word)
    return found


def _read_rows(image: Image, rows: list[int], scene: Scene) -> list[bytes]:
    """Present contents of rows of an image."""
    address, size = image.build.entities.address, image.build.entities.size
    return [scene.read(image.base + int(address[row]), int(size[row])) for row in rows]
