"""Threads in loops that changed are restarted: led out of the old code, and into the new, as the same threads."""

from __future__ import annotations

import pytest

from live.conftest import Start
from live.harness import Builder, HotUpgrade
from live.loops import Loops, loops, switch

EACH = {"busy": 1, "latched": 2, "safe": 2, "sleeping": 2}


@pytest.mark.parametrize("kind", EACH)
def test_there_and_back_and_there(build: Builder, start: Start, hu: HotUpgrade, kind: str) -> None:
    there = Loops(start, build, loops(build, 1), **{kind: EACH[kind]})
    there.check(1, entered=1)
    two = loops(build, 2)
    for turn in range(4):
        restarted = switch(hu, there, None if turn % 2 else two)
        assert sorted(restarted) == sorted(there.tids(kind))
        assert {item["state"] for item in restarted.values()} <= {"arrived", "sleeping"}
        there.check(1 if turn % 2 else 2, entered=turn + 2)
    there.end()
