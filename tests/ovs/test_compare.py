"""The traffic meter and the ways, on the real switch, in short: ``make compare`` does it in full."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare import beside, picture, secondary, table
from hotupgrade.vswitch.compare.bed import PAIRS, SINK, SOURCE
from hotupgrade.vswitch.compare.card import card
from hotupgrade.vswitch.compare.meter import Meter, prove
from hotupgrade.vswitch.compare.network import Network
from hotupgrade.vswitch.compare.run import Settings, bed, measure
from hotupgrade.vswitch.compare.standby import MOST_SECONDARIES, hand_over, primary_and_secondary
from hotupgrade.vswitch.compare.twins import move_over, two_places
from hotupgrade.vswitch.switch import Switch

PPS = 2000  # what a crowded machine still does in time
PATCHES = Path(__file__).parent / "patches"
LOST_BY_A_RESTART = (
    "process id",
    "packets counted by flows",
    "megaflows",
    "tracked connections",
    "controller connection",
)


@pytest.fixture(autouse=True)
def _tools() -> None:
    missing = [tool for tool in ("tcpreplay", "tcpdump", "ip", "tc", "nsenter") if not shutil.which(tool)]
    assert not missing, f"{missing} are needed: scripts/install-packages compare"


@pytest.fixture
def running(vulnerable: SwitchBuild) -> Iterator[tuple[Switch, Network]]:
    with bed(vulnerable, flows=100) as (switch, network):
        yield switch, network


@pytest.fixture
def run(vulnerable: SwitchBuild, fixed: SwitchBuild) -> Callable[..., dict[str, dict[str, Any]]]:
    """Go these ways, each once; what is said of each."""

    def go(*keys: str, loops: SwitchBuild | None = None, flows: int = 100) -> dict[str, dict[str, Any]]:
        settings = Settings(runs=1, pps=PPS, flows=flows, only=keys, loops=loops)
        document = beside.together(found for _, found in measure(vulnerable, fixed, settings, print))
        text = table.markdown(document)
        assert all(way["title"] in text for way in document["ways"])
        return {way["key"]: way for way in document["ways"]}

    return go


def test_the_meter_finds_pauses(running: tuple[Switch, Network]) -> None:
    """How much longer they look is the machine's doing; that is what `make compare` shows, on one that is quiet."""
    switch, network = running
    meter = Meter(network, SOURCE, SINK, PPS)
    (_, quiet), (_, paused) = prove(meter, switch.pid, [50.0])
    assert quiet.sent > 500
    assert quiet.received > 0.9 * quiet.sent
    assert paused.gap_ms > 45
    assert paused.delay_ms[2] > 45


def test_a_card_moves_its_wires() -> None:
    """What forwards in each function is the kernel; nothing is lost on the way from one to the other."""
    with card(PAIRS, 2) as made:
        for function in made.functions:
            for one, other in ((0, 1), (1, 0)):
                device, target = PAIRS[one][1], PAIRS[other][1]
                function.namespace.run("tc", "qdisc", "add", "dev", device, "clsact")
                words = ("filter", "add", "dev", device, "ingress", "protocol", "all", "u32", "match", "u32", "0", "0")
                function.namespace.run("tc", *words, "action", "mirred", "egress", "redirect", "dev", target)
        counts = [_received(made.functions)]
        with Meter(made.network, SOURCE, SINK, PPS).watch(20) as watch:
            for function in (0, 1, 0):
                made.plug(function)
                time.sleep(0.3)
                counts.append(_received(made.functions))
        assert watch.measured.lost == watch.measured.duplicated == 0
        for (before, after), here, there in zip(pairwise(counts[1:]), (1, 0), (0, 1), strict=True):
            assert after[here] - before[here] > PPS * 0.2
            assert after[there] - before[there] < PPS * 0.1


def _received(functions: tuple[Network, ...]) -> list[int]:
    path = "/proc/{}/net/dev"
    texts = (Path(path.format(function.pid)).read_text() for function in functions)
    return [int(text.partition(f"{PAIRS[0][1]}:")[2].split()[1]) for text in texts]


