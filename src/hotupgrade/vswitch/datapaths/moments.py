"""What a switch and the kernel know at one moment, while the traffic is halted, and whether a later moment goes on
from there."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from hotupgrade.vswitch.baseline import Fact
from hotupgrade.vswitch.datapaths.flows import DatapathFlow, packets_by_filter, parse_datapath_flows
from hotupgrade.vswitch.datapaths.plain import PlainSwitch
from hotupgrade.vswitch.datapaths.streams import Tally
from hotupgrade.vswitch.namespaces import Namespace
from hotupgrade.vswitch.statistics import Datapath

FRESH = 32768  # flows that are opened once only have a port from here on; they may end when they like
PROBES = "192.168.1"  # destinations of packets whose cached flow shows whether CVE-2023-1668 is there
USED_BLUR = 1.5  # seconds: what the reading takes, and how seldom the switch asks
IN_USE = 15.0  # seconds that a flow of a stream may be without a packet: while traffic is halted and read, in a guest
WRONG = ("|EMER|", "assertion", "Segmentation", "SIGSEGV", "terminated by", "double free", "corrupt", "panic")

Number = re.compile(r"^\s*(?P<name>[^:]+?)\s*:\s*(?P<count>\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment.  ``sessions`` are counters of what must not happen (flaps, expiries) by switch and session;
    ``exchanged`` those of what must go on (LACP frames)."""

    at: float
    pid: int
    start_time: int | None
    threads: frozenset[tuple[int, str]]
    ports: frozenset[str]
    indexes: Mapping[str, int]
    datapath: Datapath
    flows: Mapping[str, DatapathFlow]
    connections: frozenset[str]
    filters: Mapping[str, int]
    states: Mapping[str, str]
    sessions: Mapping[str, int]
    exchanged: Mapping[str, int]
    tallies: tuple[Tally, ...]
    wrong: tuple[str, ...]

    @property
    def kept_flows(self) -> dict[str, DatapathFlow]:
        """Those of streams that go on.  Others, as of the time before a bridge had learnt an address, may end."""
        return {ufid: flow for ufid, flow in self.flows.items() if _in_use(flow) and not _passing(flow)}


def take(
    switch: PlainSwitch,
    tallies: tuple[Tally, ...],
    filtered: Collection[str] = (),
    peers: Mapping[str, PlainSwitch] = {},
) -> Moment:
    """Read everything.  ``filtered``: devices whose filters of traffic control are to be read; ``peers``: switches,
    this one among them, whose sessions are to be read, by name."""
    inside = Namespace(switch.pid)
    flows = {flow.ufid: flow for flow in parse_datapath_flows(switch.appctl("dpctl/dump-flows", "-m"))}
    filters: dict[str, int] = {}
    for device in filtered:
        filters |= packets_by_filter(device, inside.filters(device))
    states: dict[str, str] = {}
    sessions: dict[str, int] = {}
    exchanged: dict[str, int] = {}
    for name, peer in peers.items():
        _read_sessions(name, peer, states, sessions, exchanged)
    return Moment(
        at=time.monotonic(),
        pid=switch.pid,
        start_time=switch.start_time,
        threads=frozenset(switch.threads().items()),
        ports=frozenset(switch.ports()),
        indexes=inside.indexes(),
        datapath=switch.datapath(),
        flows=flows,
        connections=_connections(switch),
        filters=filters,
        states=states,
        sessions=sessions,
        exchanged=exchanged,
        tallies=tallies,
        wrong=tuple(line for line in switch.log().splitlines() if any(word in line for word in WRONG)),
    )


