"""Every row of docs/compilers.md is true."""

from __future__ import annotations

import pytest

from live.flavours import FLAVOURS, NAMES, Flavour, check, missing_tools, outcome, recorded
from live.harness import Builder, HotUpgrade

__all__ = ["NAMES", "check"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("flavour", FLAVOURS, ids=[flavour.key for flavour in FLAVOURS])
def test_flavour(build: Builder, hu: HotUpgrade, flavour: Flavour) -> None:
    if absent := missing_tools(flavour):
        pytest.skip(f"no {absent} on this machine")
    assert outcome(flavour, build, hu) == recorded()[flavour.key]


def test_the_page_has_nothing_else() -> None:
    assert set(recorded()) == {flavour.key for flavour in FLAVOURS}
