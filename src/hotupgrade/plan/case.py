"""Everything that can be known of an upgrade without the process: the basis of verdict and plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Flags, TargetKind
from hotupgrade.errors import Reason, Refused
from hotupgrade.plan import tls
from hotupgrade.plan.homes import Homes, find_homes
from hotupgrade.plan.model import Comparison, Image
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.pieces import rows_named
from hotupgrade.plan.rows import Rows
from hotupgrade.plan.select import Intact, Selection, select
from hotupgrade.plan.targets import Targets


@dataclass(frozen=True)
class Case:
    images: tuple[Image, ...]
    current: int
    new: Build
    comparisons: tuple[Comparison, ...]
    options: PlanOptions
    targets: Targets
    homes: Homes
    selection: Selection

    @property
    def running(self) -> Comparison:
        """The new build against the one that runs."""
        return self.comparisons[self.current]

    @property
    def nothing_changes(self) -> bool:
        return self.images[self.current].build.build_id == self.new.build_id

    def name(self, row: int) -> str:
        return self.new.entities.names[row]

    def described(self, row: int) -> str:
        """The name of an object, with the source file of a local one."""
        if self.new.bare and self.new.unbounded[row]:
            return self._unnamed(row)
        file = self.new.entities.files[row]
        return f"{self.name(row)} ({file})" if file else self.name(row)

    def _unnamed(self, row: int) -> str:
        vaddr = int(self.new.entities.address[row])
        section = self.new.section_at(vaddr)
        name = self.name(row)
        known = f" ({name})" if "@" not in name else ""
        return f"an unnamed object of {section.name if section else 'no section'} at {vaddr:#x}{known}"

    @cached_property
    def used(self) -> Flags:
        """Rows of data and thread-locals that the new image uses."""
        every, index = self.selection.every, self.selection.references
        flags = self.selection.data.copy()
        named = index[every.target_kind[index] == TargetKind.ENTITY]
        flags[rows_named(every)[named]] = True
        for slot in self.selection.slots:
            relocation = self.targets.of_slot(self.new.slots[slot])
            if relocation is not None and self.targets.row[relocation] >= 0:
                flags[self.targets.row[relocation]] = True
            if (row := tls.row_of_slot(self.targets, self.new.slots[slot])) >= 0:
                flags[row] = True
        return flags

    def users(self, row: int) -> list[int]:
        """All functions of the new build that use a row, directly or through a slot."""
        every = self.selection.every
        uses = (every.target_kind == TargetKind.ENTITY) & (every.entity == row)
        words = self.targets.vaddr[self.targets.row == row].tolist()
        slots = [index for vaddr in words if (index := self.new.slot_at(vaddr)) is not None]
        slots += [index for index, slot in enumerate(self.new.slots) if tls.row_of_slot(self.targets, slot) == row]
        uses |= (every.target_kind == TargetKind.GOT) & np.isin(every.entity, slots)
        return [user for user in np.unique(every.function[uses]).tolist() if user >= 0]


def open_case(
    images: Sequence[Image],
    current: int,
    new: Build,
    comparisons: Sequence[Comparison],
    options: PlanOptions,
    intact: Intact | None = None,
) -> Case:
    """``intact``: see :func:`hotupgrade.plan.select.needed_functions`.

    Raises:
        Refused: the new build has the build-id of one in the process, but is another.
    """
    for image in images:
        _require_no_clash(image.build, new)
    targets = Targets(new, Rows(new))
    homes = find_homes(images, current, new, comparisons)
    selection = select(images, current, targets, comparisons, homes, options, intact)
    return Case(tuple(images), current, new, tuple(comparisons), options, targets, homes, selection)


def _require_no_clash(present: Build, new: Build) -> None:
    """A build in the process is known again by its build-id, and then taken to be the same, row by row."""
    if present is new or present.build_id != new.build_id or present.fingerprint == new.fingerprint:
        return
    if present.bare and new.bare and _same_rows(present, new):
        return  # one was seen with its symbols, or with other files beside it, which do not count here
    what = "symbols" if present.contents == new.contents else "contents"
    text = f"{new.label} has the build-id of a build in the process ({present.label}) but other {what}; " + (
        "use the very file that was used before" if what == "symbols" else "link it with a build-id of its own"
    )
    raise Refused(Reason("build-id-clash", new.label, text))


def _same_rows(one: Build, other: Build) -> bool:
    columns = ("address", "size", "kind", "exported")
    same = all(np.array_equal(getattr(one.entities, name), getattr(other.entities, name)) for name in columns)
    return same and one.by_name == other.by_name and one.contents == other.contents
