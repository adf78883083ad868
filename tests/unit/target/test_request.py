from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from hotupgrade.target.request import Forbidden, merge, merged_by_loop


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 30))))
def test_merged_ranges_are_sorted_disjoint_and_cover_the_same(pairs: list[tuple[int, int]]) -> None:
    ranges = [Forbidden(low, low + size, "f") for low, size in pairs]
    merged = merge(ranges)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(merged))
    covered = {at for r in ranges for at in range(r.low, r.high)}
    assert {at for low, high in merged for at in range(low, high)} == covered


RANGES = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 30), st.integers(0, 2)))


@given(RANGES)
def test_ranges_of_loops_stay_apart_and_the_strict_ones_win(triples: list[tuple[int, int, int]]) -> None:
    ranges = [Forbidden(low, low + size, "f", loop) for low, size, loop in triples]
    merged = merged_by_loop(ranges)
    assert merged == sorted(merged)
    # Bounds are exclusive.
    inside = [(at, loop) for low, high, loop in merged for at in range(low + 1, high)]
    strict = {at for r in ranges if not r.loop for at in range(r.low + 1, r.high)}
    assert {at for at, loop in inside if not loop} >= strict
    for number in (1, 2):
        wanted = {at for r in ranges if r.loop == number for at in range(r.low + 1, r.high)} - strict
        assert {at for at, loop in inside if loop == number} >= wanted
        assert not {at for at, loop in inside if loop == number} & strict


def test_the_agent_finds_the_strict_part_within_a_loop() -> None:
    """Its search takes the last range that begins below a word."""
    merged = merged_by_loop([Forbidden(100, 200, "loop", 1), Forbidden(100, 105, "entry")])
    assert merged == [(100, 105, 0), (104, 200, 1)]
    for word, loop in ((101, 0), (104, 0), (105, 1), (199, 1)):
        assert [r for r in merged if r[0] < word][-1][2] == loop