def compare(before: Moment, after: Moment) -> tuple[Fact, ...]:
    """Every fact, whether it holds or not; those about what neither has are left out."""
    facts = [
        _equal("process, and when it started", (before.pid, before.start_time), (after.pid, after.start_time)),
        _same_set("threads", before.threads, after.threads),
        _same_set("ports of the bridges", before.ports, after.ports),
        _same_set("interfaces and their indexes", set(before.indexes.items()), set(after.indexes.items())),
        *_about_flows(before, after),
        _equal("packets that no thread took (lost)", before.datapath.lost, after.datapath.lost),
        _grew("packets that the datapath handed up (missed)", before.datapath.missed, after.datapath.missed),
        *_about_traffic(before, after),
    ]
    if before.connections or after.connections:
        facts.append(_same_set("connections that are tracked", before.connections, after.connections))
    if before.filters or after.filters:
        facts += _about_filters(before.filters, after.filters)
    if before.states or after.states:
        facts.append(_same_set("states of BFD and LACP", set(before.states.items()), set(after.states.items())))
        facts.append(_same_set("flaps and expiries", set(before.sessions.items()), set(after.sessions.items())))
        facts.append(_all_grew("frames of LACP, each way and link", before.exchanged, after.exchanged))
    facts.append(Fact("complaints in the log", "0", ", ".join(after.wrong[:3]) or "0", not after.wrong))
    return tuple(facts)


def _about_flows(before: Moment, after: Moment) -> list[Fact]:
    old, new = before.kept_flows, after.flows
    changed = [flow.rule for ufid, flow in old.items() if ufid not in new or new[ufid].rule != flow.rule]
    kept = len(old) - len(changed)
    here = [(flow, new[ufid]) for ufid, flow in old.items() if ufid in new]
    back = [one.rule for one, other in here if other.packets < one.packets]
    stale = [one.rule for one, other in here if not _used_later(one, before.at, other, after.at)]
    total_before, total_after = (sum(pair[side].packets for pair in here) for side in (0, 1))
    facts = [
        Fact("flows in the datapath, by id", str(len(old)), _shown(kept, changed), bool(old) and not changed),
        Fact("packets that they count", str(total_before), _shown(total_after, back), not back),
        Fact("times of last use that went on", str(len(old)), _shown(len(here) - len(stale), stale), not stale),
    ]
    offloaded = sum(flow.datapath == "tc" for flow in old.values())
    if offloaded:
        now = sum(new[ufid].datapath == "tc" for ufid in old if ufid in new)
        facts.append(_equal("of them in traffic control", offloaded, now))
    return facts


def _about_traffic(before: Moment, after: Moment) -> list[Fact]:
    facts = []
    earlier = {tally.name: tally for tally in before.tallies}
    for tally in after.tallies:
        kind = "established flows" if tally.steady else "each frame a new flow"
        sent = tally.sent - earlier[tally.name].sent
        lost = tally.lost - earlier[tally.name].lost
        words = f"{lost} lost, {tally.twice} twice" + (f" (first: {tally.first[0]})" if tally.first else "")
        ok = sent > 0 and lost == 0 and tally.twice == 0
        facts.append(Fact(f"{tally.name} ({kind})", f"{sent} sent", words, ok))
    facts += _exact(before, after)
    return facts


def _exact(before: Moment, after: Moment) -> list[Fact]:
    """Flow by flow: the datapath has counted as many packets as were sent in between, so it was never made anew."""
    sent = {_way(tally, port): count for tally in after.tallies for port, count in tally.by_flow.items()}
    earlier = {_way(tally, port): count for tally in before.tallies for port, count in tally.by_flow.items()}
    differing, counted = [], 0
    for ufid, flow in after.flows.items():
        key = _way_of(flow)
        if key not in sent or ufid not in before.flows:
            continue
        counted += 1
        if flow.packets - before.flows[ufid].packets != sent[key] - earlier.get(key, 0):
            differing.append(flow.rule)
    if not counted:
        return []
    return [
        Fact("flows that counted what was sent, to the packet", str(counted), _shown(counted, differing), not differing)
    ]


def _way(tally: Tally, port: int) -> tuple[bool, int]:
    """Whether the port is the destination, and which it is: a flow of a stream."""
    return tally.name.endswith("→"), port


def _way_of(flow: DatapathFlow) -> tuple[bool, int] | None:
    source, destination = flow.ports
    if source is None or destination is None:
        return None
    return (True, destination) if source < destination else (False, source)


