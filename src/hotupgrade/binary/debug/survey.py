"""Where the entries of many units begin, and how they are nested, without a look at what they say.

This is for what compilers write.  Anything else is :class:`Unclear`, and left to the reader that takes one entry after
the other and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hotupgrade.binary.debug.abbreviations import Abbreviation, unsigned
from hotupgrade.binary.debug.constants import At, Form
from hotupgrade.binary.debug.layout import Layout
from hotupgrade.binary.debug.units import MAX_DEPTH, Unit
from hotupgrade.binary.model import I32, I64, Flags

BATCH = 60_000  # entries to be looked at together: what bounds memory
MAX_TOGETHER = 8_000_000  # entries of a file: all of them are held, in little space
MAX_CODE = 1 << 14  # of an abbreviation: two bytes
MAX_SHAPES = 1 << 15  # abbreviations that differ


class Unclear(Exception):
    """Not as compilers write it."""


@dataclass(frozen=True)
class Batch:
    """The entries that are looked at of some units, in their order.  Entries go by their index in the arrays."""

    units: Sequence[Unit]
    start: I32  # offset in the section
    shape: I32  # number of the abbreviation
    parent: I32  # -1 for the units' own entries
    unit: I32  # index into ``units``

    def content(self) -> I64:
        """Offset of what follows the code of the abbreviation, which takes one byte or two."""
        data = np.frombuffer(self.units[0].data, np.uint8)
        return self.start.astype(np.int64) + 1 + (data[self.start] >= 0x80)


class _Hop(NamedTuple):
    """How to get from an entry to the next one: by size, behind a text, behind a block, or past its children."""

    way: int
    before: int
    behind: int
    abbreviation: Abbreviation


_FIXED, _TEXT, _BLOCK, _PAST, _ANY = range(5)


def survey(units: Sequence[Unit], abbreviations: Sequence[Abbreviation], layouts: Sequence[Layout]) -> Iterator[Batch]:
    """All units, a batch at a time.

    Args:
        units: of one section.
        abbreviations: all of the file, by number.
        layouts: theirs, in the same order.

    Raises:
        Unclear: a unit is not as compilers write it.
        Unusable: it is too large, or time is up.
    """
    if len(abbreviations) > MAX_SHAPES:
        raise Unclear
    hops = [_hop(each, layout) for each, layout in zip(abbreviations, layouts, strict=True)]
    opens = np.array([each.children for each in abbreviations], np.bool_)
    wanted = np.array([each.wanted for each in abbreviations], np.bool_)
    steps: dict[tuple[int, int], _Steps] = {}  # by table: units may share one
    some: list[Unit] = []
    starts: list[npt.NDArray[np.int64]] = []
    held = together = 0
    for unit in units:
        unit.units.sections.check_time()
        key = unit.table, unit.offset_size
        if key not in steps:
            steps[key] = _steps(unit.units.tables.at(*key), hops)
        found = _starts(unit, *steps[key])
        unit.units.allow(len(found))
        some.append(unit)
        starts.append(np.array(found, np.int64))
        held, together = held + len(found), together + len(found)
        if together > MAX_TOGETHER:
            raise Unclear
        if held >= BATCH:
            yield _batch(some, starts, opens, wanted)
            some, starts, held = [], [], 0
    if some:
        yield _batch(some, starts, opens, wanted)


# From entry to entry


def _hop(abbreviation: Abbreviation, layout: Layout) -> _Hop:
    gaps, sibling = layout.gaps, layout.places.get(At.SIBLING)
    if abbreviation.children and not abbreviation.wanted and sibling is not None:
        near = not gaps and sibling.form == Form.REF4
        return _Hop(_PAST if near else _ANY, sibling.offset, layout.behind, abbreviation)
    if not gaps:
        return _Hop(_FIXED, 0, layout.behind, abbreviation)
    if len(gaps) == 1 and gaps[0].form in (Form.STRING, Form.EXPRLOC):
        way = _TEXT if gaps[0].form == Form.STRING else _BLOCK
        return _Hop(way, gaps[0].before, layout.behind, abbreviation)
    return _Hop(_ANY, 0, 0, abbreviation)


def _starts(unit: Unit, steps: Sequence[int], odd: Mapping[int, _Hop]) -> list[int]:
    """Where entries begin, and where rows of children end.  Children of what nobody looks at are passed over, if it
    says where they end.  ``steps``, ``odd``: see :func:`_steps`."""
    data, at, end = unit.data, unit.first, unit.end
    starts: list[int] = []
    add, index = starts.append, data.index
    try:
        while at < end:
            step = steps[data[at]]
            if step:
                add(at)
                at += step
                continue
            behind = at + 1
            code = data[at]
            if code >= 0x80:
                code, behind = unsigned(data, at)
            way, before, size, abbreviation = odd[code]
            if way == _PAST:
                place = behind + before
                sibling = unit.offset + int.from_bytes(data[place : place + 4], "little")
                if not behind + size < sibling <= end:
                    raise Unclear
                at = sibling
                continue
            if way == _ANY and _is_passed(abbreviation):
                at = _past(unit, abbreviation, behind)
                continue
            add(at)
            if way == _FIXED:
                at = behind + size
            elif way == _TEXT:
                at = index(b"\0", behind + before) + 1 + size
            elif way == _BLOCK and data[behind + before] < 0x80:
                at = behind + before + 1 + data[behind + before] + size
            else:
                at = abbreviation.end(data, behind)
    except (KeyError, IndexError, ValueError) as error:
        raise Unclear from error
    if at != end:
        raise Unclear
    return starts


_Steps = tuple[list[int], dict[int, _Hop]]


def _steps(table: Mapping[int, Abbreviation], hops: Sequence[_Hop]) -> _Steps:
    """By the first byte of an entry: its size, if that tells; and by code, how to get on from all others."""
    steps = [0] * 256
    steps[0] = 1
    odd: dict[int, _Hop] = {}
    for code, abbreviation in table.items():
        hop = hops[abbreviation.number]
        if hop.way == _FIXED and code < 0x80:
            steps[code] = 1 + hop.behind
        else:
            odd[code] = hop
    return steps, odd


def _is_passed(abbreviation: Abbreviation) -> bool:
    return abbreviation.children and not abbreviation.wanted and At.SIBLING in abbreviation.forms


def _past(unit: Unit, abbreviation: Abbreviation, at: int) -> int:
    values, after = abbreviation.decode(unit.data, at)
    sibling = unit.offset + int(values[At.SIBLING])
    if not after < sibling <= unit.end:
        raise Unclear
    return sibling


# How they are nested


def _batch(units: list[Unit], starts: list[npt.NDArray[np.int64]], opens: Flags, wanted: Flags) -> Batch:
    start = np.concatenate(starts)
    sizes = [len(each) for each in starts]
    unit = np.repeat(np.arange(len(units), dtype=np.int32), sizes)
    shape = _shapes(units, unit, start)
    ends = shape < 0
    down = np.where(ends, -1, opens[shape].astype(np.int64))
    after = np.cumsum(down)
    # A unit is one entry with all others in it, and nothing behind it.
    if not sizes or not np.array_equal(np.flatnonzero(after == 0), np.cumsum(sizes) - 1) or after.max() > MAX_DEPTH:
        raise Unclear
    parent, kept = _parents(after - down, ends, wanted[shape] & ~ends)
    if not kept[np.cumsum([0, *sizes[:-1]])].all():
        raise Unclear
    index = np.cumsum(kept, dtype=np.int32) - 1
    parent = np.where(parent >= 0, index[parent], -1)[kept]
    return Batch(
        units=units,
        start=start[kept].astype(np.int32),
        shape=shape[kept],
        parent=parent.astype(np.int32),
        unit=unit[kept],
    )


def _shapes(units: Sequence[Unit], unit: I32, start: I64) -> I32:
    """Number of the abbreviation of entries, -1 for the end of children."""
    data = np.frombuffer(units[0].data, np.uint8)
    code = data[start].astype(np.int64)
    long = np.flatnonzero(code >= 0x80)
    second = data[start[long] + 1].astype(np.int64)
    if (second >= 0x80).any():
        raise Unclear
    code[long] = code[long] & 0x7F | second << 7
    tables = {(each.table, each.offset_size): each.units.tables.at(each.table, each.offset_size) for each in units}
    first: dict[tuple[int, int], int] = {}
    blocks, at = [], 0
    for key, table in tables.items():
        highest = max(table, default=0)
        if highest > min(MAX_CODE, 4 * len(table) + 64):  # compilers count them
            raise Unclear
        block = np.full(highest + 1, -1, np.int32)
        block[list(table)] = [each.number for each in table.values()]
        first[key], at = at, at + len(block)
        blocks.append(block)
    begin = np.array([first[each.table, each.offset_size] for each in units], np.int64)
    found: I32 = np.concatenate(blocks)[begin[unit] + code]
    return found


def _parents(depth: I64, ends: Flags, wanted: Flags) -> tuple[I32, Flags]:
    """Of each entry the one that it is in, and whether it and all that it is in are looked at."""
    parent = np.full(len(depth), -1, np.int32)
    kept = wanted.copy()
    depth = np.where(ends, -1, depth)
    above = np.flatnonzero(depth == 0)
    for level in range(1, int(depth.max()) + 1):
        at = np.flatnonzero(depth == level)
        parent[at] = above[np.searchsorted(above, at) - 1]
        kept[at] &= kept[parent[at]]
        above = at
    return parent, kept