def test_one_process_stands_in_for_another(vulnerable: SwitchBuild) -> None:
    with primary_and_secondary(vulnerable, 0) as made:
        standby, usual = made.subject, made.usage()
        assert usual.polling == 1
        assert usual.hugepages_kb < 2 * 1024 * 100, "both have the same memory"
        with Meter(made.network, SOURCE, SINK, PPS).watch(20) as watch:
            hand_over(standby.secondary, standby.primary)
            standby.secondary.stop()
            time.sleep(0.3)
        assert watch.measured.received > 0.9 * watch.measured.sent
        standby.secondary = standby.new_secondary()
        hand_over(standby.primary, standby.secondary)
        for _ in range(MOST_SECONDARIES):  # more than fit into the memory, were it not given back
            standby.secondary.stop()
            standby.secondary = standby.new_secondary()
            made.freshen()
        assert made.usage().polling <= 1


def test_two_main_processes(vulnerable: SwitchBuild, fixed: SwitchBuild) -> None:
    with two_places(vulnerable, flows=100) as made:
        made.freshen()
        before = made.usage()
        with Meter(made.network, SOURCE, SINK, PPS).watch(60) as watch:
            still = made.remember()
            watch.begin()
            peak = move_over(made.subject, fixed)["peak"]
        kept, after = still(watch.measured.received), made.usage()
        assert made.subject.switch.build == fixed
    assert watch.measured.received > 0.5 * watch.measured.sent
    assert kept["OpenFlow flows"]
    for fact in (*LOST_BY_A_RESTART, "datapath ids"):
        assert not kept[fact], fact
    assert (before.polling, peak["polling"], after.polling) == (1, 2, 1)
    assert peak["hugepages_kb"] == 2 * before.hugepages_kb == 2 * after.hugepages_kb > 0
    assert peak["private_kb"] > before.private_kb + 10 * 1024, "what a switch that has just started has for itself"


@pytest.mark.full
@pytest.mark.timeout(400)
def test_ways_side_by_side(
    run: Callable[..., dict[str, dict[str, Any]]], build_variant: Callable[..., SwitchBuild], tmp_path: Path
) -> None:
    loops = build_variant("loops", (PATCHES / "loops.patch").read_text())
    ways = run("restart", "hot", "hot-loops", loops=loops)
    restart = ways["restart"]
    for fact in LOST_BY_A_RESTART:
        assert not restart["kept"][fact], fact
    assert restart["kept"]["OpenFlow flows"], "ovs-ctl saves and restores them"
    assert restart["lost"][0] > PPS * 0.2
    for hot in (ways["hot"], ways["hot-loops"]):
        assert all(hot["kept"].values()), hot["kept"]
        assert hot["break_ms"][0] < restart["break_ms"][0] / 2
        assert hot["inside_us"][0] < 20_000
        assert hot["extra"]["polling"][0] == hot["extra"]["hugepages_kb"][0] == 0
    restarted = ways["hot-loops"]["runs"][0]
    assert restarted["break_us"] > 0
    document = {"ways": list(ways.values()), "settings": {"pps": PPS, "ring": 512}}
    picture.draw_series(document, tmp_path / "series.png")


@pytest.mark.full
@pytest.mark.timeout(400)
def test_without_dpdk(run: Callable[..., dict[str, dict[str, Any]]]) -> None:
    ways = run("plain-restart", "plain-hot")
    assert all(ways["plain-hot"]["kept"].values()), ways["plain-hot"]["kept"]
    assert not ways["plain-restart"]["kept"]["megaflows"]
    assert ways["plain-hot"]["break_ms"][0] < ways["plain-restart"]["break_ms"][0]


@pytest.mark.full
@pytest.mark.timeout(400)
def test_a_secondary_restarted(run: Callable[..., dict[str, dict[str, Any]]]) -> None:
    ways = run("secondary", "standby", flows=0)
    for way in ways.values():
        assert way["kept"] == {"process id": False, "ports": True}
        assert way["extra"]["private_kb"][0] > 1024, "the primary is there at all times"
        assert way["extra"]["polling"][0] == 0


@pytest.mark.full
def test_open_vswitch_is_no_secondary(vulnerable: SwitchBuild) -> None:
    """As the page says; a version that could be one would change the comparison."""
    found = secondary.try_it(vulnerable)
    assert not found["starts"]
    assert not found["forwards"]
    assert "Could not disable multiprocess" in found["says"]
