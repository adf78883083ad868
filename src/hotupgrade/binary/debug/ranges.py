"""Which addresses the units describe: an object file that was compiled without -g leaves a hole."""

from __future__ import annotations

from collections.abc import Iterator

from hotupgrade.binary.debug.abbreviations import unsigned
from hotupgrade.binary.debug.constants import At, Form
from hotupgrade.binary.debug.sections import Corrupt
from hotupgrade.binary.debug.units import Unit

MAX_RANGES = 1 << 20

_END, _BASEX, _STARTX_ENDX, _STARTX_LENGTH, _PAIR, _BASE, _START_END, _START_LENGTH = range(8)
_WORD = (1 << 64) - 1

Range = tuple[int, int]


def merged(ranges: list[Range]) -> list[Range]:
    """Ascending, without overlaps."""
    found: list[Range] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], high)
        elif high > low:
            found.append((low, high))
    return found


def ranges_of(unit: Unit) -> Iterator[Range]:
    """[low, high) of the code of a unit, as its own entry says."""
    root = unit.root
    low = root.address(At.LOW_PC) or 0
    where = root.number(At.RANGES)
    if where is None:
        high = root.number(At.HIGH_PC)
        if high is not None:
            absolute = root.abbreviation.forms[At.HIGH_PC] == Form.ADDR
            yield low, high if absolute else low + high
    elif unit.version == 4:
        yield from _of_version_4(unit.units.sections.ranges, where, low)
    else:
        data = unit.units.sections.range_lists
        if root.abbreviation.forms[At.RANGES] == Form.RNGLISTX:
            base = root.number(At.RNGLISTS_BASE) or (12 if unit.offset_size == 4 else 20)
            at = base + where * unit.offset_size
            where = base + int.from_bytes(data[at : at + unit.offset_size], "little")
        yield from _of_version_5(unit, data, where, low)


def _of_version_4(data: bytes, at: int, base: int) -> Iterator[Range]:
    for _ in range(MAX_RANGES):
        low, high = _word(data, at), _word(data, at + 8)
        at += 16
        if not low and not high:
            return
        if low == _WORD:
            base = high
        else:
            yield base + low, base + high
    raise Corrupt("a list of ranges without an end")


def _of_version_5(unit: Unit, data: bytes, at: int, base: int) -> Iterator[Range]:
    for _ in range(MAX_RANGES):
        kind, at = data[at], at + 1
        if kind == _END:
            return
        if kind in (_BASE, _START_END, _START_LENGTH):
            first, at = _word(data, at), at + 8
        else:
            first, at = unsigned(data, at)
        if kind == _START_END:
            second, at = _word(data, at), at + 8
        elif kind in (_BASE, _BASEX):
            second = 0
        else:
            second, at = unsigned(data, at)
        if kind in (_BASEX, _STARTX_ENDX, _STARTX_LENGTH):
            first = unit.indexed_address(first)
        if kind in (_BASE, _BASEX):
            base = first
        elif kind == _PAIR:
            yield base + first, base + second
        elif kind == _STARTX_ENDX:
            yield first, unit.indexed_address(second)
        elif kind == _START_END:
            yield first, second
        elif kind in (_STARTX_LENGTH, _START_LENGTH):
            yield first, first + second
        else:
            raise Corrupt("a list of ranges of an unknown kind")
    raise Corrupt("a list of ranges without an end")


def _word(data: bytes, at: int) -> int:
    word = data[at : at + 8]
    if len(word) != 8:
        raise Corrupt("a list of ranges beyond the end")
    return int.from_bytes(word, "little")
