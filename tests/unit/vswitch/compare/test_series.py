"""What is made up is found again, span by span."""

from __future__ import annotations

import numpy as np
import pytest

from hotupgrade.vswitch.compare.packets import Seen
from hotupgrade.vswitch.compare.series import Series, series

BEGIN = 1_700_000_000_000_000_000
SPACING = 1_000_000  # ns: ten packets a span


def stream(count: int) -> Seen:
    return Seen(np.arange(count), BEGIN + SPACING * np.arange(count))


def test_spans_before_and_after_the_event() -> None:
    sent = stream(60)
    kept = (sent.number < 25) | (sent.number >= 42)
    delay = np.where(sent.number == 7, 3_000_000, 20_000)
    found = series(sent, Seen(sent.number[kept], (sent.at_ns + delay)[kept]), BEGIN + 20 * SPACING)
    assert found.begin_ms == -20
    assert found.lost == (0, 0, 5, 10, 2, 0)
    assert found.delay_ms == pytest.approx((3.0, 0.02, 0.02, None, 0.02, 0.02))
    assert found.document()["delay_ms"] == [3.0, 0.02, 0.02, None, 0.02, 0.02]


def test_nothing_came() -> None:
    sent = stream(20)
    found = series(sent, Seen(sent.number[:0], sent.at_ns[:0]), BEGIN)
    assert found == Series(0, (None, None), (10, 10))


def test_nothing_was_sent() -> None:
    assert series(stream(0), stream(0), BEGIN) == Series(0, (), ())


def test_what_comes_twice_came_when_it_came_first() -> None:
    sent = stream(10)
    twice = Seen(np.repeat(sent.number, 2), np.repeat(sent.at_ns, 2) + np.tile([5_000, 900_000], 10))
    assert series(sent, twice, BEGIN).delay_ms == pytest.approx((0.005,))
