"""What a guest is asked to do, and what it says."""

from __future__ import annotations

import os

import pytest

from hotupgrade.errors import NotNow
from hotupgrade.vswitch.guest import (
    Forwarding,
    GuestOptions,
    GuestPort,
    Tally,
    parse_forwarding,
    parse_ports,
    rules,
)
from unit.vswitch.samples import GUEST_FORWARDING, GUEST_PORTS


def test_ports() -> None:
    first = GuestPort(0, received=1384960, missed=1, receive_errors=2, no_buffer=3, sent=1385088, send_errors=4)
    assert parse_ports(GUEST_PORTS) == (first, GuestPort(1, received=5, sent=6))
    assert parse_ports("") == ()


def test_forwarding_of_each_port_without_the_sum() -> None:
    first = Forwarding(0, received=1816864, receive_dropped=7, sent=1816960, send_dropped=9)
    assert parse_forwarding(GUEST_FORWARDING) == (first, Forwarding(1, received=1, sent=2))


def test_a_counter_that_is_not_shown() -> None:
    with pytest.raises(NotNow, match="shows no RX-nombuf, TX-errors"):
        parse_ports(GUEST_PORTS.replace("RX-nombuf", "RX-other").replace("TX-errors", "TX-other"))


@pytest.mark.parametrize(
    ("tally", "lost", "whole"),
    [
        (Tally(launched=512, sent=9000, received=9000, dropped=0, collected=512), 0, True),
        (Tally(launched=512, sent=9000, received=8999, dropped=0, collected=511), 1, False),
        (Tally(launched=512, sent=9000, received=9000, dropped=2, collected=510), 0, False),  # the guest's own fault
        (Tally(launched=512, sent=0, received=0, dropped=0, collected=0), 0, False),  # nothing ever went round
    ],
)
def test_whole_is_more_than_nothing_lost(tally: Tally, lost: int, whole: bool) -> None:
    assert (tally.lost, tally.whole) == (lost, whole)


def test_what_goes_round_fits_into_a_ring() -> None:
    GuestOptions(queues=2, queue_size=1024, bursts=8).check()
    with pytest.raises(NotNow, match="a ring of 1024 may overflow"):
        GuestOptions(queues=2, queue_size=1024, bursts=9).check()


def test_numbers() -> None:
    options = GuestOptions(queues=2, bursts=4)
    assert options.launched(2) == 512
    assert options.buffers(4) >= 2 * 4 * 2 * options.queue_size  # all rings full
    assert options.memory(4) > options.memory(2) > 0


def test_core_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {2, 3, 5})
    assert (GuestOptions().cpu(), GuestOptions(core=3).cpu()) == (2, 3)


def test_rules_look_at_more_than_the_port() -> None:
    both = rules(GuestOptions(), 3, 4)
    assert len(both) == len(set(both)) == 512
    assert both[0] == "table=0,priority=20,in_port=3,ip,nw_src=198.18.0.3,actions=output:4"
    assert both[-1] == "table=0,priority=20,in_port=4,ip,nw_src=198.18.255.3,actions=output:3"
    assert len(rules(GuestOptions(many_flows=False), 1, 2)) == 2
