"""Which functions an image holds copies of, and which functions can be copied at all."""

from __future__ import annotations

import re
from weakref import WeakKeyDictionary

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import I64, THREAD_LOCAL_FORMS, Flags, Kind, TargetKind
from hotupgrade.plan.boundary import end_pointers
from hotupgrade.plan.model import Image
from hotupgrade.plan.pieces import drawing_in

# What the compiler's start files bring along: runs once, in the loader's image, and is never placed again.
STARTUP = frozenset(
    {
        "_init",
        "_fini",
        "_start",
        "_dl_relocate_static_pie",
        "deregister_tm_clones",
        "register_tm_clones",
        "__do_global_dtors_aux",
        "frame_dummy",
    }
)
# What a sanitizer adds to tell its run time of the module's variables, at start and at exit: of those that the loader's
# image holds, whatever was upgraded since.  (gcc; clang)
REGISTERS = re.compile(r"(_sub_[ID]_00099_\d+|[a-z]*san\.module_[cd]tor)(\..*)?")
# ud1, ud0: a ModRM byte and the displacement follow.
_UNDEFINED = (b"\x0f\xb9", b"\x0f\xff")


_startup: WeakKeyDictionary[Build, Flags] = WeakKeyDictionary()


def startup(build: Build) -> Flags:
    """Rows of the functions of the start files, and of the like that sanitizers add."""
    if build not in _startup:
        _startup[build] = _find_startup(build)
    return _startup[build].copy()


def _find_startup(build: Build) -> Flags:
    names = build.entities.names
    chosen = (name in STARTUP or REGISTERS.fullmatch(name) is not None for name in names)
    named = np.fromiter(chosen, np.bool_, len(names))
    flags: Flags = named & (build.entities.kind == Kind.FUNCTION)
    return flags


def unclear_code(build: Build) -> Flags:
    """Rows of functions that name places which have no name, or hold bytes that are no instructions."""
    references = build.references
    unknown = (references.target_kind == TargetKind.UNKNOWN) & (references.function >= 0)
    unknown &= ~np.isin(references.form, THREAD_LOCAL_FORMS)  # offsets, which may well stay what they are
    places = np.flatnonzero(unknown)
    unknown[places] = ~of_undefined_instructions(build, references.position[places].astype(np.int64))
    unknown[end_pointers(build)] = False
    flags = np.zeros(len(build.entities), dtype=np.bool_)
    flags[references.function[unknown]] = True
    flags[list(build.undecodable)] = True
    return flags


def of_undefined_instructions(build: Build, positions: I64) -> Flags:
    """Which references (by the vaddr of their fields) are operands of ``ud1`` or ``ud0``: numbers like any other, as
    such an instruction never gets as far as to look there."""
    before = [build.read(position - 3, 2) for position in positions.tolist()]
    return np.isin(before, _UNDEFINED) if before else np.zeros(0, dtype=np.bool_)


def immovable(build: Build) -> Flags:
    """Rows of functions that are not placed in a new image unless they must be, nor what would bring them along."""
    return drawing_in(build, startup(build) | unclear_code(build))


def present(image: Image, index: int) -> Flags:
    """Rows of functions whose code is in this image (``index``: its place in the module's list of images)."""
    functions: Flags = image.build.entities.kind == Kind.FUNCTION
    if image.placed is None:
        return functions if index == 0 else functions & ~immovable(image.build)
    flags = np.zeros(len(functions), dtype=np.bool_)
    flags[list(image.placed)] = True
    return flags & functions
