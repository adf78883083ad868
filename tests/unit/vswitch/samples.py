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
