"""A switch with its surroundings, traffic through all of it, and upgrades in the middle: from a request to a result.

Run as ``python -m hotupgrade.vswitch.datapaths.lab REQUEST RESULT``, on a machine or in a guest that is one; both are
JSON files.  Needs root; touches nothing outside of namespaces that it makes.
"""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from hotupgrade.errors import HotUpgradeError
from hotupgrade.plan.loops.profile import builtin_profiles
from hotupgrade.vswitch.baseline import Fact
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.datapaths import moments
from hotupgrade.vswitch.datapaths.flows import parse_datapath_flows
from hotupgrade.vswitch.datapaths.moments import PROBES, Moment
from hotupgrade.vswitch.datapaths.plain import PlainSwitch
from hotupgrade.vswitch.datapaths.streams import Endpoint, Traffic, endpoint
from hotupgrade.vswitch.demo import run_hotupgrade
from hotupgrade.vswitch.namespaces import Namespace
from hotupgrade.vswitch.processes import wait_until
from hotupgrade.vswitch.started import Started

BRIDGE = "br0"
VXLAN_PORT = 4789
STEADY_PORT, TRACKED_PORT, TUNNEL_PORT, BOND_PORT, FRESH_PORT = 10_000, 12_000, 14_000, 16_000, 33_000
EXACT = "move:NXM_OF_UDP_DST[]->NXM_NX_REG0[0..15],move:NXM_OF_UDP_SRC[]->NXM_NX_REG0[16..31]"
PROBE_PROTOCOL, MOST_PROBES = 111, 9
SESSION_SECONDS = 120.0
MOST_FRESH = 3.0  # flows a second, each way, that are opened once
DEFAULT_LIMIT_US, MOST_LIMIT_US = 50_000, 60_000_000


class Step(msgspec.Struct, frozen=True):
    """One upgrade, or with no files a roll-back."""

    name: str
    files: tuple[str, ...] = ()
    fixes: bool | None = None  # whether CVE-2023-1668 is closed afterwards; None: not looked at
    restarts: tuple[str, ...] = ()  # loops whose threads are to have arrived in the new code


class Request(msgspec.Struct, frozen=True):
    """What is to be done in one run of a lab."""

    build: str  # folder of the build that the switch is started from
    steps: tuple[Step, ...]
    datapath: str = "system"
    port_type: str = ""  # of the ports to the endpoints: "afxdp", or what the datapath makes of a device
    offload: bool = False
    features: tuple[str, ...] = ()  # "conntrack", "tunnel", "bond"
    bfd_misses: int = 3  # messages, one a second, until BFD gives up
    lacp_time: str = "fast"  # "fast": each second, given up after three; "slow": each 30 s, after 90
    flows: int = 40
    rate: float = 40.0  # frames a second, each way and stream
    seconds: float = 3.0  # of traffic before and after each upgrade
    patience: float = 300.0  # seconds that one command of hotupgrade may take
    slower: int = 1  # limits of loop profiles are for real processors: so many times as much
    other_config: dict[str, str] = {}


