"""Map a new image into the target, beside the modules that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hotupgrade.target import abi
from hotupgrade.target.agent import (
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    NAME,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    SYS_CLOSE,
    SYS_MMAP,
    SYS_MPROTECT,
    SYS_MUNMAP,
    Agent,
    Operation,
    call,
    system_call,
)
from hotupgrade.target.maps import PAGE
from hotupgrade.target.scratch import Scratch

#: Room behind every image for what the unwinder keeps about it (libgcc's ``struct object``).
ANNEX = PAGE


@dataclass(frozen=True, slots=True)
class Area:
    """A page range of an image, with its final protection."""

    offset: int
    size: int
    writable: bool
    executable: bool


def map_image(
    agent: Agent, name: str, base: int, size: int, pieces: Sequence[tuple[int, bytes]], areas: Sequence[Area]
) -> int:
    """Map ``size`` bytes at ``base``, followed by the annex, with contents at offsets; returns the bytes that it takes.

    Pages without contents take no memory.  The image is a private mapping of a memory file with a telling name, so that
    code and constants are not copied, and ``/proc/PID/maps`` shows whose they are.

    Raises:
        NotNow: the process may not map it (no room, no permission, locked memory).
    """
    descriptor = agent.create_file(f"{NAME}:{name}", pieces, size + ANNEX)
    operations = [
        system_call(SYS_MMAP, base, size + ANNEX, PROT_READ, MAP_PRIVATE | MAP_FIXED_NOREPLACE, descriptor, 0)
    ]
    for area in areas:
        wanted = PROT_READ | (PROT_WRITE if area.writable else 0) | (PROT_EXEC if area.executable else 0)
        if wanted != PROT_READ:
            operations.append(system_call(SYS_MPROTECT, base + area.offset, area.size, wanted))
    operations.append(system_call(SYS_MPROTECT, base + size, ANNEX, PROT_READ | PROT_WRITE))
    close = system_call(SYS_CLOSE, descriptor, fatal=False)
    results = agent.run([*operations, close])
    try:
        agent.check(operations, results[:-1])
    except BaseException:
        ours = results[0] == base  # else the range is somebody else's, and none of our business
        agent.run([close, unmap_image(base, size)] if ours else [close])
        raise
    pages = {(offset + at) // PAGE for offset, content in pieces for at in range(0, len(content), PAGE)}
    pages |= {(offset + len(content) - 1) // PAGE for offset, content in pieces if content}
    return len(pages) * PAGE


def unmap_image(base: int, size: int) -> Operation:
    """The operation that takes an image away."""
    return system_call(SYS_MUNMAP, base, size + ANNEX, fatal=False)


def touch(scratch: Scratch, pages: Sequence[int], *, write: bool) -> list[Operation]:
    """Have every page present in the target's page table, its own copy if it is to be written."""
    if not pages:
        return []
    table = scratch.put(b"".join(page.to_bytes(8, "little") for page in pages))
    return [Operation(abi.OpKind.TOUCH_WRITE if write else abi.OpKind.TOUCH_READ, table, (len(pages),))]


def register_frames(register: int, base: int, size: int, eh_frame: int) -> Operation:
    """The call that tells the unwinder of an image's frames: libgcc's ``__register_frame_info(begin, object)``."""
    return call(register, eh_frame, base + size)
