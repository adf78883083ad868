"""Import slots of other modules: with ``--imports`` they lead straight to the new copies."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hotupgrade.errors import Reason
from hotupgrade.plan.copies import present
from hotupgrade.plan.edits import new_rows
from hotupgrade.plan.model import Comparison, EditKind, Image, Scene
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.patchwork import Patchwork
from hotupgrade.plan.relink import Linker
from hotupgrade.plan.rows import Rows

OtherSlot = tuple[int, int, str]  # address of the slot, its present value, what it is


def edit_imports(
    images: Sequence[Image],
    comparisons: Sequence[Comparison],
    linker: Linker,
    others: Sequence[OtherSlot],
    scene: Scene,
    options: PlanOptions,
    patchwork: Patchwork,
) -> list[Reason]:
    """Adds the edits of other modules' call slots that lead to functions of this module.

    Only slots that are called through may be given: a slot whose value is compared must keep the home.
    """
    if not others:
        return []
    finder = _Finder(images, comparisons, linker)
    refusals: list[Reason] = []
    for address, value, what in others:
        row = finder.row_at(value)
        if row is None:
            continue
        direct = options.imports and bool(linker.new.entities.exported[row])
        wanted = int(linker.code[row] if direct else linker.address[row])
        if wanted == value:
            continue
        if address % 8 or scene.read(address, 8) != struct.pack("<Q", value):
            refusals.append(
                Reason("foreign-edit", what, f"the import slot {what} at {address:#x} changed while it was looked at")
            )
            continue
        patchwork.add(address, struct.pack("<Q", wanted), EditKind.IMPORT, what)
    return refusals


class _Finder:
    """The new build's row for the address of any copy of a function."""

    def __init__(self, images: Sequence[Image], comparisons: Sequence[Comparison], linker: Linker) -> None:
        self._images = [
            (image, Rows(image.build), present(image, index), new_rows(image, linker.new, comparison))
            for index, (image, comparison) in enumerate(zip(images, comparisons, strict=True))
        ]

    def row_at(self, address: int) -> int | None:
        for image, rows, there, partner in self._images:
            if image.base <= address < image.base + image.build.span:
                row, addend = rows.one_at(address - image.base)
                if row >= 0 and not addend and there[row] and partner[row] >= 0:
                    return int(partner[row])
        return None
