"""Thread-locals: kept ones keep their place in the module's block, new ones need room in a reserve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Flags, Form, Kind, Slot, TargetKind
from hotupgrade.binary.relocations import Relocation
from hotupgrade.plan.homes import NEW, Homes
from hotupgrade.plan.model import TlsRequest
from hotupgrade.plan.targets import Targets, thread_local_offset

_DATA16 = b"\x66"


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


def row_of_slot(targets: Targets, slot: Slot) -> int:
    """The row of the thread-local that a slot names, or -1."""
    offset = thread_local_offset(targets, slot)
    index = targets.build.slot_at(slot.vaddr)
    if offset is None or (index is not None and is_whole_block(targets, index)):
        return -1
    return targets.rows.thread_local_at(offset)[0]


def is_whole_block(targets: Targets, slot: int) -> bool:
    """Whether a slot serves local-dynamic access: it names the module's block rather than a variable.

    The slot of the variable at the very start of the block looks the same; the code around its uses tells.
    """
    new = targets.build
    pair = new.slots[slot]
    if pair.symbol:
        return False
    if pair.relocation == Relocation.TLSDESC:
        return pair.addend == 0 and _has_offsets_added(new, slot)
    if pair.relocation != Relocation.DTPMOD64 or targets.within(pair.vaddr + 8, pair.vaddr + 16):
        return False
    # The ABI has general-dynamic access pad its lea with a prefix, so that linkers can replace it.
    return new.read(pair.vaddr + 8, 8) == bytes(8) and not any(
        new.read(position - 4, 1) == _DATA16 for position in new.references.position[_uses(new, slot)].tolist()
    )


def _has_offsets_added(new: Build, slot: int) -> bool:
    """Whether functions that use a slot also add offsets within the block; not known without records, so: yes."""
    references = new.references
    if not new.has_relocation_records:
        return True
    offsets = references.function[references.form == Form.DTPOFF]
    return bool(np.isin(references.function[_uses(new, slot)], offsets).any())


def _uses(new: Build, slot: int) -> Flags:
    references = new.references
    uses: Flags = (references.entity == slot) & (references.target_kind == TargetKind.GOT)
    return uses


def _alignment(new: Build, offset: int) -> int:
    """The largest alignment that the variable can rely on, given where the linker put it."""
    limit = max(new.tls.alignment, 1) if new.tls is not None else 16
    natural = offset & -offset if offset else limit
    return min(natural, limit)
