"""Flows and ports without what changes from one moment to the next."""

from __future__ import annotations

from hotupgrade.vswitch.flows import Flow, PortCounters, parse_flows, parse_ports
from unit.vswitch.samples import FLOWS, PORTS


def test_rules_and_counters_come_apart() -> None:
    assert parse_flows(FLOWS) == (
        Flow("cookie=0x0, table=0, in_port=1 actions=output:2", 388494720, 24863662080),
        Flow("cookie=0x0, table=0, reset_counts in_port=2 actions=drop", 1, 64),
        Flow(
            "cookie=0x7, table=1, idle_timeout=60, priority=9,ip,nw_dst=10.0.0.0/8 actions=mod_nw_tos:4,output:1", 0, 0
        ),
    )


def test_age_makes_no_difference() -> None:
    later = FLOWS.replace("duration=35.597s", "duration=99s").replace("idle_age=5", "idle_age=65")
    assert parse_flows(later) == parse_flows(FLOWS)


def test_order_makes_no_difference() -> None:
    head, *lines = FLOWS.splitlines()
    assert parse_flows("\n".join([head, *reversed(lines)])) == parse_flows(FLOWS)


def test_ports() -> None:
    assert parse_ports(PORTS) == (
        PortCounters("1", 389220384, 388530816),
        PortCounters("12", 388860864, 388552832),
        PortCounters("LOCAL", 0, 0),
    )


def test_nothing() -> None:
    assert parse_flows("NXST_FLOW reply (xid=0x4):\n") == ()
    assert parse_ports("") == ()
