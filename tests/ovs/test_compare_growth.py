"""What a switch is made to hold is really there, and breaks are taken apart: ``make compare`` does it in full."""

from __future__ import annotations

import shutil

import pytest

from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare import distribution, growth
from hotupgrade.vswitch.compare.loads import CONNECTIONS, FLOWS, PORTS, Load


@pytest.fixture(autouse=True)
def _tools() -> None:
    assert shutil.which("tcpreplay"), "tcpreplay is needed: scripts/install-packages compare"


def test_what_a_switch_holds(vulnerable: SwitchBuild) -> None:
    """All three in one switch."""
    with growth.switch_between(vulnerable, growth.cores(1)) as (switch, made):
        counts: list[tuple[Load, int]] = [(CONNECTIONS, 2_000), (PORTS, 20), (FLOWS, 300)]
        for load, count in counts:
            load.fill(switch, made, growth.PAIRS[0][0], count)
            assert load.count(switch) >= 0.99 * count


@pytest.mark.full
@pytest.mark.timeout(600)
def test_growth(vulnerable: SwitchBuild, fixed: SwitchBuild) -> None:
    settings = growth.Settings(runs=2, most=100)
    document = dict(growth.measure(vulnerable, fixed, settings, print))
    assert set(document) == {axis.key for axis in growth.axes()}
    for axis in document.values():
        assert axis["points"]
        for point in axis["points"]:
            assert "failed" not in point, point
            assert point["upgrade"]["loaded"]["count"] == point["upgrade"]["empty"]["count"] == 2
            assert point["upgrade"]["ratio"] > 0
    assert "within 10 %" in growth.markdown(document)


@pytest.mark.full
def test_distribution(vulnerable: SwitchBuild, fixed: SwitchBuild) -> None:
    ((_, document),) = distribution.measure(vulnerable, fixed, distribution.Settings(3), print)
    assert len(document["runs"]) == 6
    for row in document["runs"]:
        assert sum(row["parts_us"].values()) == pytest.approx(row["break_us"], rel=0.02)
        if document["machine"]:
            assert row["preempted_us"] <= row["break_us"] + 1
    assert "hot upgrade" in distribution.markdown(document)
