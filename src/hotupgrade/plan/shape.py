"""Function bodies with their references taken out, for comparing and for telling which reference is which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import I32, Flags, Form, Kind, References

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shapes:
    """Masked code of one build, and for each row the half-open range of its references."""

    build: Build
    references: References
    access: I32
    masked: bytes  # the executable part of the image, reference fields zeroed
    origin: int  # vaddr of masked[0]
    start: Indices  # vaddr of each row
    extent: Indices
    first: Indices  # index into references of the first one inside each row
    last: Indices  # one beyond the last

    def code(self, row: int) -> bytes:
        at = int(self.start[row]) - self.origin
        return self.masked[at : at + int(self.extent[row])]


def shapes_of(build: Build) -> Shapes:
    references, access, entities = build.references, build.access, build.entities
    start = entities.address.astype(np.int64)
    extent = build.extent.astype(np.int64)
    function = entities.kind == Kind.FUNCTION
    low = int(start[function].min())
    high = int((start + extent)[function].max())
    code = build.image[low:high].copy()
    position = references.position.astype(np.int64) - low
    wide = position[references.form != Form.SHORT]
    for byte in range(4):
        code[wide + byte] = 0
    code[position[references.form == Form.SHORT]] = 0
    first = np.searchsorted(references.position, entities.address)
    last = np.searchsorted(references.position, entities.address + extent.astype(np.uint64))
    last = np.where(function, last, first)
    return Shapes(
        build, references, access, code.tobytes(), low, start, extent, first.astype(np.int64), last.astype(np.int64)
    )


@dataclass(frozen=True)
class ReferencePairs:
    """References of functions of equal shape, side by side.  ``pair`` says to which function pair each belongs."""

    pair: Indices
    old: Indices
    new: Indices


def equal_shapes(old: Shapes, new: Shapes, old_rows: Indices, new_rows: Indices) -> Flags:
    """Whether each pair of functions has the same masked bytes and the same references in the same places."""
    equal: Flags = old.extent[old_rows] == new.extent[new_rows]
    counts = old.last[old_rows] - old.first[old_rows]
    equal &= counts == new.last[new_rows] - new.first[new_rows]
    for i in np.flatnonzero(equal).tolist():
        equal[i] = old.code(int(old_rows[i])) == new.code(int(new_rows[i]))
    at = np.flatnonzero(equal)
    pairs = paired_references(old, new, old_rows[at], new_rows[at])
    theirs, ours = old.references, new.references
    wrong = theirs.form[pairs.old] != ours.form[pairs.new]
    old_offset = theirs.position[pairs.old].astype(np.int64) - old.start[old_rows[at]][pairs.pair]
    new_offset = ours.position[pairs.new].astype(np.int64) - new.start[new_rows[at]][pairs.pair]
    wrong |= old_offset != new_offset
    equal[at[np.unique(pairs.pair[wrong])]] = False
    return equal


def paired_references(old: Shapes, new: Shapes, old_rows: Indices, new_rows: Indices) -> ReferencePairs:
    """Reference by reference; the functions must have equally many."""
    counts = old.last[old_rows] - old.first[old_rows]
    pair = np.repeat(np.arange(len(old_rows)), counts)
    step = np.arange(len(pair)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ReferencePairs(pair, old.first[old_rows][pair] + step, new.first[new_rows][pair] + step)
