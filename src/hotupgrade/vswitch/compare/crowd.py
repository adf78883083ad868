"""As many different UDP packets as wanted, as a file to be sent: each is a flow, or a connection, of its own.

The format is that of :mod:`hotupgrade.vswitch.compare.packets`, from where its source is named.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SIZE = 64  # bytes on the wire, without the frame check sequence
PORT = 47_809  # UDP, that they are sent to
#: Source addresses 10.0.0.0 and on: packet ``n`` has the ``n``-th.
FIRST_SOURCE = 10 << 24
_MICROSECONDS, _ETHERNET = 0xA1B2C3D4, 1
_HEADER = struct.Struct("<IHHiIII")
_RECORD = np.dtype(
    [
        ("seconds", "<u4"),
        ("fraction", "<u4"),
        ("captured", "<u4"),
        ("length", "<u4"),
        ("ethernet", "V14"),
        ("ip", ">u2", 10),
        ("udp", ">u2", 4),
        ("payload", f"V{SIZE - 14 - 20 - 8}"),
    ]
)
_IP_SOURCE, _IP_CHECKSUM = 6, 5  # 16-bit words of the header: where they begin


def source(number: int) -> str:
    """The source address of packet ``number``."""
    address = FIRST_SOURCE + number
    return ".".join(str(address >> shift & 255) for shift in (24, 16, 8, 0))


def write_crowd(path: Path, count: int) -> None:
    """Packets 0 to ``count`` - 1, each from its own source address; at most 2^24."""
    records: npt.NDArray[Any] = np.zeros(count, _RECORD)
    records["captured"] = records["length"] = SIZE
    ethernet = bytes.fromhex("02000000000b02000000000a0800")
    records["ethernet"] = np.frombuffer(ethernet, "V14")[0]
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, SIZE - 14, 0, 0, 64, 17, 0, bytes(4), bytes((198, 18, 0, 2)))
    words = np.tile(np.frombuffer(head, ">u2").astype(np.uint32), (count, 1))
    addresses = FIRST_SOURCE + np.arange(count, dtype=np.uint32)
    words[:, _IP_SOURCE], words[:, _IP_SOURCE + 1] = addresses >> 16, addresses & 0xFFFF
    words[:, _IP_CHECKSUM] = _checksums(words)
    records["ip"] = words
    records["udp"] = (PORT, PORT, SIZE - 14 - 20, 0)  # no checksum
    path.write_bytes(_HEADER.pack(_MICROSECONDS, 2, 4, 0, 0, SIZE, _ETHERNET) + records.tobytes())


def _checksums(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Of each row (RFC 1071); the field itself is 0."""
    total = words.sum(axis=1, dtype=np.uint32)
    for _ in range(2):
        total = (total & 0xFFFF) + (total >> 16)
    inverted: npt.NDArray[np.uint32] = ~total & 0xFFFF
    return inverted
