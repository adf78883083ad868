"""Thread-locals: kept ones keep their place in the module's block, new ones need room in a reserve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Form, Kind, Slot, TargetKind
from hotupgrade.binary.relocations import Relocation
from hotupgrade.plan.homes import NEW, Homes
from hotupgrade.plan.model import TlsRequest
from hotupgrade.plan.select import Selection
from hotupgrade.plan.targets import Targets, thread_local_offset


@dataclass(frozen=True)
class TlsLayout:
    """Room for new thread-locals: what the reserve holds, and where in it each row of the new build goes."""

    request: TlsRequest
    offsets: Mapping[int, int]  # row → offset from the start of the reserve


def lay_out(new: Build, rows: Sequence[int]) -> TlsLayout | None:
    """A place for each of these new thread-locals; None if there are none."""
    if not rows:
        return None
    entities = new.entities
    image = bytearray()
    offsets: dict[int, int] = {}
    alignment = 1
    for row in sorted(rows, key=lambda each: int(entities.address[each])):
        offset, size = int(entities.address[row]), max(int(entities.size[row]), 1)
        aligned = _alignment(new, offset)
        alignment = max(alignment, aligned)
        image += bytes(-len(image) % aligned)
        offsets[row] = len(image)
        image += initial_image(new, offset, size)
    return TlsLayout(TlsRequest(bytes(image), alignment), offsets)


def initial_image(build: Build, offset: int, size: int) -> bytes:
    """What a new thread finds at an offset of this build's block."""
    if build.tls is None:
        return bytes(size)
    filled = build.read(build.tls.vaddr, build.tls.file_size)[offset : offset + size]
    return filled + bytes(size - len(filled))


def moved(homes: Homes, new: Build) -> bool:
    """Whether any thread-local has another offset than in the running process, or none yet."""
    tls = new.entities.kind == Kind.TLS
    elsewhere = (homes.owner == NEW) | (homes.address != new.entities.address.astype(np.int64))
    return bool(np.any(tls & elsewhere))


def whole_block_slots(targets: Targets, selection: Selection) -> tuple[int, ...]:
    """Selected slots that name this module's whole block, or (it looks the same) a variable at its start."""
    new = targets.build
    return tuple(
        index
        for index in selection.slots
        if new.slots[index].relocation == Relocation.DTPMOD64
        and not new.slots[index].symbol
        and not int.from_bytes(new.read(new.slots[index].vaddr + 8, 8), "little")
        and not targets.within(new.slots[index].vaddr + 8, new.slots[index].vaddr + 16)
    )


def row_of_slot(targets: Targets, slot: Slot) -> int:
    """The row of the thread-local that a slot names, or -1."""
    offset = thread_local_offset(targets, slot)
    return -1 if offset is None else targets.rows.thread_local_at(offset)[0]


def is_whole_block(new: Build, slot: int) -> bool:
    """With relocation records: whether such a slot serves local-dynamic access, that is, its users also use DTPOFF."""
    references = new.references
    named = (references.entity == slot) & (references.target_kind == TargetKind.GOT)
    users = np.unique(references.function[named])
    offsets = np.unique(references.function[references.form == Form.DTPOFF])
    return bool(np.any(np.isin(users, offsets)))


def _alignment(new: Build, offset: int) -> int:
    """The largest alignment that the variable can rely on, given where the linker put it."""
    limit = max(new.tls.alignment, 1) if new.tls is not None else 16
    natural = offset & -offset if offset else limit
    return min(natural, limit)
