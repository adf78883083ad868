"""What Open vSwitch 3.1.0 prints, shortened."""

from __future__ import annotations

PMD_STATISTICS = """\
pmd thread numa_id 0 core_id 1:
  packets received: 46350464
  packet recirculations: 3
  avg. datapath passes per packet: 1.00
  phwol hits: 0
  mfex opt hits: 0
  simple match hits: 46348992
  emc hits: 17
  smc hits: 0
  megaflow hits: 61
  avg. subtable lookups per megaflow hit: 1.00
  miss with success upcall: 2
  miss with failed upcall: 1377
  avg. packets per output batch: 32.00
  idle cycles: 600 (0.01%)
  processing cycles: 5432732512 (99.99%)
  avg cycles per packet: 117.21 (5432733112/46350464)
  avg processing cycles per packet: 117.21 (5432732512/46350464)
pmd thread numa_id 1 core_id 12:
  packets received: 10
  idle cycles: 90 (90.00%)
  processing cycles: 10 (10.00%)
main thread:
  packets received: 7
  packet recirculations: 0
  megaflow hits: 0
"""

FLOWS = """\
NXST_FLOW reply (xid=0x4):
 cookie=0x0, duration=35.597s, table=0, n_packets=388494720, n_bytes=24863662080, idle_age=0, in_port=1 actions=output:2
 cookie=0x7, duration=5.5s, table=1, n_packets=0, n_bytes=0, idle_timeout=60, idle_age=5, hard_age=6, priority=9,ip,\
nw_dst=10.0.0.0/8 actions=mod_nw_tos:4,output:1
 cookie=0x0, duration=5s, table=0, n_packets=1, n_bytes=64, reset_counts in_port=2 actions=drop
"""

PORTS = """\
OFPST_PORT reply (xid=0x2): 3 ports
  port LOCAL: rx pkts=0, bytes=0, drop=0, errs=0, frame=0, over=0, crc=0
           tx pkts=0, bytes=0, drop=0, errs=0, coll=0
  port  1: rx pkts=389220384, bytes=0, drop=0, errs=0, frame=?, over=?, crc=?
           tx pkts=388530816, bytes=0, drop=0, errs=0, coll=?
  port 12: rx pkts=388860864, bytes=0, drop=0, errs=0, frame=?, over=?, crc=?
           tx pkts=388552832, bytes=0, drop=0, errs=0, coll=?
"""

TRACE = """\
Flow: icmp6,in_port=LOCAL,vlan_tci=0x0000

bridge("probe")
---------------
 0. in_port=LOCAL, priority 0
    drop

Final flow: unchanged
Megaflow: recirc_id=0,eth,icmp6,in_port=LOCAL,nw_ttl=255,nw_frag=no,icmp_type=0x87/0xff,{more}
Datapath actions: drop
"""

DATAPATH = """\
netdev@ovs-netdev:
  lookups: hit:64994538 missed:258 lost:16212
  flows: 256
  port 0: ovs-netdev (tap)
    RX packets:0 errors:0 dropped:0 overruns:0 frame:0
    TX packets:0 errors:0 dropped:0 aborted:0 carrier:0
    collisions:0
    RX bytes:0  TX bytes:0
  port 3: vhost1 (dpdkvhostuserclient: configured_rx_queues=1, configured_tx_queues=1, mtu=1500)
    RX packets:2246336 errors:? dropped:? overruns:? frame:?
    TX packets:2246432 errors:? dropped:32 aborted:? carrier:?
    collisions:?
    RX bytes:143765504 (137.1 MiB)  TX bytes:143771648 (137.1 MiB)
"""

MEGAFLOWS = """\
flow-dump from the main thread:
recirc_id(0),in_port(1),packet_type(ns=0,id=0),eth_type(0x0800),ipv4(frag=no), packets:0, bytes:0, used:never, \
actions:drop
flow-dump from pmd on cpu core: 1
recirc_id(0),in_port(2),packet_type(ns=0,id=0),eth_type(0x0800),ipv4(src=198.18.11.3,frag=no), packets:20787, \
bytes:1330368, used:0.042s, actions:3
recirc_id(0),in_port(3),packet_type(ns=0,id=0),eth_type(0x0800),ipv4(src=198.18.11.3,frag=no), packets:7, \
bytes:448, used:1.2s, flags:SF., dp:ovs, actions:ct(commit),2, dp-extra-info:miniflow_bits(4,1)
flow-dump from pmd on cpu core: 12
recirc_id(0),in_port(2),packet_type(ns=0,id=0),eth_type(0x0800),ipv4(src=198.18.11.3,frag=no), packets:1, \
bytes:64, used:0.000s, actions:3
"""

COVERAGE = """\
Event coverage, avg rate over last: 5 seconds, last minute, last hour,  hash=b0b4f3ed:
datapath_drop_lock_error  32.0/sec     2.667/sec        0.0444/sec   total: 160
datapath_drop_recirc_error   0.0/sec     0.000/sec        0.0000/sec   total: 0
drop_action_of_pipeline   0.0/sec     0.000/sec        0.0000/sec   total: 5
83 events never hit
"""

RX_QUEUES = """\
Displaying last 60 seconds pmd usage %
pmd thread numa_id 0 core_id 0:
  isolated : false
  port: vhost1            queue-id:  0 (enabled)   pmd usage: NOT AVAIL
  port: vhost2            queue-id: 11 (disabled)  pmd usage: 12 %
  overhead: NOT AVAIL
pmd thread numa_id 0 core_id 1:
  isolated : true
  port: null1             queue-id:  1 (enabled)   pmd usage:  0 %
"""

GUEST_PORTS = """\
show port stats all

  ######################## NIC statistics for port 0  ########################
  RX-packets: 1384960    RX-missed: 1          RX-bytes:  88637440
  RX-errors: 2
  RX-nombuf:  3
  TX-packets: 1385088    TX-errors: 4          TX-bytes:  88645632

  Throughput (since last show)
  Rx-pps:            0          Rx-bps:            0
  Tx-pps:            0          Tx-bps:            0
  ############################################################################

  ######################## NIC statistics for port 1  ########################
  RX-packets: 5          RX-missed: 0          RX-bytes:  88629248
  RX-errors: 0
  RX-nombuf:  0
  TX-packets: 6          TX-errors: 0          TX-bytes:  88653824
  ############################################################################
"""

GUEST_FORWARDING = """\

  ---------------------- Forward statistics for port 0  ----------------------
  RX-packets: 1816864        RX-dropped: 7             RX-total: 1816871
  TX-packets: 1816960        TX-dropped: 9             TX-total: 1816969
  ----------------------------------------------------------------------------

  ---------------------- Forward statistics for port 1  ----------------------
  RX-packets: 1              RX-dropped: 0             RX-total: 1
  TX-packets: 2              TX-dropped: 0             TX-total: 2
  ----------------------------------------------------------------------------

  +++++++++++++++ Accumulated forward statistics for all ports+++++++++++++++
  RX-packets: 1816865        RX-dropped: 7             RX-total: 1816872
  TX-packets: 1816962        TX-dropped: 9             TX-total: 1816971
  ++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++
"""
