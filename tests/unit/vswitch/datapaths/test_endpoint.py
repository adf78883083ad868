"""Frames as they go out."""

from __future__ import annotations

import struct

from hotupgrade.vswitch.datapaths.endpoint import Received, Sending

MAC = bytes(range(6))


def sending(flows: int) -> Sending:
    return Sending(3, "10.1.0.1", "10.1.0.2", MAC, (9, 10_000), 1, flows, 0.1)


def checksum(words: bytes) -> int:
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    return (total & 0xFFFF) + (total >> 16)


def test_a_frame_is_sound() -> None:
    frame = sending(2).frame(MAC[::-1])
    assert frame[:14] == MAC + MAC[::-1] + b"\x08\x00"
    assert checksum(frame[14:34]) == 0xFFFF
    assert struct.unpack_from("!H", frame, 16)[0] == len(frame) - 14
    assert struct.unpack_from("!HHH", frame, 34) == (9, 10_000, len(frame) - 34)


def test_steady_flows_come_round_and_fresh_ones_do_not() -> None:
    for flows, wanted in ((2, [10_000, 10_001, 10_000]), (0, [10_000, 10_001, 10_002])):
        stream, seen = sending(flows), []
        for _ in range(3):
            seen.append(struct.unpack_from("!H", stream.frame(MAC), 36)[0])
            stream.count()
        assert seen == wanted
        assert stream.by_flow == ({10_000: 2, 10_001: 1} if flows else {})


def test_what_is_missing_is_named() -> None:
    stream = Received()
    for number in (0, 1, 3, 3):
        stream.count(number)
    assert (stream.missing(5), stream.twice) == ([2, 4], 1)
