"""What a guest's counters say of the time in which nothing came back."""

from __future__ import annotations

import pytest

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.compare.vhost import read
from hotupgrade.vswitch.guest import Tally

TALLY = Tally(launched=512, sent=1000, received=990, dropped=0, collected=502)


def test_the_longest_time_without_a_packet() -> None:
    samples = [(0.0, 0.1, 0), (1.0, 1.1, 500_000), (2.0, 2.5, 500_000), (3.0, 3.5, 500_000), (4.0, 4.1, 1_000_000)]
    found = read(samples, TALLY)
    assert found["still_ms"] == pytest.approx(1900), "from an answer until it was asked again for the last time"
    assert found["mpps"] == pytest.approx(0.25)
    assert (found["lost"], found["launched"], found["looks"]) == (10, 512, 5)


def test_packets_all_the_time() -> None:
    assert read([(0.0, 0.1, 0), (1.0, 1.1, 1), (2.0, 2.1, 2)], TALLY)["still_ms"] == 0


@pytest.mark.parametrize("samples", [[], [(0.0, 0.1, 5)], [(0.0, 0.1, 5), (1.0, 1.1, 5)]])
def test_nothing_came(samples: list[tuple[float, float, int]]) -> None:
    with pytest.raises(HotUpgradeError, match="no packet"):
        read(samples, TALLY)
