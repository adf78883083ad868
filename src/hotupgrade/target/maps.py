"""What ``/proc/PID/maps`` says: the mappings of a process, and where there is room between them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = 4096
#: The kernel gives user space nothing below this (vm.mmap_min_addr) or above (TASK_SIZE of x86-64 with four-level
#: tables).
LOWEST, HIGHEST = 0x10000, 0x7FFFFFFFF000
#: How far from the end of a gap new images are put, if the gap is that large.
_APART = 256 << 20
#: A gap in which they would be closer to an end than this is only used if there is no larger one.
_CLOSE = 16 << 20


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of ``/proc/PID/maps``."""

    start: int
    end: int
    permissions: str
    offset: int
    device: str
    inode: int
    path: str

    @property
    def readable(self) -> bool:
        return self.permissions[0] == "r"

    @property
    def writable(self) -> bool:
        return self.permissions[1] == "w"

    @property
    def executable(self) -> bool:
        return self.permissions[2] == "x"

    @property
    def private(self) -> bool:
        return self.permissions[3] == "p"

    @property
    def size(self) -> int:
        return self.end - self.start


def parse_maps(text: str) -> tuple[Mapping, ...]:
    """Parse the text of a maps file.

    Names in it are the process's to choose, and the kernel escapes nothing but the line feed: no other character may
    end a line or a field.
    """
    found = []
    for line in text.split("\n"):
        if not line:
            continue
        fields = line.split(" ", maxsplit=5)
        start, _, end = fields[0].partition("-")
        found.append(
            Mapping(
                int(start, 16),
                int(end, 16),
                fields[1],
                int(fields[2], 16),
                fields[3],
                int(fields[4]),
                fields[5].lstrip(" ") if len(fields) > 5 else "",
            )
        )
    return tuple(found)


def read_maps(pid: int) -> tuple[Mapping, ...]:
    """The mappings of a process now."""
    return parse_maps(Path(f"/proc/{pid}/maps").read_bytes().decode(errors="surrogateescape"))


def mapping_at(maps: Sequence[Mapping], address: int) -> Mapping | None:
    """The mapping that holds an address."""
    index = bisect_right(maps, address, key=lambda mapping: mapping.start) - 1
    return maps[index] if index >= 0 and address < maps[index].end else None


def gaps(maps: Sequence[Mapping], low: int, high: int) -> Iterator[tuple[int, int]]:
    """The free ranges between ``low`` and ``high``, in order of address."""
    at = max(low, LOWEST)
    high = min(high, HIGHEST)
    for mapping in maps:
        if mapping.start >= high:
            break
        if mapping.start > at:
            yield at, mapping.start
        at = max(at, mapping.end)
    if at < high:
        yield at, high


def free_base(
    maps: Sequence[Mapping], size: int, low: int, high: int, taken: Sequence[tuple[int, int]] = ()
) -> int | None:
    """A page-aligned address with ``size`` free bytes, wholly within [low, high), near the middle of that range.

    At least one free page is left on either side, so that a stray pointer past an end still faults, and more where
    there is room: the kernel fills gaps from their upper ends, and the process may map something while we prepare.
    Below the main stack, which grows down, the lower end is used.  ``taken`` are further ranges that are spoken for.
    None if there is no room.
    """
    stack = next((mapping.start for mapping in maps if mapping.path == "[stack]"), 0)
    busy = sorted([*((m.start, m.end) for m in maps), *taken])
    occupied = [Mapping(start, end, "---p", 0, "", 0, "") for start, end in busy]
    candidates: list[tuple[bool, int]] = []
    for start, end in gaps(occupied, low, high):
        first, last = -(-start // PAGE) * PAGE + PAGE, end // PAGE * PAGE - PAGE
        if last - first < size:
            continue
        apart = min((last - first - size) // 2 // PAGE * PAGE, _APART)
        candidates.append((apart < _CLOSE, first + apart if end == stack else last - size - apart))
    middle = (low + high) // 2
    return min(candidates, key=lambda found: (found[0], abs(found[1] - middle)), default=(False, None))[1]
