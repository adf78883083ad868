"""A stream of packets that are numbered, as a file to be sent and as a file that was captured.

Both are files of the classic capture format with records of one size, so that hundreds of thousands of packets are one
table.  Source of the format: pcap-savefile(5).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hotupgrade.errors import HotUpgradeError

PORT = 47_808  # UDP, of the packets that are counted
SIZE = 64  # bytes on the wire, without the frame check sequence
NANOSECONDS, MICROSECONDS = 0xA1B23C4D, 0xA1B2C3D4
_ETHERNET = 1
_HEADER = struct.Struct("<IHHiIII")
_NUMBER_AT = 14 + 20 + 8
_RECORD = np.dtype(
    [
        ("seconds", "<u4"),
        ("fraction", "<u4"),
        ("captured", "<u4"),
        ("length", "<u4"),
        ("before", f"V{_NUMBER_AT}"),
        ("number", ">u8"),
        ("after", f"V{SIZE - _NUMBER_AT - 8}"),
    ]
)

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Seen:
    """Packets in the order in which they were captured: their numbers, and when, in ns since the epoch."""

    number: I64
    at_ns: I64


def write_stream(path: Path, count: int) -> None:
    """Packets numbered from 0 to ``count`` - 1, to be sent one after the other."""
    head = _frame_head()
    records: npt.NDArray[Any] = np.zeros(count, _RECORD)
    records["captured"] = records["length"] = SIZE
    records["before"] = np.frombuffer(head, f"V{_NUMBER_AT}")[0]
    records["number"] = np.arange(count)
    path.write_bytes(_HEADER.pack(MICROSECONDS, 2, 4, 0, 0, SIZE, _ETHERNET) + records.tobytes())


def read_capture(path: Path) -> Seen:
    """What was captured, with a snapshot length of :data:`SIZE`.

    Raises:
        HotUpgradeError: the file is none of these, or holds packets that are none of ours.
    """
    raw = path.read_bytes()
    if len(raw) < _HEADER.size:
        raise HotUpgradeError(f"{path}: the capture is empty: did the program that captures start?")
    magic = _HEADER.unpack_from(raw)[0]
    if magic not in (NANOSECONDS, MICROSECONDS):
        raise HotUpgradeError(f"{path}: not a capture of this machine's byte order ({magic:#x})")
    whole = (len(raw) - _HEADER.size) // _RECORD.itemsize
    records = np.frombuffer(raw, _RECORD, count=whole, offset=_HEADER.size)
    if np.any(records["captured"] != SIZE):
        raise HotUpgradeError(
            f"{path}: packets of other sizes are in the capture; nobody else may use these interfaces"
        )
    fraction = records["fraction"].astype(np.int64) * (1 if magic == NANOSECONDS else 1000)
    at = records["seconds"].astype(np.int64) * 1_000_000_000 + fraction
    return Seen(records["number"].astype(np.int64), at)


def _frame_head() -> bytes:
    """Ethernet, IPv4 and UDP headers; addresses of documentation (RFC 5737) and of local administration."""
    ethernet = bytes.fromhex("02000000000b02000000000a0800")
    length = SIZE - 14
    fields = (0x45, 0, length, 0, 0, 64, 17, 0, bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2)))
    ip = struct.pack(">BBHHHBBH4s4s", *fields)
    ip = ip[:10] + struct.pack(">H", _checksum(ip)) + ip[12:]
    return ethernet + ip + struct.pack(">HHHH", PORT, PORT, length - 20, 0)


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