class Lab(Started):
    """Everything that runs, from start to end of the ``with``."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.traffic = Traffic()
        self.filtered: list[str] = []
        self.peers: dict[str, PlainSwitch] = {}
        self._resources = ExitStack()
        self._probes = 0

    def stop(self) -> None:
        self._resources.close()

    # Building it.

    def _start(self) -> None:
        offload = {"hw-offload": "true", "tc-policy": "skip_hw"} if self.request.offload else {}
        self.switch = self._switch({**offload, **self.request.other_config})
        self._plain()
        if "conntrack" in self.request.features:
            self._tracked()
        if {"tunnel", "bond"} & set(self.request.features):
            self.peer = self._switch(self.request.other_config)
            self.peers = {"switch": self.switch, "peer": self.peer}
        if "tunnel" in self.request.features:
            self._tunnel()
        if "bond" in self.request.features:
            self._bond()
        wait_until(self._sessions_are_up, SESSION_SECONDS, "BFD and LACP to come up", pause=0.5)

    def _switch(self, other_config: Mapping[str, str]) -> PlainSwitch:
        switch = PlainSwitch(SwitchBuild(Path(self.request.build)), other_config)
        self._resources.enter_context(switch)
        Namespace(switch.pid).silence()
        return switch

    def _plain(self) -> None:
        """Two endpoints; each UDP flow has a flow of its own in the datapath."""
        self._bridge(self.switch, BRIDGE, "fail-mode=secure")
        self.one = self._endpoint(self.switch, BRIDGE, "p1", "10.1.0.1")
        self.other = self._endpoint(self.switch, BRIDGE, "p2", "10.1.0.2")
        self._rules(
            BRIDGE,
            *(f"priority=20,udp,in_port={a},actions={EXACT},output:{b}" for a, b in (("p1", "p2"), ("p2", "p1"))),
            *(
                f"priority=30,ip,in_port=p1,nw_dst={PROBES}.{n},actions=dec_ttl,output:p2"
                for n in range(1, 1 + MOST_PROBES)
            ),
        )
        # The switch drops flows when it has many and is slow in looking through them: a thousand, in a guest.
        steady, fresh = self.request.rate, min(self.request.rate / 4, MOST_FRESH)
        self.traffic.steady("plain", self.one, self.other, flows=self.request.flows, rate=steady, port=STEADY_PORT)
        self.traffic.fresh("upcalls", self.one, self.other, rate=fresh, port=FRESH_PORT)
        if self.request.offload:
            self.filtered += ["p1", "p2"]

    def _tracked(self) -> None:
        """Two endpoints; the second may only answer: if the connections were forgotten, its frames would be lost."""
        bridge = "br-tracked"
        self._bridge(self.switch, bridge, "fail-mode=secure")
        client = self._endpoint(self.switch, bridge, "t1", "10.2.0.1")
        server = self._endpoint(self.switch, bridge, "t2", "10.2.0.2")
        self._rules(
            bridge,
            "table=0,priority=20,udp,ct_state=-trk,actions=ct(table=1,zone=7)",
            "table=1,priority=20,udp,in_port=t1,ct_state=+trk+new,actions=ct(commit,zone=7),output:t2",
            "table=1,priority=20,udp,in_port=t1,ct_state=+trk+est,actions=output:t2",
            "table=1,priority=20,udp,in_port=t2,ct_state=+trk+est,actions=output:t1",
        )
        flows, rate = self.request.flows, self.request.rate / 2
        self.traffic.steady("tracked", client, server, flows=flows, rate=rate, port=TRACKED_PORT)
        client.ask("start")
        time.sleep(flows / rate + 2.0)
        client.ask("stop")

    def _tunnel(self) -> None:
        """VXLAN to the peer, watched by BFD."""
        bridge, here, there = "br-tunnel", Namespace(self.switch.pid), Namespace(self.peer.pid)
        here.connect("under", there, "under")
        here.ip("address", "add", "10.9.0.1/24", "dev", "under")
        there.ip("address", "add", "10.9.0.2/24", "dev", "under")
        ends = []
        for switch, address, remote in ((self.switch, "10.3.0.1", "10.9.0.2"), (self.peer, "10.3.0.2", "10.9.0.1")):
            self._bridge(switch, bridge)
            ends.append(self._endpoint(switch, bridge, "v1", address))
            options = ["type=vxlan", f"options:remote_ip={remote}", "options:key=5"]
            bfd = ["bfd:enable=true", "bfd:min_tx=1000", "bfd:min_rx=1000", f"bfd:mult={self.request.bfd_misses}"]
            switch.vsctl("add-port", bridge, "vx", "--", "set", "interface", "vx", *options, *bfd)
        self._steady("tunnel", ends, TUNNEL_PORT)

    def _bond(self) -> None:
        """Two cables to the peer, bonded with LACP."""
        bridge, here, there = "br-bond", Namespace(self.switch.pid), Namespace(self.peer.pid)
        ends = []
        for name in ("l1", "l2"):
            here.connect(name, there, name)
        for switch, address in ((self.switch, "10.4.0.1"), (self.peer, "10.4.0.2")):
            self._bridge(switch, bridge)
            ends.append(self._endpoint(switch, bridge, "b1", address))
            settings = ["lacp=active", "bond_mode=balance-tcp", f"other_config:lacp-time={self.request.lacp_time}"]
            # A balance that shifts flows of its own accord would change them whether or not there is an upgrade.
            settings.append("other_config:bond-rebalance-interval=0")
            switch.vsctl("add-bond", bridge, "bond0", "l1", "l2", *settings)
        self._steady("bond", ends, BOND_PORT)

    def _steady(self, name: str, ends: Sequence[Endpoint], port: int) -> None:
        rate = self.request.rate / 2
        self.traffic.steady(name, ends[0], ends[1], flows=self.request.flows, rate=rate, port=port)

    def _bridge(self, switch: PlainSwitch, name: str, *settings: str) -> None:
        kind = f"datapath_type={self.request.datapath}"
        switch.vsctl("add-br", name, "--", "set", "bridge", name, kind, *settings)

    def _endpoint(self, switch: PlainSwitch, bridge: str, port: str, address: str) -> Endpoint:
        """An endpoint at a new port of the bridge."""
        made = self._resources.enter_context(endpoint(f"{switch.pid}-{port}", address))
        Namespace(switch.pid).connect(port, made.namespace, made.device)
        kind = ["--", "set", "interface", port, f"type={self.request.port_type}"] if self.request.port_type else []
        switch.vsctl("add-port", bridge, port, *kind)
        made.listen()
        return made

    def _rules(self, bridge: str, *rules: str) -> None:
        self.switch.ofctl("add-flows", bridge, "-", text="\n".join(rules) + "\n")

    def _sessions_are_up(self) -> bool:
        for switch in self.peers.values():
            states = switch.appctl("bfd/show"), switch.appctl("lacp/show")
            up = len(_lines(states[0], "Local Session State: up"))
            current = [line for line in _lines(states[1], "member: ") if "current attached" in line]
            if up != ("tunnel" in self.request.features) or len(current) != 2 * ("bond" in self.request.features):
                return False
        return True

    # Using it.

    def moment(self) -> Moment:
        """Halt the traffic, and read everything."""
        tallies = self.traffic.stop()
        self.switch.check_interfaces()
        return moments.take(self.switch, tallies, self.filtered, self.peers)

    def run(self, step: Step) -> tuple[dict[str, Any], Moment]:
        """Upgrade (or roll back) under traffic; what hotupgrade reported, and the moment after."""
        begin = len(self.switch.log())
        self.traffic.start()
        time.sleep(self.request.seconds)
        command = "upgrade" if step.files else "rollback"
        limit = str(int(self.request.patience / 3))
        words = [command, str(self.switch.pid), *step.files, "--timeout", limit, "--json"]
        if step.files and self.request.slower > 1:
            words += [word for path in self._slower_profiles() for word in ("--profile", str(path))]
        document = run_hotupgrade(words, self.request.patience)
        time.sleep(self.request.seconds)
        document["log"] = self.switch.log()[begin:]
        return document, self.moment()

    def _slower_profiles(self) -> Iterator[Path]:
        for path in builtin_profiles():
            slower = self.switch.directory / path.name
            slower.write_text(with_limits(path.read_text(), self.request.slower))
            yield slower

    def probe(self) -> str:
        """The flow that the datapath caches for a packet that CVE-2023-1668 is about: made by a handler, just now."""
        self._probes += 1
        address = f"{PROBES}.{self._probes}"
        words = {"to_mac": self.other.mac, "source": "10.1.0.1", "destination": address, "protocol": PROBE_PROTOCOL}
        self.one.ask("packet", **words)
        wait_until(lambda: bool(self._cached(address)), 20.0, f"a flow for {address}", pause=0.2)
        return self._cached(address)

    def _cached(self, address: str) -> str:
        flows = parse_datapath_flows(self.switch.appctl("dpctl/dump-flows", "-m"))
        return next((flow.rule for flow in flows if f"dst={address}," in flow.match), "")

    def revalidated(self) -> bool:
        """Have every cached flow looked at again; whether the first probe's is still there then."""
        self._rules(BRIDGE, f"table=9,priority={self._probes},actions=drop")
        time.sleep(2 * self.request.seconds)
        return bool(self._cached(f"{PROBES}.1"))


