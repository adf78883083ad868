"""From two builds and a process to a plan: what to place, what to edit, what to watch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Flags, Kind
from hotupgrade.errors import Refused
from hotupgrade.plan.assemble import assemble
from hotupgrade.plan.case import Case, open_case
from hotupgrade.plan.constants import ConstantUpdates, update_constants
from hotupgrade.plan.copies import present, startup
from hotupgrade.plan.edits import edit_entries
from hotupgrade.plan.entries import is_intact
from hotupgrade.plan.homes import NEW
from hotupgrade.plan.hooks import plan_hooks
from hotupgrade.plan.imports import OtherSlot, edit_imports
from hotupgrade.plan.memory import PAGE, pages_up
from hotupgrade.plan.model import Call, Comparison, Image, ModulePlan, Scene
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.patchwork import Patchwork
from hotupgrade.plan.refusals import refusals
from hotupgrade.plan.relink import Linker
from hotupgrade.plan.sanitizers import missing_run_times
from hotupgrade.plan.snapshot import Snapshot
from hotupgrade.plan.tls import TlsLayout, lay_out
from hotupgrade.plan.unnamed import Unnamed

_REACH = (1 << 31) - 16 * PAGE
_LOWEST, _HIGHEST = 1 << 16, 1 << 47


def footprint(new: Build) -> int:
    """Bytes of address space that an image of this build takes."""
    return pages_up(new.span)


def reach(images: Sequence[Image], size: int = 0) -> tuple[int, int]:
    """The absolute range [low, high) within which an image of ``size`` bytes must begin, so that 32-bit displacements
    lead from any place in it to any place in these images and back."""
    lowest = min(image.base for image in images)
    highest = max(image.base + pages_up(image.build.span) for image in images)
    low = max(highest - _REACH, _LOWEST)
    high = min(lowest + _REACH, _HIGHEST) - pages_up(size)
    return pages_up(low), max(high // PAGE * PAGE, 0)


def new_thread_locals(
    images: Sequence[Image], current: int, new: Build, comparisons: Sequence[Comparison], options: PlanOptions
) -> TlsLayout | None:
    """The room that new thread-locals need, if there are any.  :func:`make_plan` wants to know where they went, as
    offsets from the module's own block."""
    if not ((new.entities.kind == Kind.TLS) & (comparisons[0].old_of < 0)).any():
        return None  # each has its home in the loader's own image
    return lay_out(new, open_case(images, current, new, comparisons, options).selection.thread_locals)


def make_plan(
    module: str,
    images: Sequence[Image],
    current: int,
    new: Build,
    comparisons: Sequence[Comparison],
    scene: Scene,
    base: int,
    options: PlanOptions,
    *,
    tls_reserve: Mapping[int, int] | None = None,
    other_slots: Sequence[OtherSlot] = (),
) -> ModulePlan:
    """Everything that upgrading (or downgrading) ``module`` to ``new`` does to the process.

    ``base`` is where a new image may be placed; ``tls_reserve`` gives the offset, from the module's own thread-local
    block, of every new thread-local.

    Raises:
        Refused: with every reason that was found.
    """
    snapshot = Snapshot(scene)

    def intact(image: Image, row: int) -> bool:
        vaddr = int(image.build.entities.address[row])
        return is_intact(image.build.read(vaddr, 1), snapshot.read(image.base + vaddr, 1))

    case = open_case(images, current, new, comparisons, options, intact)
    if reasons := [*missing_run_times(new, scene), *refusals(case)]:
        raise Refused(*reasons)
    for index in range(len(images)):
        if _holds_all(case, index):
            plan = _Maker(module, case, snapshot, images[index].base, {}, index).make(other_slots)
            if plan is not None:
                return plan
    plan = _Maker(module, case, snapshot, base, tls_reserve or {}, None).make(other_slots)
    assert plan is not None
    return plan


def _holds_all(case: Case, index: int) -> bool:
    """Whether an image in the process is the new build, with every copy that is needed now."""
    image = case.images[index]
    if image.build.build_id != case.new.build_id:
        return False
    if index == 0:
        return True
    selection = case.selection
    missing = selection.functions & ~present(image, index)
    return not (missing.any() or selection.data.any() or selection.thread_locals)


