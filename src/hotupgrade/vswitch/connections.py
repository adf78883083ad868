"""Connections that a switch tracks in user space."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotupgrade.vswitch.switch import Switch

_FLEETING = re.compile(r",timeout=\d+")


def add_connections(switch: Switch, bridge: str, count: int) -> None:
    """Have the connection tracker know ``count`` connections, which it forgets after a minute of silence."""
    for number in range(count):
        packet = _datagram(bytes([10, 9, number // 250, 1 + number % 250])).hex()
        switch.ofctl("packet-out", bridge, f"in_port=local, packet={packet}, actions=ct(commit)")


def connections(switch: Switch) -> frozenset[str]:
    """Those that are known now, with the seconds that each still has."""
    return frozenset(switch.appctl("dpctl/dump-conntrack").splitlines())


def without_time(found: frozenset[str]) -> frozenset[str]:
    """The same whenever it is asked."""
    return frozenset(_FLEETING.sub("", connection) for connection in found)


def _datagram(source: bytes) -> bytes:
    """An empty UDP datagram from ``source`` in Ethernet."""
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 17, 0, source, bytes([10, 9, 255, 1]))
    total = sum(struct.unpack("!10H", head))
    checksum = 0xFFFF - (total % 0xFFFF or 0xFFFF)
    head = head[:10] + struct.pack("!H", checksum) + head[12:]
    return bytes.fromhex("020000000001020000000002") + b"\x08\x00" + head + struct.pack("!HHHH", 7, 7, 8, 0)
