"""Numbers for things so that equal numbers mean equal things, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hotupgrade.binary.debug.survey import Unclear
from hotupgrade.binary.model import I64

_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, without a pattern


class Numbering:
    """Gives numbers from 1 on."""

    def __init__(self) -> None:
        self._rows: dict[bytes, int] = {}
        self._contents: dict[bytes, int] = {b"": 0}
        self._last = 0

    def fresh(self, count: int) -> I64:
        """Numbers that nothing else has."""
        self._last += count
        return np.arange(self._last - count + 1, self._last + 1, dtype=np.int64)

    def rows(self, sort: int, *columns: I64) -> I64:
        """Of rows of numbers, of which those of different sorts are never equal.

        Raises:
            Unclear: two rows that differ seem equal at first sight; nobody writes such files by accident.
        """
        if not len(columns[0]):
            return np.zeros(0, np.int64)
        first, inverse = distinct(columns)
        table = np.stack([np.full(len(first), sort), *(column[first] for column in columns)], axis=1)
        content, size, known, last = table.tobytes(), table.shape[1] * table.itemsize, self._rows, self._last
        numbers = []
        for at in range(0, len(content), size):
            key = content[at : at + size]
            number = known.get(key)
            if number is None:
                last += 1
                known[key] = number = last
            numbers.append(number)
        self._last = last
        return np.array(numbers, np.int64)[inverse]

    def sequences(self, items: I64, lengths: Sequence[int]) -> I64:
        """Of sequences that follow each other in ``items``; 0 for one without items."""
        content, known, at = np.ascontiguousarray(items).tobytes(), self._contents, 0
        numbers = []
        for length in lengths:
            end = at + length * items.itemsize
            key = content[at:end]
            at = end
            number = known.get(key)
            if number is None:
                known[key] = number = len(known)
            numbers.append(number)
        return np.array(numbers, np.int64)


def distinct(columns: Sequence[I64]) -> tuple[I64, I64]:
    """(index of the first of each distinct row, for each row which of these it equals).

    Raises:
        Unclear: see :meth:`Numbering.rows`.
    """
    mixed = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        mixed = (mixed + column.astype(np.uint64)) * np.uint64(_MULTIPLIER)
        mixed ^= mixed >> np.uint64(29)
    order = np.argsort(mixed)
    ascending = mixed[order]
    begins = np.ones(len(order), np.bool_)
    begins[1:] = ascending[1:] != ascending[:-1]
    first = np.minimum.reduceat(order, np.flatnonzero(begins)) if len(order) else order
    inverse = np.empty(len(order), np.int64)
    inverse[order] = np.cumsum(begins) - 1
    # That the mixtures are equal proves nothing.
    if any((column[first][inverse] != column).any() for column in columns):
        raise Unclear
    return first, inverse