def _about_filters(before: Mapping[str, int], after: Mapping[str, int]) -> list[Fact]:
    kept = {name: count for name, count in before.items() if not _passing_filter(name)}
    gone = [name for name in kept if name not in after]
    back = [name for name, count in kept.items() if after.get(name, 0) < count]
    counts = sum(kept.values()), sum(after.get(name, 0) for name in kept)
    return [
        Fact(
            "filters of traffic control", str(len(kept)), _shown(len(kept) - len(gone), gone), bool(kept) and not gone
        ),
        Fact("packets that they count", str(counts[0]), _shown(counts[1], back), not back and counts[1] > counts[0]),
    ]


def _in_use(flow: DatapathFlow) -> bool:
    return flow.used is not None and flow.used < IN_USE


def _passing(flow: DatapathFlow) -> bool:
    once = any(port is not None and port >= FRESH for port in flow.ports) or f"dst={PROBES}." in flow.match
    return once or flow.opens_connections


def _passing_filter(name: str) -> bool:
    return any(int(port) >= FRESH for port in re.findall(r"'(?:src|dst)_port': (\d+)", name)) or f"{PROBES}." in name


def _used_later(before: DatapathFlow, at: float, after: DatapathFlow, then: float) -> bool:
    if before.used is None or after.used is None:
        return before.used is None
    return then - after.used >= at - before.used - USED_BLUR


def _connections(switch: PlainSwitch) -> frozenset[str]:
    lines = switch.appctl("dpctl/dump-conntrack").splitlines()
    return frozenset(re.sub(r",timeout=\d+|,id=\d+", "", line.strip()) for line in lines if "zone=" in line)


def _read_sessions(
    name: str, switch: PlainSwitch, states: dict[str, str], sessions: dict[str, int], exchanged: dict[str, int]
) -> None:
    for line in switch.vsctl("--bare", "--columns=name,bfd_status", "list", "interface").split("\n\n"):
        interface, _, status = line.strip().partition("\n")
        found = dict(re.findall(r"(\w+)=(\"[^\"]*\"|\S+)", status))
        if "flap_count" in found:
            sessions[f"{name} {interface} BFD flaps"] = int(found["flap_count"].strip('"'))
            states[f"{name} {interface} BFD"] = f"{found['state']}, remote {found['remote_state']}"
    member = ""
    for line in switch.appctl("lacp/show-stats").splitlines():
        if heading := re.match(r"^\s*member: ([^:]+):", line):
            member = heading[1]
        elif match := Number.match(line):
            key, count = f"{name} {member} {match['name']}", int(match["count"])
            if match["name"] in ("TX PDUs", "RX PDUs"):
                exchanged[key] = count
            elif "Marker" not in match["name"]:
                sessions[key] = count
    for line in switch.appctl("lacp/show").splitlines():
        if match := re.match(r"^\s*(member|status|actor state|partner state): (.*)$", line):
            member = match[2] if match[1] == "member" else member
            states[f"{name} {member} {match[1]}"] = match[2].strip()


def _equal(name: str, before: object, after: object) -> Fact:
    return Fact(name, str(before), str(after), before == after)


def _grew(name: str, before: int, after: int) -> Fact:
    return Fact(name, str(before), str(after), after > before)


def _all_grew(name: str, before: Mapping[str, int], after: Mapping[str, int]) -> Fact:
    still = [key for key, count in before.items() if after.get(key, 0) <= count]
    return Fact(name, str(sum(before.values())), _shown(sum(after.values()), still), bool(before) and not still)


def _same_set(name: str, before: Collection[object], after: Collection[object]) -> Fact:
    differing = sorted(map(str, set(before) ^ set(after)))
    return Fact(name, str(len(before)), _shown(len(after), differing), not differing)


def _shown(count: int, wrong: Collection[str]) -> str:
    return f"{count:,}" + (f" (not so: {len(wrong)}, first: {min(wrong)})" if wrong else "")
