"""Which row of a build occupies an address."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hotupgrade.binary.model import I32


@dataclass(frozen=True)
class SpanMap:
    """Disjoint ranges, ascending; where rows overlap, the one that starts last owns the bytes."""

    start: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]
    row: I32

    def find(self, addresses: npt.NDArray[np.int64]) -> I32:
        """Row of each address, -1 where there is none."""
        if not len(self.start):
            return np.full(len(addresses), -1, np.int32)
        at = np.searchsorted(self.start, addresses, side="right") - 1
        inside = (at >= 0) & (addresses < self.stop[at])
        return np.where(inside, self.row[at], -1).astype(np.int32)

    def find_one(self, address: int) -> int | None:
        starts, stops, rows = self._lists
        at = bisect_right(starts, address) - 1
        return rows[at] if at >= 0 and address < stops[at] else None

    @cached_property
    def _lists(self) -> tuple[list[int], list[int], list[int]]:
        # For single questions, bisection over a list is ten times faster than over an array.
        return self.start.tolist(), self.stop.tolist(), self.row.tolist()


def span_map(start: npt.NDArray[np.int64], stop: npt.NDArray[np.int64], row: I32) -> SpanMap:
    """``start`` must ascend."""
    if (stop[:-1] <= start[1:]).all():
        return SpanMap(start, stop, row)
    return _flattened(start.tolist(), stop.tolist(), row.tolist())


def _flattened(starts: list[int], stops: list[int], rows: list[int]) -> SpanMap:
    pieces: list[tuple[int, int, int]] = []
    open_rows: list[tuple[int, int]] = []  # (stop, row), the innermost last
    at = 0

    def close_until(limit: int) -> None:
        nonlocal at
        while open_rows:
            stop, row = open_rows[-1]
            if stop <= at:
                open_rows.pop()
                continue
            if at >= limit:
                return
            pieces.append((at, min(stop, limit), row))
            at = min(stop, limit)

    for start, stop, row in zip(starts, stops, rows, strict=True):
        close_until(start)
        at = start
        open_rows.append((stop, row))
    close_until(1 << 62)
    table = np.array(pieces, np.int64).reshape(-1, 3)
    return SpanMap(table[:, 0].copy(), table[:, 1].copy(), table[:, 2].astype(np.int32))
