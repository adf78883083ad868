"""A file of many packets: every one is whole, and no two are alike."""

from __future__ import annotations

import struct
from pathlib import Path

from hotupgrade.vswitch.compare.crowd import PORT, SIZE, source, write_crowd

COUNT = 70_000  # more than fits into the last two bytes of an address


def test_packets(tmp_path: Path) -> None:
    write_crowd(tmp_path / "crowd", COUNT)
    raw = (tmp_path / "crowd").read_bytes()
    assert len(raw) == 24 + COUNT * (16 + SIZE)
    seen = set()
    for number in range(0, COUNT, 1013):
        record = raw[24 + number * (16 + SIZE) :][: 16 + SIZE]
        assert struct.unpack("<II", record[8:16]) == (SIZE, SIZE)
        header = record[30:50]
        assert sum(struct.unpack(">10H", header)) % 0xFFFF == 0, "the checksum of a whole header is 0"
        address = ".".join(map(str, header[12:16]))
        assert address == source(number)
        seen.add(address)
        assert struct.unpack(">HHHH", record[50:58]) == (PORT, PORT, SIZE - 34, 0)
    assert len(seen) == len(range(0, COUNT, 1013))
