"""Reading the polling threads' counters."""

from __future__ import annotations

import pytest

from hotupgrade.errors import NotNow
from hotupgrade.vswitch.statistics import (
    DatapathPort,
    PmdStatistics,
    Rate,
    RxQueue,
    Shares,
    parse_datapath,
    parse_drops,
    parse_megaflows,
    parse_pmd_statistics,
    parse_rx_queues,
    rate_between,
)
from unit.vswitch.samples import COVERAGE, DATAPATH, MEGAFLOWS, PMD_STATISTICS, RX_QUEUES


def test_every_polling_thread_and_not_the_main_one() -> None:
    threads = parse_pmd_statistics(PMD_STATISTICS)
    assert [(thread.numa, thread.core, thread.packets) for thread in threads] == [(0, 1, 46350464), (1, 12, 10)]


def test_every_counter() -> None:
    first, second = parse_pmd_statistics(PMD_STATISTICS)
    assert first == PmdStatistics(
        numa=0,
        core=1,
        packets=46350464,
        recirculations=3,
        simple_match_hits=46348992,
        emc_hits=17,
        megaflow_hits=61,
        upcalls=2,
        failed_upcalls=1377,
        idle_cycles=600,
        busy_cycles=5432732512,
    )
    assert first.cycles == 5432733112
    assert second.emc_hits == 0  # a counter that is not printed


def test_nothing_polls() -> None:
    assert parse_pmd_statistics("main thread:\n  packets received: 7\n") == ()
    assert parse_pmd_statistics("") == ()


def test_difference() -> None:
    earlier = PmdStatistics(0, 1, packets=10, idle_cycles=5, busy_cycles=7)
    later = PmdStatistics(0, 1, packets=25, idle_cycles=6, busy_cycles=17)
    assert later.since(earlier) == PmdStatistics(0, 1, packets=15, idle_cycles=1, busy_cycles=10)


def test_rate_is_that_of_threads_seen_twice() -> None:
    before = [PmdStatistics(0, 1, packets=100, busy_cycles=1000), PmdStatistics(0, 2, packets=5, busy_cycles=5)]
    after = [PmdStatistics(0, 1, packets=400, busy_cycles=2000), PmdStatistics(0, 3, packets=9, busy_cycles=9)]
    rate = rate_between(before, after, 2.0)
    assert rate == Rate(packets=300, cycles=1000, seconds=2.0)
    assert rate.per_second == 150
    assert rate.per_kilocycle == 300


@pytest.mark.parametrize(("earlier", "later", "ratio"), [(100, 99, 0.99), (0, 5, 0.0)])
def test_ratio_of_rates(earlier: int, later: int, ratio: float) -> None:
    # Another length of the window by the reader's clock changes nothing.
    assert Rate(later, 1000, 0.7).ratio_to(Rate(earlier, 1000, 1.3)) == pytest.approx(ratio)
    assert Rate(5, 0, 1.0).per_kilocycle == 0


def test_shares_are_of_all_lookups() -> None:
    pmd = PmdStatistics(
        0, 1, simple_match_hits=10, emc_hits=40, smc_hits=20, megaflow_hits=20, upcalls=6, failed_upcalls=4
    )
    assert pmd.shares() == Shares(simple_match=0.1, emc=0.4, smc=0.2, megaflow=0.2, upcalls=0.1)
    assert PmdStatistics(0, 1).shares() == Shares(0, 0, 0, 0, 0)


def test_datapath() -> None:
    datapath = parse_datapath(DATAPATH)
    assert (datapath.hit, datapath.missed, datapath.lost, datapath.megaflows) == (64994538, 258, 16212, 256)
    assert datapath.ports == (
        DatapathPort("ovs-netdev", 0, 0, 0, 0),
        DatapathPort("vhost1", received=2246336, receive_dropped=0, sent=2246432, send_dropped=32),
    )
    assert datapath.dropped == 32
    with pytest.raises(NotNow, match="no lookups"):
        parse_datapath("")


def test_megaflows_of_every_thread() -> None:
    head = "recirc_id(0),in_port({}),packet_type(ns=0,id=0),eth_type(0x0800),ipv4({}frag=no), "
    source = "src=198.18.11.3,"
    assert parse_megaflows(MEGAFLOWS) == {
        "main: " + head.format(1, "") + "actions:drop": 0,
        "1: " + head.format(2, source) + "actions:3": 20787,
        "1: " + head.format(3, source) + "dp:ovs, actions:ct(commit),2": 7,
        "12: " + head.format(2, source) + "actions:3": 1,
    }


def test_drops_that_happened() -> None:
    assert parse_drops(COVERAGE) == {"lock_error": 160}


def test_queues_of_every_thread() -> None:
    assert parse_rx_queues(RX_QUEUES) == (
        RxQueue(0, "vhost1", 0, enabled=True),
        RxQueue(0, "vhost2", 11, enabled=False),
        RxQueue(1, "null1", 1, enabled=True),
    )