class _Maker:
    """Makes a plan around one image: a new one at ``base``, or the one with index ``reused``."""

    def __init__(
        self, module: str, case: Case, scene: Snapshot, base: int, reserve: Mapping[int, int], reused: int | None
    ) -> None:
        self._module = module
        self._case = case
        self._scene = scene
        self._reused = reused
        self._reserve = reserve
        self._functions = self._functions_in_image()
        selection = dataclasses.replace(case.selection, functions=self._functions)
        self._linker = Linker(list(case.images), case.targets, case.homes, selection, scene, base, reserve)
        self._unnamed = Unnamed(case.targets)
        self._patchwork = Patchwork(scene.read)

    def make(self, other_slots: Sequence[OtherSlot]) -> ModulePlan | None:
        """None if the image to be reused lacks data that the plan needs."""
        case, linker, scene = self._case, self._linker, self._scene
        updates = update_constants(case.images, case.homes, linker, self._unnamed, scene, self._patchwork)
        if self._reused is not None and not self._has_unnamed(updates):
            return None
        entries = edit_entries(
            case.images, case.new, case.comparisons, linker.code, linker.function, scene, case.options, self._patchwork
        )
        foreign = edit_imports(case.images, case.comparisons, linker, other_slots, scene, case.options, self._patchwork)
        image = None
        if self._reused is None:
            image = assemble(
                linker,
                case.homes,
                case.selection,
                self._unnamed,
                updates.unnamed,
                scene,
                whole=case.options.whole,
            )
        if reasons := [*linker.refusals.values(), *entries.refusals, *foreign]:
            raise Refused(*reasons)
        return ModulePlan(
            module=self._module,
            image=image,
            placed=self._placed(),
            edits=self._patchwork.edits(),
            watches=tuple(entries.watches),
            constructors=self._constructors(),
            hooks=plan_hooks(case, linker.code.tolist(), linker.address.tolist()),
            functions=_function_names(case),
            objects=_object_names(case, updates),
            notes=tuple(updates.notes),
        )

    def _functions_in_image(self) -> Flags:
        if self._reused is None:
            return self._case.selection.functions
        if self._reused == 0:
            return np.zeros(len(self._case.new.entities), dtype=np.bool_)
        return present(self._case.images[self._reused], self._reused)

    def _has_unnamed(self, updates: ConstantUpdates) -> bool:
        return all(
            self._scene.read(self._linker.base + vaddr, len(content)) == content
            for vaddr in updates.unnamed
            if (content := self._unnamed.content(vaddr))
        )

    def _placed(self) -> Image:
        case = self._case
        if self._reused is not None:
            return case.images[self._reused]
        selection, owner = case.selection, case.homes.owner
        owned = (selection.functions & (owner == NEW)) | (selection.data & ~self._linker.copied)
        return Image(
            build=case.new,
            base=self._linker.base,
            placed=self._placed_rows(),
            owned=frozenset(np.flatnonzero(owned).tolist()) | frozenset(selection.thread_locals),
            tls_offsets={row: self._reserve[row] for row in selection.thread_locals if row in self._reserve},
        )

    def _placed_rows(self) -> frozenset[int] | None:
        functions = self._case.selection.functions
        everything = present(Image(self._case.new, self._linker.base), 1)
        return None if np.array_equal(functions, everything) else frozenset(np.flatnonzero(functions).tolist())

    def _constructors(self) -> tuple[Call, ...]:
        """New constructors in their order; with an image that is back they ran when it was new."""
        if self._reused is not None:
            return ()
        calls: list[Call] = []
        for vaddr in self._case.new.init_array:
            row, addend = self._case.targets.rows.one_at(vaddr)
            if row >= 0 and not addend and self._case.homes.owner[row] == NEW and self._functions[row]:
                calls.append(Call(self._linker.base + vaddr, self._case.new.entities.names[row]))
        return tuple(calls)


def _function_names(case: Case) -> dict[str, tuple[str, ...]]:
    """Against the build that runs now."""
    comparison = case.comparisons[case.current]
    if comparison.old.build_id == case.new.build_id:
        return {"changed": (), "dragged": (), "added": (), "removed": ()}
    new, old = case.new, comparison.old
    dragged = np.zeros(len(new.entities), dtype=np.bool_)
    dragged[list(comparison.dragged)] = True
    functions = new.entities.kind == Kind.FUNCTION
    return {
        "changed": _names(new, comparison.replaced & ~dragged & ~startup(new)),
        "dragged": _names(new, comparison.replaced & dragged),
        "added": _names(new, functions & (comparison.old_of < 0) & ~startup(new)),
        "removed": _names(old, (old.entities.kind == Kind.FUNCTION) & (comparison.new_of < 0) & ~startup(old)),
    }


def _object_names(case: Case, updates: ConstantUpdates) -> dict[str, tuple[str, ...]]:
    comparison = case.comparisons[case.current]
    fresh = case.selection.data.copy()
    fresh[list(case.selection.thread_locals)] = True
    names, kinds = case.new.entities.names, case.new.entities.kind
    initial = {names[row] for _, row in comparison.initial_changed if int(kinds[row]) in (Kind.OBJECT, Kind.TLS)}
    return {
        "new": _names(case.new, fresh),
        "resized": tuple(sorted({names[row] for _, row in comparison.resized})),
        "initial-changed": tuple(sorted(initial)),
        "constants-updated": tuple(sorted(set(updates.names))),
    }


def _names(build: Build, flags: Flags) -> tuple[str, ...]:
    return tuple(sorted({build.entities.names[row] for row in np.flatnonzero(flags).tolist()}))
