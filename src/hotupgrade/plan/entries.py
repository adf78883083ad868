"""The first bytes of functions, where a jump may be put."""

from __future__ import annotations

import struct

import iced_x86
import numpy as np
import numpy.typing as npt

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Flags, Kind

JUMP_SIZE = 5
_JUMP = 0xE9
_REACH = 1 << 31

Bytes = npt.NDArray[np.uint8]


class OutOfReach(Exception):
    """No 32-bit displacement leads there."""


def jump(entry: int, target: int) -> bytes:
    """``jmp rel32`` at ``entry``."""
    distance = target - entry - JUMP_SIZE
    if not -_REACH <= distance < _REACH:
        raise OutOfReach
    return struct.pack("<Bi", _JUMP, distance)


def jump_target(entry: int, content: bytes) -> int | None:
    """Where a ``jmp rel32`` at ``entry`` leads; None if these bytes are something else."""
    if len(content) < JUMP_SIZE or content[0] != _JUMP:
        return None
    distance: int = struct.unpack_from("<i", content, 1)[0]
    return entry + JUMP_SIZE + distance


def is_intact(original: bytes, present: bytes) -> bool:
    """Whether an entry surely holds no jump of ours.  Relinking changes displacements, but no opcode."""
    return original[0] == present[0] != _JUMP


def has_room(build: Build, row: int) -> bool:
    """Whether five bytes from the entry belong to the function, or to padding behind it, and nothing begins in them."""
    entities = build.entities
    entry, extent = int(entities.address[row]), int(build.extent[row])
    address = entities.address[entities.kind != Kind.TLS]
    first, last = np.searchsorted(address, (entry + 1, entry + JUMP_SIZE))
    if last > first:
        return False
    return extent >= JUMP_SIZE or _is_padding(build.read(entry + extent, JUMP_SIZE - extent), build, entry + extent)


def _is_padding(content: bytes, build: Build, vaddr: int) -> bool:
    if all(byte in (0x00, 0xCC) for byte in content):
        return True
    decoder = iced_x86.Decoder(64, build.read(vaddr, 16), ip=vaddr)
    while decoder.ip < vaddr + len(content):
        if decoder.decode().mnemonic not in (iced_x86.Mnemonic.NOP, iced_x86.Mnemonic.INT3):
            return False
    return True


def branching_into_entry(build: Build, functions: Flags) -> frozenset[int]:
    """Rows of functions that branch to their own bytes 1 to 4: running code would meet a jump at the entry."""
    return frozenset(row for row in _candidates(build, functions) if _branches(build, row))


def _candidates(build: Build, functions: Flags) -> list[int]:
    """Functions with bytes that could be such a branch.  A superset: bytes are tried at every offset."""
    rows = np.flatnonzero(functions)
    if not len(rows):
        return []
    entries = build.entities.address[rows].astype(np.int64)
    extents = build.extent[rows].astype(np.int64)
    low, high = int(entries.min()), int((entries + extents).max())
    code: Bytes = np.frombuffer(build.read(low, high - low) + bytes(8), dtype=np.uint8)
    found: set[int] = set()
    for places, targets in (_short_branches(code), _near_branches(code)):
        index = np.maximum(np.searchsorted(entries, places + low, side="right") - 1, 0)
        into = targets + low - entries[index]
        own = (into > 0) & (into < JUMP_SIZE) & (places + low < entries[index] + extents[index])
        found.update(rows[index[own]].tolist())
    return sorted(found)


def _short_branches(code: Bytes) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    opcode = code[:-8]
    places = np.flatnonzero(((opcode & 0xF0) == 0x70) | (opcode == 0xEB) | ((opcode & 0xFC) == 0xE0))
    return places, places + 2 + code[places + 1].view(np.int8).astype(np.int64)


def _near_branches(code: Bytes) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    opcode = code[:-8]
    places = np.flatnonzero((opcode == _JUMP) | ((opcode & 0xF0) == 0x80))  # the last byte of the opcode
    distance = sum(code[places + 1 + byte].astype(np.int64) << (8 * byte) for byte in range(4))
    signed = np.asarray(distance, dtype=np.int64).astype(np.uint32).view(np.int32).astype(np.int64)
    return places, places + 5 + signed


def _branches(build: Build, row: int) -> bool:
    entry, extent = int(build.entities.address[row]), int(build.extent[row])
    decoder = iced_x86.Decoder(64, build.read(entry, extent), ip=entry)
    return any(
        entry < instruction.near_branch_target < entry + JUMP_SIZE
        for instruction in decoder
        if instruction.flow_control in _BRANCHES
    )


_BRANCHES = (iced_x86.FlowControl.CONDITIONAL_BRANCH, iced_x86.FlowControl.UNCONDITIONAL_BRANCH)
