from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from hotupgrade.target.request import Forbidden, merge


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 30))))
def test_merged_ranges_are_sorted_disjoint_and_cover_the_same(pairs: list[tuple[int, int]]) -> None:
    ranges = [Forbidden(low, low + size, "f") for low, size in pairs]
    merged = merge(ranges)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(merged))
    covered = {at for r in ranges for at in range(r.low, r.high)}
    assert {at for low, high in merged for at in range(low, high)} == covered
