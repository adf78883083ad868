"""OpenFlow flows and ports as ovs-ofctl prints them, without what changes from one moment to the next."""

from __future__ import annotations

import re
from dataclasses import dataclass

FLEETING = re.compile(r"\b(duration|idle_age|hard_age)=[^,\s]+,? ?")
COUNTED = re.compile(r"\b(n_packets|n_bytes)=(\d+),? ?")
PORT = re.compile(r"^ *port +(?P<number>\w+): rx pkts=(?P<rx>\d+),.*\n +tx pkts=(?P<tx>\d+),", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow: ``rule`` is everything that an operator has said (cookie, table, priority, match, actions)."""

    rule: str
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class PortCounters:
    """What one OpenFlow port received and sent."""

    port: str
    received: int
    sent: int


def parse_flows(text: str) -> tuple[Flow, ...]:
    """The flows of ``ovs-ofctl dump-flows``, sorted by rule."""
    lines = (line.strip() for line in text.splitlines())
    return tuple(sorted((_flow(line) for line in lines if "actions=" in line), key=lambda flow: flow.rule))


def parse_ports(text: str) -> tuple[PortCounters, ...]:
    """The ports of ``ovs-ofctl dump-ports``, sorted by name."""
    found = (PortCounters(match["number"], int(match["rx"]), int(match["tx"])) for match in PORT.finditer(text))
    return tuple(sorted(found, key=lambda port: port.port))


def _flow(line: str) -> Flow:
    counted = {match[1]: int(match[2]) for match in COUNTED.finditer(line)}
    rule = COUNTED.sub("", FLEETING.sub("", line))
    return Flow(" ".join(rule.split()), counted.get("n_packets", 0), counted.get("n_bytes", 0))
