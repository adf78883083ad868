"""Values of many entries at once, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hotupgrade.binary.debug.abbreviations import BLOCKS, size_of_form
from hotupgrade.binary.debug.constants import Form
from hotupgrade.binary.debug.layout import Layout
from hotupgrade.binary.debug.survey import Batch, Unclear
from hotupgrade.binary.model import I32, I64, U8, Flags

LEB = frozenset((Form.SDATA, Form.UDATA, Form.REF_UDATA, Form.STRX))
MAX_GAPS = 4  # values of unknown size before one that is looked at
_LONGEST = 10  # bytes of a LEB128 number that fits into 64 bits

Rows = npt.NDArray[np.intp]


class Places(NamedTuple):
    """Of one attribute, by number of the abbreviation: where it lies (``gap`` -1: nowhere)."""

    gap: I32
    offset: I32
    form: I32
    constant: I64


def places_of(attribute: int, layouts: Sequence[Layout]) -> Places:
    found = [layout.places.get(attribute) for layout in layouts]
    return Places(
        np.array([-1 if place is None else place.gap for place in found], np.int32),
        np.array([0 if place is None else place.offset for place in found], np.int32),
        np.array([-1 if place is None else place.form for place in found], np.int32),
        np.array([0 if place is None else int(place.constant) for place in found], np.int64),
    )


class Columns:
    """The values of a batch.

    Raises:
        Unclear: by each method, for what compilers do not write.
    """

    def __init__(self, batch: Batch, layouts: Sequence[Layout]) -> None:
        self._batch = batch
        self._layouts = layouts
        self._data: U8 = np.frombuffer(batch.units[0].data, np.uint8)
        self._behind = [batch.content()]  # the n-th value of unknown size, by n
        self._nul: I64 | None = None

    def present(self, places: Places, among: Flags | None = None) -> Rows:
        """Entries that have an attribute."""
        has = (places.gap >= 0)[self._batch.shape]
        return np.flatnonzero(has if among is None else has & among)

    def at(self, places: Places, rows: Rows) -> I64:
        """Where the values of some entries begin, all of which have the attribute."""
        shape = self._batch.shape[rows]
        gap = places.gap[shape]
        found = np.zeros(len(rows), np.int64)
        for number in np.unique(gap).tolist():
            here = gap == number
            found[here] = self._gap(number)[rows[here]] + places.offset[shape[here]]
        return found

    def integers(self, places: Places, rows: Rows) -> I64:
        """Values of fixed size or LEB128, all of which fit into 64 bits; those above 2⁶³ come out negative."""
        shape = self._batch.shape[rows]
        forms = places.form[shape]
        found = places.constant[shape]
        at = self.at(places, rows)
        for form in np.unique(forms).tolist():
            if form in (Form.IMPLICIT_CONST, Form.FLAG_PRESENT):
                continue
            here = np.flatnonzero(forms == form)
            found[here] = self._numbers(form, at[here])
        return found

    def _numbers(self, form: int, at: I64) -> I64:
        if form in LEB:
            return self._leb(at, signed=form == Form.SDATA)
        size = 3 if form == Form.STRX3 else size_of_form(form, self._batch.units[0].offset_size)
        if size is None or size > 8:
            raise Unclear
        return little(self._data, at, size)

    def texts(self, at: I64) -> tuple[I64, I64]:
        """(begin, end) of texts that stand in the entries themselves."""
        return at, self._end_of_text(at)

    def first_bytes(self, at: I64) -> tuple[I64, I64]:
        """(size, first byte) of blocks with a size in LEB128; the first byte of one without any is -1."""
        size, begin = self._leb(at, signed=False), self._end_of_leb(at)
        first = np.where(size > 0, self._data[np.minimum(begin, len(self._data) - 1)].astype(np.int64), -1)
        return size, first

    # Values of unknown size

    def _gap(self, number: int) -> I64:
        """Where the ``number``-th value of unknown size ends in each entry; of those that have fewer, anything."""
        while len(self._behind) <= number:
            if number > MAX_GAPS:
                raise Unclear
            self._behind.append(self._next_gap(len(self._behind) - 1))
        return self._behind[number]

    def _next_gap(self, index: int) -> I64:
        shape, behind = self._batch.shape, self._behind[index].copy()
        gaps = [layout.gaps[index] if len(layout.gaps) > index else None for layout in self._layouts]
        form = np.array([gap.form if gap else -1 for gap in gaps], np.int32)
        before = np.array([gap.before if gap else 0 for gap in gaps], np.int32)
        forms = form[shape]
        for each in np.unique(forms).tolist():
            if each >= 0:
                rows = np.flatnonzero(forms == each)
                behind[rows] = self._end(each, behind[rows] + before[shape[rows]])
        return behind

    def _end(self, form: int, at: I64) -> I64:
        if form == Form.STRING:
            return self._end_of_text(at) + 1
        if form in BLOCKS:
            width = BLOCKS[form]
            if width:
                return at + width + little(self._data, at, width)
            return self._end_of_leb(at) + self._leb(at, signed=False)
        if form in (Form.STRX3, Form.ADDRX3):
            return at + 3
        return self._end_of_leb(at)

    def _end_of_text(self, at: I64) -> I64:
        first, last = int(self._batch.start[0]), self._batch.units[-1].end
        if self._nul is None:
            self._nul = np.flatnonzero(self._data[first:last] == 0) + first
        index = np.searchsorted(self._nul, at)
        if len(index) and int(index.max()) >= len(self._nul):
            raise Unclear
        end: I64 = self._nul[index]
        return end

    def _end_of_leb(self, at: I64) -> I64:
        end = at.copy()
        for _ in range(_LONGEST):
            more = self._byte(end) >= 0x80
            end += more
            if not more.any():
                return end + 1
        raise Unclear

    def _leb(self, at: I64, *, signed: bool) -> I64:
        size = self._end_of_leb(at) - at
        value = np.zeros(len(at), np.int64)
        last = np.zeros(len(at), np.int64)
        for index in range(int(size.max(initial=0))):
            here = size > index
            last[here] = self._byte(at[here] + index)
            value[here] |= (last[here] & 0x7F) << 7 * index
        long = size == _LONGEST  # one bit of the last byte is left, and what repeats it
        if not np.isin(last[long], (0, 0x7F) if signed else (0, 1)).all():
            raise Unclear
        negative = (last & 0x40 != 0) & ~long
        if signed:
            value[negative] -= 1 << 7 * size[negative]
        return value

    def _byte(self, at: I64) -> I64:
        # Entries end within their unit; but what is asked of the last one may lie behind the number that it is about.
        return self._data[np.minimum(at, len(self._data) - 1)].astype(np.int64)


def little(data: U8, at: I64, size: int) -> I64:
    """Little-endian numbers of ``size`` bytes.

    Raises:
        Unclear: one lies beyond the end.
    """
    if len(at) and int(at.max()) + size > len(data):
        raise Unclear
    value = data[at].astype(np.int64)
    for index in range(1, size):
        value |= data[at + index].astype(np.int64) << 8 * index
    return value
