"""The traffic meter and the ways, on the real switch, in short: ``make compare`` does it in full."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare import table
from hotupgrade.vswitch.compare.meter import Meter, prove
from hotupgrade.vswitch.compare.network import Network
from hotupgrade.vswitch.compare.run import PAIRS, Settings, bed, compare
from hotupgrade.vswitch.switch import Switch

PPS = 2000  # what a crowded machine still does in time


@pytest.fixture(autouse=True)
def _tools() -> None:
    missing = [tool for tool in ("tcpreplay", "tcpdump", "ip", "nsenter") if not shutil.which(tool)]
    assert not missing, f"{missing} are needed: scripts/install-packages compare"


@pytest.fixture
def running(vulnerable: SwitchBuild) -> Iterator[tuple[Switch, Network]]:
    with bed(vulnerable, flows=100) as (switch, network):
        yield switch, network


def test_the_meter_finds_pauses(running: tuple[Switch, Network]) -> None:
    """How much longer they look is the machine's doing; that is what `make compare` shows, on one that is quiet."""
    switch, network = running
    meter = Meter(network, PAIRS[0][0], PAIRS[1][0], PPS)
    (_, quiet), (_, paused) = prove(meter, switch.pid, [50.0])
    assert quiet.sent > 500
    assert quiet.received > 0.9 * quiet.sent
    assert paused.gap_ms > 45
    assert paused.delay_ms[2] > 45


@pytest.mark.full
@pytest.mark.timeout(400)
def test_ways_side_by_side(vulnerable: SwitchBuild, fixed: SwitchBuild) -> None:
    settings = Settings(runs=1, pps=PPS, flows=100, only=("restart", "hot"))
    document = compare(vulnerable, fixed, settings, print)
    restart, hot = document["ways"]
    assert not restart["kept"]["process id"]
    assert not restart["kept"]["packets counted by flows"]
    assert restart["kept"]["OpenFlow flows"], "ovs-ctl saves and restores them"
    assert restart["lost"][0] > PPS * 0.2
    assert all(hot["kept"].values()), hot["kept"]
    assert hot["break_ms"][0] < restart["break_ms"][0] / 2
    assert hot["inside_us"][0] < 5000
    assert hot["title"] in table.markdown(document)
