"""What a lab hands over."""

from __future__ import annotations

import tomllib

from hotupgrade.plan.loops.profile import builtin_profiles
from hotupgrade.vswitch.datapaths.lab import with_limits


def test_limits_of_profiles_for_slow_machines() -> None:
    (path,) = builtin_profiles()
    before, after = (tomllib.loads(text)["loop"] for text in (path.read_text(), with_limits(path.read_text(), 40)))
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        assert other.pop("limit-us") == 40 * one.pop("limit-us", 50_000)
        assert one == other
    assert "limit-us = 60000000" in with_limits(path.read_text(), 1_000_000)
