"""No reference of the switch is missed and none is made up: the linker's own records say so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from crosscheck.check import check
from crosscheck.subjects import SWITCH, Subject


def _cases() -> Iterator[object]:
    for subject in SWITCH:
        marks = [pytest.mark.full] if "static" in subject.source else []
        yield pytest.param(subject, id=subject.name, marks=marks)


@pytest.mark.parametrize("subject", list(_cases()))
def test_references(subject: Subject, tmp_path: Path) -> None:
    tally = check(subject.make(tmp_path))
    assert tally.faults() == []
    assert tally.records > 5000
    assert (tally.found, tally.unproven) == (tally.thread_locals, 0)
    assert tally.thread_locals > 50