def carry_out(request: Request, say: Any) -> dict[str, Any]:
    """The whole of a request; every step with its facts."""
    steps: list[dict[str, Any]] = []
    with Lab(request) as lab:
        say("everything is up")
        holes = [_hole(lab.probe())] if any(step.fixes is not None for step in request.steps) else []
        lab.traffic.start()
        time.sleep(max(2 * request.seconds, 2 * request.flows / request.rate * 2))
        before = lab.moment()
        first = before
        for step in request.steps:
            say(f"{step.name}: traffic, upgrade, traffic")
            document, after = lab.run(step)
            facts = list(moments.compare(before, after))
            facts += _restarts(step, document)
            if step.fixes is not None:
                holes.append(_hole(lab.probe()))
                facts.append(_closed(step, holes))
                if step.fixes:
                    facts.append(_revalidated(gone=not lab.revalidated()))
            steps.append({"name": step.name, "facts": [asdict(fact) for fact in facts], "document": document})
            say(f"{step.name}: {sum(fact.ok for fact in facts)} of {len(facts)} facts hold")
            before = after
        if len(steps) > 1:
            facts = list(moments.compare(first, before))
            steps.append({"name": "all of it", "facts": [asdict(fact) for fact in facts], "document": {}})
    ok = all(fact["ok"] for step in steps for fact in step["facts"])
    return {"version": 1, "ok": ok, "request": msgspec.to_builtins(request), "steps": steps}


