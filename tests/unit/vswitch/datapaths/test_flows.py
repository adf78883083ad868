"""Reading the flows of a datapath."""

from __future__ import annotations

from hotupgrade.vswitch.datapaths.flows import packets_by_filter, parse_datapath_flows

KERNEL = (
    "ufid:43170a31-f39f-43c5-a85a-fefd21577dc9, recirc_id(0),in_port(p1),ct_state(0/0),eth_type(0x0800),"
    "ipv4(src=10.1.0.1/0.0.0.0,dst=10.1.0.2,proto=17,frag=no),udp(src=9,dst=10003), packets:10, bytes:640, "
    "used:0.532s, dp:ovs, actions:p2\n"
    "ufid:00000000-f39f-43c5-a85a-fefd21577dc9, recirc_id(0),in_port(p2),eth_type(0x0806), packets:0, bytes:0, "
    "used:never, dp:ovs, actions:userspace(pid=4294967295,controller(reason=1))\n"
)
OFFLOADED = (
    "ufid:43170a31-f39f-43c5-a85a-fefd21577dc9, in_port(p2),udp(src=10003/0xff00,dst=9), packets:3, bytes:64, "
    "used:1.5s, flags:SFPR., offloaded:yes, dp:tc, actions:p1\n"
)
USER = (
    "flow-dump from the main thread:\n"
    "ufid:7af91318-80e7-4d41-aa65-cb580488127f, in_port(p1),udp(src=9,dst=33012), packets:0, bytes:0, used:never, "
    "dp:ovs, actions:p2, dp-extra-info:miniflow_bits(4,3)\n"
)


def test_flows_of_the_kernel() -> None:
    first, second = parse_datapath_flows(KERNEL)
    assert (first.ufid[:8], first.packets, first.used, first.datapath) == ("43170a31", 10, 0.532, "ovs")
    assert (first.in_port, first.ports, first.actions, first.offloaded) == ("p1", (9, 10003), "p2", False)
    assert (second.used, second.ports) == (None, (None, None))
    assert second.actions == "userspace(pid=4294967295,controller(reason=1))"
    assert first.rule.endswith("udp(src=9,dst=10003), actions:p2")


def test_an_offloaded_flow() -> None:
    (flow,) = parse_datapath_flows(OFFLOADED)
    assert (flow.offloaded, flow.datapath, flow.used, flow.actions) == (True, "tc", 1.5, "p1")
    assert flow.ports == (None, 9)


def test_a_flow_in_user_space() -> None:
    (flow,) = parse_datapath_flows(USER)
    assert (flow.actions, flow.ports, flow.datapath) == ("p2", (9, 33012), "ovs")


def test_filters_of_traffic_control() -> None:
    action = {"kind": "mirred", "stats": {"bytes": 60, "packets": 7}}
    options = {"handle": 1, "keys": {"dst_port": 10003}, "not_in_hw": True, "actions": [action]}
    heading = {"protocol": "ip", "pref": 3, "kind": "flower", "chain": 0}
    found = packets_by_filter("p1", [heading, {**heading, "options": options}])
    assert found == {"p1 ip pref 3 handle 1 {'dst_port': 10003}": 7}


def test_flows_that_open_connections() -> None:
    line = "ufid:00, recirc_id(0x1),ct_state({}),in_port(t1), packets:1, bytes:9, used:1.0s, dp:ovs, actions:t2"
    wanted = {"0x21/0x21": True, "0x22/0x22": False, "0/0x20": False, "0x22/0x23": False, "0/0": False}
    for state, opens in wanted.items():
        (flow,) = parse_datapath_flows(line.format(state))
        assert flow.opens_connections is opens, state
