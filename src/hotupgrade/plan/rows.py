"""Which row of a build's entities an address belongs to, for one address or for many at once."""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import I32, I64, U64, Kind

_STT_FUNC = 2
_STT_TLS = 6
_STT_GNU_IFUNC = 10

_NESTING = 4  # symbols inside symbols: how many starts to look back


class Rows:
    """Address lookup over one build.  Rows are ``-1`` where nothing is."""

    def __init__(self, build: Build) -> None:
        entities = build.entities
        self.build = build
        self._tls_flags = entities.kind == Kind.TLS
        self._plain = _Intervals(np.flatnonzero(~self._tls_flags), entities.address, entities.size)
        self._tls = _Intervals(np.flatnonzero(self._tls_flags), entities.address, entities.size)

    def at(self, vaddrs: npt.ArrayLike) -> tuple[I32, I64]:
        """Rows (never thread-locals) and distances from their starts."""
        return self._plain.find(np.asarray(vaddrs, dtype=np.int64))

    def one_at(self, vaddr: int) -> tuple[int, int]:
        return self._plain.find_one(vaddr)

    def ending_at(self, vaddrs: npt.ArrayLike) -> I32:
        """Rows (never thread-locals, never empty) that end exactly there."""
        return self._plain.ending_at(np.asarray(vaddrs, dtype=np.int64))

    def thread_local_at(self, offset: int) -> tuple[int, int]:
        return self._tls.find_one(offset)

    def of_symbol(self, number: int) -> int:
        """The row that a dynamic symbol of this build defines, or -1."""
        symbol = self.build.dynamic_symbols[number]
        if not symbol.defined:
            return -1
        candidates = self._starts.get((symbol.type == _STT_TLS, symbol.vaddr), [])
        function = symbol.type in (_STT_FUNC, _STT_GNU_IFUNC)
        kinds = self.build.entities.kind
        fitting = [row for row in candidates if (int(kinds[row]) == Kind.FUNCTION) == function]
        return (fitting or candidates or [-1])[0]

    @cached_property
    def _starts(self) -> dict[tuple[bool, int], list[int]]:
        starts: dict[tuple[bool, int], list[int]] = {}
        addresses = self.build.entities.address.tolist()
        for row, key in enumerate(zip(self._tls_flags.tolist(), addresses, strict=True)):
            starts.setdefault(key, []).append(row)
        return starts


class _Intervals:
    """Half-open intervals sorted by start; they may nest."""

    def __init__(self, rows: npt.NDArray[np.intp], address: U64, size: U64) -> None:
        order = np.argsort(address[rows], kind="stable")
        self._row = rows[order].astype(np.int32)
        self._start = address[rows][order].astype(np.int64)
        self._end = self._start + size[rows][order].astype(np.int64)

    def find(self, wanted: I64) -> tuple[I32, I64]:
        found = np.full(len(wanted), -1, dtype=np.int32)
        distance = np.zeros(len(wanted), dtype=np.int64)
        if not len(self._start):
            return found, distance
        last = np.searchsorted(self._start, wanted, side="right") - 1
        for back in range(_NESTING):
            place = last - back
            index = np.maximum(place, 0)
            hit = (found < 0) & (place >= 0) & ((wanted < self._end[index]) | (wanted == self._start[index]))
            found[hit] = self._row[index[hit]]
            distance[hit] = wanted[hit] - self._start[index[hit]]
        return found, distance

    def find_one(self, wanted: int) -> tuple[int, int]:
        last = bisect_right(self._starts, wanted) - 1
        for place in range(last, max(last - _NESTING, -1), -1):
            start = self._starts[place]
            if wanted < self._ends[place] or wanted == start:
                return self._rows[place], wanted - start
        return -1, 0

    def ending_at(self, wanted: I64) -> I32:
        order = np.argsort(self._end, kind="stable")
        order = order[self._end[order] > self._start[order]]
        if not len(order):
            return np.full(len(wanted), -1, dtype=np.int32)
        ends = self._end[order]
        place = np.minimum(np.searchsorted(ends, wanted), len(ends) - 1)
        return np.where(ends[place] == wanted, self._row[order[place]], -1).astype(np.int32)

    @cached_property
    def _starts(self) -> list[int]:
        starts: list[int] = self._start.tolist()
        return starts

    @cached_property
    def _ends(self) -> list[int]:
        ends: list[int] = self._end.tolist()
        return ends

    @cached_property
    def _rows(self) -> list[int]:
        rows: list[int] = self._row.tolist()
        return rows
