"""What a datapath has cached, flow by flow, as ``dpctl/dump-flows -m`` prints it, with the id that the kernel knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

FLOW = re.compile(
    r"^ufid:(?P<ufid>[0-9a-f-]+), (?P<match>.*?), packets:(?P<packets>\d+), bytes:\d+, used:(?P<used>[\d.]+s|never)"
    r"(?:, flags:\S+)?(?:, offloaded:(?P<offloaded>\w+))?(?:, dp:(?P<dp>\w+))?, actions:(?P<actions>.*?)"
    r"(?:, dp-extra-info:\S+)?$"
)
UDP = re.compile(r"\budp\(src=(?P<src>\d+)(?P<src_mask>/0x[0-9a-f]+)?,dst=(?P<dst>\d+)(?P<dst_mask>/0x[0-9a-f]+)?\)")
NEW_CONNECTION = 0x01  # OVS_CS_F_NEW


@dataclass(frozen=True, slots=True)
class DatapathFlow:
    """One flow of a datapath; ``used`` is seconds before it was read, None if no packet matched yet."""

    ufid: str
    match: str
    actions: str
    packets: int
    used: float | None
    offloaded: bool
    datapath: str  # "ovs", "tc"; empty where the datapath does not say

    @property
    def rule(self) -> str:
        return f"{self.match}, actions:{self.actions}"

    @property
    def ports(self) -> tuple[int | None, int | None]:
        """UDP source and destination port, each None if any port would match."""
        found = UDP.search(self.match)
        if found is None:
            return None, None
        source, destination = (None if found[f"{side}_mask"] else int(found[side]) for side in ("src", "dst"))
        return source, destination

    @property
    def opens_connections(self) -> bool:
        """Whether it is for packets of connections that are not tracked yet: unused once all are established."""
        state = re.search(r"\bct_state\(0x(?P<value>[0-9a-f]+)/0x[0-9a-f]+\)", self.match)
        return state is not None and bool(int(state["value"], 16) & NEW_CONNECTION)

    @property
    def in_port(self) -> str:
        found = re.search(r"\bin_port\(([^)]+)\)", self.match)
        return found[1] if found else ""


def parse_datapath_flows(text: str) -> tuple[DatapathFlow, ...]:
    """Every flow in the text, in its order."""
    matches = (FLOW.match(line.strip()) for line in text.splitlines())
    return tuple(_flow(match) for match in matches if match is not None)


def _flow(match: re.Match[str]) -> DatapathFlow:
    used = None if match["used"] == "never" else float(match["used"].removesuffix("s"))
    return DatapathFlow(
        ufid=match["ufid"],
        match=match["match"],
        actions=match["actions"],
        packets=int(match["packets"]),
        used=used,
        offloaded=match["offloaded"] in ("yes", "partial"),
        datapath=match["dp"] or "",
    )


def packets_by_filter(device: str, filters: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Filters of traffic control (``tc -j -s filter``), named by what they are, with the packets of their actions."""
    found = {}
    for entry in filters:
        options = entry.get("options", {})
        if "handle" not in options:  # a heading
            continue
        name = f"{device} {entry['protocol']} pref {entry['pref']} handle {options['handle']} {options.get('keys')}"
        found[name] = max((action["stats"]["packets"] for action in options["actions"] if "stats" in action), default=0)
    return found
