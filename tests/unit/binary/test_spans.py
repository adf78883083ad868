"""Which row owns an address, against the plain definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hotupgrade.binary.spans import span_map

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), max_size=12).map(sorted)


def owner(ranges: list[tuple[int, int]], address: int) -> int | None:
    """The last one (in order of start) that holds the address."""
    holders = [row for row, (start, size) in enumerate(ranges) if start <= address < start + size]
    return holders[-1] if holders else None


@given(RANGES)
def test_the_one_that_starts_last_owns_the_bytes(ranges: list[tuple[int, int]]) -> None:
    start = np.array([low for low, _ in ranges], np.int64)
    stop = start + np.array([size for _, size in ranges], np.int64)
    spans = span_map(start, stop, np.arange(len(ranges), dtype=np.int32))
    addresses = np.arange(-1, 100)
    wanted = [owner(ranges, address) for address in addresses.tolist()]
    assert [None if row < 0 else row for row in spans.find(addresses).tolist()] == wanted
    assert [spans.find_one(address) for address in addresses.tolist()] == wanted