def with_limits(profile: str, times: int) -> str:
    """The profile, with ``times`` as long a limit for every loop, at most a minute."""
    head, *loops = re.split(r"^(?=\[\[loop\]\]$)", profile, flags=re.MULTILINE)
    said = re.compile(r"^limit-us = (\d+)$", re.MULTILINE)
    changed = []
    for loop in loops:
        found = said.search(loop)
        limit = min(MOST_LIMIT_US, times * int(found[1] if found else DEFAULT_LIMIT_US))
        changed.append(
            loop.replace("[[loop]]\n", f"[[loop]]\nlimit-us = {limit}\n", 1)
            if not found
            else said.sub(f"limit-us = {limit}", loop)
        )
    return head + "".join(changed)


def _hole(rule: str) -> bool:
    """Whether the flow leaves out the protocol, and so holds for packets of every other."""
    return re.search(rf"\bproto={PROBE_PROTOCOL}[,)]", rule) is None


def _closed(step: Step, holes: Sequence[bool]) -> Fact:
    before, after = ("open" if hole else "closed" for hole in holes[-2:])
    return Fact("CVE-2023-1668, by a flow that a handler cached", before, after, after == _word(step))


def _word(step: Step) -> str:
    return "closed" if step.fixes else "open"


def _revalidated(*, gone: bool) -> Fact:
    """A flow of the old code that is too wide for the new one: only its revalidators take it out."""
    name = "too wide a flow of before, looked at by revalidators"
    return Fact(name, "there", "taken out" if gone else "there", gone)


def _restarts(step: Step, document: Mapping[str, Any]) -> list[Fact]:
    facts = []
    found = [row["restart"] for row in document.get("threads", []) if row.get("restart")]
    for function in step.restarts:
        states = [restart["state"] for restart in found if restart["function"] == function]
        said = len(_lines(document["log"], f"second build: {function}"))
        words = f"{len([state for state in states if state == 'arrived'])} arrived, {said} said so in the log"
        ok = bool(states) and set(states) == {"arrived"} and said >= len(states)
        facts.append(Fact(f"threads in {function}", f"{len(states)} restarted", words, ok))
    return facts


def _lines(text: str, words: str) -> list[str]:
    return [line for line in text.splitlines() if words in line]


def main(arguments: Sequence[str]) -> int:
    request = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=Request)
    begin = time.monotonic()

    def say(words: str) -> None:
        sys.stdout.write(f"{time.monotonic() - begin:6.1f} s  {words}\n")
        sys.stdout.flush()

    try:
        result = carry_out(request, say)
    except (HotUpgradeError, OSError, AssertionError) as problem:
        traceback.print_exc()
        result = {"version": 1, "ok": False, "error": str(problem), "steps": []}
    Path(arguments[1]).write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
