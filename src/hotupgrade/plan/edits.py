"""Edits at the entries of functions, and the ranges in which no thread may stand while they are made.

Every copy of a function that the process holds, in whatever image, must lead to the copy that is to run now.  A copy
that means the same may go on running where it is.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import I32, I64, TargetKind
from hotupgrade.errors import Reason
from hotupgrade.plan.copies import present, startup
from hotupgrade.plan.entries import JUMP_SIZE, OutOfReach, branching_into_entry, has_room, jump, jump_target
from hotupgrade.plan.homes import partners
from hotupgrade.plan.model import Comparison, EditKind, Image, Scene, Watch
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.patchwork import Patchwork
from hotupgrade.plan.pieces import Indices, with_pieces
from hotupgrade.plan.rows import Rows


@dataclass
class EntryEdits:
    watches: list[Watch] = field(default_factory=list)
    refusals: list[Reason] = field(default_factory=list)


class _State(enum.Enum):
    """What stands at the entry of a copy."""

    ORIGINAL = enum.auto()
    OUR_JUMP = enum.auto()
    FOREIGN = enum.auto()


def edit_entries(
    images: Sequence[Image],
    new: Build,
    comparisons: Sequence[Comparison],
    active: I64,
    relinked: Callable[[int], bytes],
    scene: Scene,
    options: PlanOptions,
    patchwork: Patchwork,
) -> EntryEdits:
    """Adds the jumps to ``patchwork``.

    ``active`` is the absolute address at which each row of ``new`` is to run.  ``relinked`` gives the original bytes of
    a function of a later image whose build is ``new``.
    """
    result = EntryEdits()
    entries = _KnownEntries(images)
    for index in range(len(images)):
        _ImageEntries(images, index, new, comparisons[index], active, relinked, scene, options, entries).edit(
            patchwork, result
        )
    return result


class _ImageEntries:
    """The copies of functions in one image."""

    def __init__(
        self,
        images: Sequence[Image],
        index: int,
        new: Build,
        comparison: Comparison,
        active: I64,
        relinked: Callable[[int], bytes],
        scene: Scene,
        options: PlanOptions,
        entries: _KnownEntries,
    ) -> None:
        self._image = images[index]
        self._index = index
        self._build = self._image.build
        self._new = new
        self._is_new = self._build.build_id == new.build_id
        self._comparison = comparison
        self._active = active
        self._relinked = relinked
        self._scene = scene
        self._options = options
        self._entries = entries
        self._present = present(self._image, index)
        self._partner = new_rows(self._image, new, comparison)
        self._address = self._image.base + self._build.entities.address.astype(np.int64)
        self._replaced = np.zeros_like(self._present) if self._is_new else self._present & comparison.old_replaced
        self._replaced = self._replaced & ~startup(self._build)
        self._led = self._replaced & comparison.led_old

    def edit(self, patchwork: Patchwork, result: EntryEdits) -> None:
        every = np.flatnonzero(self._present)
        redirected_too = self._unchanged_to_redirect()
        for row, state in zip(every.tolist(), self._states(every), strict=True):
            self._edit_one(row, state, row in redirected_too, patchwork, result)
        self._watch_replaced(result)

    def _edit_one(self, row: int, state: _State, also: bool, patchwork: Patchwork, result: EntryEdits) -> None:
        entry, name = int(self._address[row]), self._build.entities.names[row]
        if state is _State.OUR_JUMP and self._is_to_be_itself(row):
            result.refusals.append(_overtaken(name, entry))
            return
        try:
            wanted = self._wanted(row, state, also)
        except OutOfReach:
            result.refusals.append(_out_of_reach(name, entry))
            return
        if wanted is None or wanted == self._scene.read(entry, len(wanted)):
            return
        if state is _State.FOREIGN:
            if not also:
                result.refusals.append(_foreign(name, entry))
            return
        patchwork.add(entry, wanted, EditKind.JUMP, name)
        if not self._replaced[row] and state is _State.ORIGINAL:
            result.watches.append(Watch(entry, entry + JUMP_SIZE, name))

    def _is_to_be_itself(self, row: int) -> bool:
        """Whether old code may call this copy and must find what it was compiled with; only the loader's image and the
        new one can be given their own bytes again."""
        return bool(self._index) and not self._is_new and bool(self._replaced[row] and not self._led[row])

    def _wanted(self, row: int, state: _State, also: bool) -> bytes | None:
        """The bytes to stand at this entry; None: whatever is there is right."""
        entry = int(self._address[row])
        partner = int(self._partner[row])
        target = int(self._active[partner]) if partner >= 0 else entry
        if target != entry and (bool(self._led[row]) or also):
            return jump(entry, target)
        if state is not _State.OUR_JUMP:
            return None
        if self._index == 0:
            return self._build.read(int(self._build.entities.address[row]), JUMP_SIZE)
        if self._is_new:
            return self._relinked(row)[:JUMP_SIZE]
        # The original bytes of a later image are known only while it is the new one again: lead on to what is equal.
        return jump(entry, target) if target != entry else None

    def _unchanged_to_redirect(self) -> frozenset[int]:
        """With ``--whole``: unchanged functions that get a jump too, where one fits and running code does not mind.

        Only homes: other copies are entered from their own image alone, and what is equal may run there to its end.
        """
        if not self._options.whole or self._is_new:
            return frozenset()
        unchanged = self._present & self._comparison.plain_old & ~self._replaced & (self._partner >= 0)
        if self._index:
            unchanged &= np.isin(np.arange(len(unchanged)), sorted(self._image.owned))
        in_the_way = branching_into_entry(self._build, unchanged)
        return frozenset(
            row for row in np.flatnonzero(unchanged).tolist() if row not in in_the_way and has_room(self._build, row)
        )

    def _watch_replaced(self, result: EntryEdits) -> None:
        """Frames of replaced functions, and of the pieces that run in such frames."""
        for row in np.flatnonzero(with_pieces(self._build, self._replaced) & self._present).tolist():
            low = int(self._address[row])
            result.watches.append(Watch(low, low + int(self._build.extent[row]), self._build.entities.names[row]))

    def _states(self, rows: Indices) -> list[_State]:
        vaddrs = self._build.entities.address[rows].astype(np.int64).tolist()
        extents = self._build.extent[rows].tolist()
        present = [self._scene.read(self._image.base + vaddr, JUMP_SIZE) for vaddr in vaddrs]
        moving = self._moving_bytes(rows)
        return [
            self._state(row, vaddr, content, moving.get(row, frozenset()), extent)
            for row, vaddr, extent, content in zip(rows.tolist(), vaddrs, extents, present, strict=True)
        ]

    def _state(self, row: int, vaddr: int, content: bytes, moving: frozenset[int], extent: int) -> _State:
        original = self._build.read(vaddr, JUMP_SIZE)
        if content == original and not moving:
            return _State.ORIGINAL  # nearly all
        target = jump_target(self._image.base + vaddr, content)
        compared = range(JUMP_SIZE if self._index == 0 else min(JUMP_SIZE, extent))
        if any(content[place] != original[place] and place not in moving for place in compared):
            ours = target is not None and self._entries.is_copy(target, self._index)
            return _State.OUR_JUMP if ours else _State.FOREIGN
        # A function may begin with a jump of its own, to another function; relinking has changed where it leads.
        names = None if self._build.bare else self._build.entities.aliases[row]  # made up, they differ between builds
        ours = bool(moving) and target is not None and self._entries.is_copy(target, self._index, names)
        return _State.OUR_JUMP if ours else _State.ORIGINAL

    def _moving_bytes(self, rows: Indices) -> dict[int, frozenset[int]]:
        """Bytes among the first of an entry that relinking may have changed (never in the loader's image)."""
        if self._index == 0:
            return {}
        references = self._build.references
        wanted = np.zeros(len(self._present), dtype=np.bool_)
        wanted[rows] = True
        function = np.maximum(references.function, 0)
        offset = references.position.astype(np.int64) - self._build.entities.address[function].astype(np.int64)
        near = (references.function >= 0) & wanted[function] & (offset < JUMP_SIZE)
        near &= references.target_kind == TargetKind.ENTITY
        found: dict[int, set[int]] = {}
        for index in np.flatnonzero(near).tolist():
            found.setdefault(int(function[index]), set()).update(range(int(offset[index]), int(offset[index]) + 4))
        return {row: frozenset(places) for row, places in found.items()}


class _KnownEntries:
    """Entry addresses of all copies of all functions in the process: where a jump of ours may lead."""

    def __init__(self, images: Sequence[Image]) -> None:
        self._images = [(image, Rows(image.build), present(image, index)) for index, image in enumerate(images)]

    def is_copy(self, address: int, but: int, names: Sequence[str] | None = None) -> bool:
        """Whether another image than ``but`` has a function (of one of these names) at this address."""
        for index, (image, rows, there) in enumerate(self._images):
            if index == but or not image.base <= address < image.base + image.build.span:
                continue
            row, addend = rows.one_at(address - image.base)
            if row >= 0 and addend == 0 and there[row]:
                return names is None or bool(_stems(image.build.entities.aliases[row]) & _stems(names))
        return False


def entries_without_room(
    images: Sequence[Image], new: Build, comparisons: Sequence[Comparison]
) -> list[tuple[int, int]]:
    """(index of image, row) of the replaced functions whose entry cannot hold a jump."""
    found: list[tuple[int, int]] = []
    for index, (image, comparison) in enumerate(zip(images, comparisons, strict=True)):
        if image.build.build_id == new.build_id:
            continue
        rows = present(image, index) & comparison.led_old & ~startup(image.build)
        found += [(index, row) for row in np.flatnonzero(rows).tolist() if not has_room(image.build, row)]
    return found


def new_rows(image: Image, new: Build, comparison: Comparison) -> I32:
    """The row of ``new`` that is paired with each row of the image's build."""
    if image.build.build_id == new.build_id:
        return partners(image, new, comparison)
    return comparison.new_of


def _stems(names: Sequence[str]) -> frozenset[str]:
    return frozenset(name.split(".")[0].split("@")[0] for name in names)


def _out_of_reach(name: str, entry: int) -> Reason:
    return Reason("out-of-reach", name, f"{name} at {entry:#x} is more than 2 GiB away from its new copy")


def _overtaken(name: str, entry: int) -> Reason:
    return Reason(
        "entry-lost",
        name,
        f"old code that the new build does not have may yet call {name}, whose first bytes at {entry:#x} an earlier"
        " upgrade replaced; roll that back first",
    )


def _foreign(name: str, entry: int) -> Reason:
    return Reason(
        "foreign-edit",
        name,
        f"the first bytes of {name} at {entry:#x} are neither those of the running build nor a jump of ours; a debugger"
        " or another patching tool changed them, and must take that back first",
    )
