"""Thread-locals: kept ones keep their place in the module's block, new ones need room in a reserve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Kind, Slot
from hotupgrade.binary.thread_locals import below_thread_pointer
from hotupgrade.plan.homes import NEW, Homes
from hotupgrade.plan.model import TlsRequest
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


def moved(homes: Homes, first: Build, new: Build) -> bool:
    """Whether any thread-local has another offset than in the running process, or none yet.

    ``first`` is the build that the process started with.  An executable counts from the end of its block.
    """
    tls = new.entities.kind == Kind.TLS
    elsewhere = (homes.owner == NEW) | (homes.address != new.entities.address.astype(np.int64))
    if new.executable and below_thread_pointer(first) != below_thread_pointer(new):
        return True
    return bool(np.any(tls & elsewhere))


def distance(homes: Homes, new: Build, row: int) -> int | None:
    """How far a thread-local is from where the new build has it; None for one that is new."""
    if homes.owner[row] == NEW:
        return None
    return int(homes.address[row]) - int(new.entities.address[row])


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
    return slot in targets.build.facts.block_slots


def _alignment(new: Build, offset: int) -> int:
    """The largest alignment that the variable can rely on, given where the linker put it."""
    limit = max(new.tls.alignment, 1) if new.tls is not None else 16
    natural = offset & -offset if offset else limit
    return min(natural, limit)
