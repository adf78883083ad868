"""Rows of docs/compilers.md are true; the whole table is made by ``make compilers``."""

from __future__ import annotations

import pytest

from live.flavours import FLAVOURS, NAMES, QUICK, Flavour, check, missing_tools, outcome, recorded
from live.harness import Builder, HotUpgrade

__all__ = ["NAMES", "check"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("flavour", QUICK, ids=[flavour.key for flavour in QUICK])
def test_flavour(build: Builder, hu: HotUpgrade, flavour: Flavour) -> None:
    if absent := missing_tools(flavour):
        pytest.fail(f"no {absent}: scripts/install-packages base brings it")
    assert outcome(flavour, build, hu) == recorded()[flavour.key]


def test_the_page_has_every_flavour_and_nothing_else() -> None:
    assert list(recorded()) == [flavour.key for flavour in FLAVOURS]
