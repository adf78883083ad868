"""Equal numbers for what is equal, and for nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotupgrade.binary.debug import numbering
from hotupgrade.binary.debug.numbering import Numbering
from hotupgrade.binary.debug.survey import Unclear

numbers = st.one_of(st.integers(0, 3), st.integers(-(1 << 63), (1 << 63) - 1))
tables = st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[numbers] * width), min_size=1, max_size=20))


@given(st.lists(st.tuples(st.integers(0, 1), tables), max_size=4))
def test_rows(batches: list[tuple[int, list[tuple[int, ...]]]]) -> None:
    known: dict[tuple[int, ...], int] = {}
    numbering = Numbering()
    for sort, table in batches:
        columns = [np.array(column, np.int64) for column in zip(*table, strict=True)]
        for row, number in zip(table, numbering.rows(sort, *columns).tolist(), strict=True):
            assert known.setdefault((sort, *row), number) == number
    assert len(set(known.values())) == len(known)
    assert 0 not in known.values()
    assert set(numbering.fresh(3).tolist()).isdisjoint(known.values())


@given(st.lists(st.lists(numbers, max_size=3), max_size=8))
def test_sequences(sequences: list[list[int]]) -> None:
    items = np.array([number for each in sequences for number in each], np.int64)
    found = Numbering().sequences(items, [len(each) for each in sequences]).tolist()
    for first, number in zip(sequences, found, strict=True):
        assert (number == 0) == (not first)
        assert all((first == second) == (number == other) for second, other in zip(sequences, found, strict=True))


def test_mixtures_that_are_equal_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbering, "_MULTIPLIER", 0)
    with pytest.raises(Unclear):
        Numbering().rows(0, np.array([1, 2], np.int64))
