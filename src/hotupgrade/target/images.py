"""Map a new image into the target, beside the modules that are there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hotupgrade.target import abi
from hotupgrade.target.agent import (
    MADV_DONTDUMP,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    NAME,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    SYS_CLOSE,
    SYS_MADVISE,
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
_LONG = 64 * PAGE


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
    mapping = system_call(SYS_MMAP, base, size + ANNEX, PROT_READ, MAP_PRIVATE | MAP_FIXED_NOREPLACE, descriptor, 0)
    results = agent.run([mapping, system_call(SYS_CLOSE, descriptor, fatal=False)])
    agent.check([mapping], results[:1])
    with contextlib.suppress(ValueError):  # a kernel that forbids it leaves the new code out of core files
        # A core holds a private mapping of a file only if it was ever written: before it is cut up, that is all of it.
        agent.process.write(base + size, b"\0")
    operations = []
    for area in areas:
        wanted = PROT_READ | (PROT_WRITE if area.writable else 0) | (PROT_EXEC if area.executable else 0)
        if wanted != PROT_READ:
            operations.append(system_call(SYS_MPROTECT, base + area.offset, area.size, wanted))
    operations.append(system_call(SYS_MPROTECT, base + size, ANNEX, PROT_READ | PROT_WRITE))
    holes = [
        system_call(SYS_MADVISE, base + at, length, MADV_DONTDUMP, fatal=False) for at, length in _holes(pieces, size)
    ]
    try:
        agent.check(operations, agent.run([*operations, *holes])[: len(operations)])
    except BaseException:
        agent.run([unmap_image(base, size)])
        raise
    pages = {(offset + at) // PAGE for offset, content in pieces for at in range(0, len(content), PAGE)}
    pages |= {(offset + len(content) - 1) // PAGE for offset, content in pieces if content}
    return len(pages) * PAGE


def _holes(pieces: Sequence[tuple[int, bytes]], size: int) -> Iterator[tuple[int, int]]:
    """(offset, size) of long stretches without contents: a core that held them would be large for nothing."""
    at = 0
    for offset, length in [*sorted((offset, len(content)) for offset, content in pieces), (size, 0)]:
        start, end = -(-at // PAGE) * PAGE, offset // PAGE * PAGE
        if end - start >= _LONG:
            yield start, end - start
        at = max(at, offset + length)


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
