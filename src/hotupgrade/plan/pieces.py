"""Functions come in pieces: cold parts, jumps into the middle, switch tables.  What shares a frame shares an image."""

from __future__ import annotations

import re
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import I32, Flags, Form, Kind, References, TargetKind

Indices = npt.NDArray[np.intp]

TRANSFERS = (Form.CALL, Form.JUMP, Form.BRANCH, Form.SHORT)

_COLD = re.compile(r"\.cold(\.\d+)?$")


def is_piece(name: str) -> bool:
    """Whether this is what a compiler put apart of a function: code that runs in the frame of another."""
    return _COLD.search(name) is not None


def with_pieces(build: Build, functions: Flags, *, neighbours: bool = False) -> Flags:
    """These functions and all code that shares a frame with them: their .cold parts, and what jumps into the middle.

    With ``neighbours`` also what they reach by a short jump, which cannot lead out of an image.
    """
    sources, sinks = _edges(build, neighbours)
    flags = functions.copy()
    while True:
        reached = sinks[flags[sources] & ~flags[sinks]]
        if not len(reached):
            return flags
        flags[reached] = True


def drawing_in(build: Build, functions: Flags) -> Flags:
    """These functions and all that would bring one of them along."""
    sources, sinks = _edges(build, neighbours=True)
    flags = functions.copy()
    while True:
        reached = sources[flags[sinks] & ~flags[sources]]
        if not len(reached):
            return flags
        flags[reached] = True


def rows_named(references: References) -> I32:
    """The row that each reference names; 0 where it names none (there ``entity`` may be the index of a slot)."""
    return np.where(references.target_kind == TargetKind.ENTITY, references.entity, 0).astype(np.int32)


_KNOWN: WeakKeyDictionary[Build, dict[bool, tuple[I32, I32]]] = WeakKeyDictionary()


def _edges(build: Build, neighbours: bool) -> tuple[I32, I32]:
    """From each piece to those that must be where it is.  Asked for often, and the same for as long as a build is."""
    known = _KNOWN.setdefault(build, {})
    if neighbours not in known:
        known[neighbours] = _find_edges(build, neighbours)
    return known[neighbours]


def _find_edges(build: Build, neighbours: bool) -> tuple[I32, I32]:
    references = build.references
    joined = _joins(build, references, neighbours)
    tables = [
        (table.function, target) for table in build.jump_tables if table.function >= 0 for target in table.targets
    ]
    from_tables = np.asarray(tables, dtype=np.int32).reshape(-1, 2)
    sources = np.concatenate([references.function[joined], from_tables[:, 0]])
    return sources, np.concatenate([references.entity[joined], from_tables[:, 1]])


def _joins(build: Build, references: References, neighbours: bool) -> Indices:
    """References that lead from one piece of a function to another."""
    cold = np.fromiter(map(is_piece, build.entities.names), np.bool_, len(build.entities))
    between = (references.target_kind == TargetKind.ENTITY) & (references.function >= 0)
    entity = rows_named(references)
    between &= build.entities.kind[entity] == Kind.FUNCTION
    short = references.form == Form.SHORT
    between &= np.isin(references.form, TRANSFERS)
    return np.flatnonzero(between & ((references.addend != 0) | cold[entity] | (short & neighbours)))
