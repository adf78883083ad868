"""No reference of the switch is missed and none is made up: the linker's own records say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from crosscheck.check import check
from crosscheck.subjects import OVS, STATIC, SWITCH, Subject


@pytest.mark.parametrize("subject", SWITCH, ids=lambda subject: subject.name)
def test_references(subject: Subject, tmp_path: Path) -> None:
    tree = STATIC if "static" in subject.source else OVS
    if not tree.is_dir():
        pytest.skip(f"{tree} has not been built: scripts/build-ovs")
    tally = check(subject.make(tmp_path))
    assert tally.faults() == []
    assert tally.records > 5000
    assert (tally.found, tally.unproven) == (tally.thread_locals, 0)
    assert tally.thread_locals > 50
