"""The frames of a thread that stands still, from the frame information of the modules in its process.

This is the second opinion on a stack: which of its words are return addresses, exactly.  Whatever is not fully
understood, from the innermost frame to the outermost, gives no opinion at all.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hotupgrade.binary.frames import RSP, Frames, NoFrameError, Row, caller
from hotupgrade.errors import NotNow
from hotupgrade.target.maps import mapping_at
from hotupgrade.target.modules import Module
from hotupgrade.target.process import Process

_PT_GNU_EH_FRAME = 0x6474E550
_RELATIVE_32 = 0x1B
#: No stack of a program that works is deeper, in frames.
_DEEPEST = 2048
#: Frame information of one module is smaller, in bytes.
_MOST_SECTION = 64 << 20


@dataclass(frozen=True, slots=True)
class Region:
    """Code whose frame information is known: [low, high), and the address of its ``.eh_frame``."""

    low: int
    high: int
    eh_frame: int


class Unwinder:
    """Walks stacks of one process.  ``images``: code that the dynamic linker does not know."""

    def __init__(self, process: Process, modules: Sequence[Module], images: Sequence[Region] = ()) -> None:
        self._process = process
        self._modules = modules
        self._images = images
        self._known: dict[int, Frames] = {}

    def row(self, pc: int) -> Row:
        """What the frame information says of the place before the instruction at ``pc``.

        Raises:
            NoFrameError: nothing.
        """
        region = self._region(pc)
        return self._frames(region).row(pc - region.eh_frame)

    def bounds(self, pc: int) -> tuple[int, int]:
        """[first, end) of the function, or of the part of one, that ``pc`` is in.

        Raises:
            NoFrameError: not known.
        """
        region = self._region(pc)
        first, end = self._frames(region).bounds(pc - region.eh_frame)
        return region.eh_frame + first, region.eh_frame + end

    def return_slots(self, pc: int, registers: Mapping[int, int]) -> frozenset[int] | None:
        """Addresses of all words on the stack that calls will return through; None if that cannot be told.

        Args:
            pc: where the thread stands.
            registers: its registers by DWARF number.
        """
        slots: list[int] = []
        look_at = pc
        try:
            for _ in range(_DEEPEST):
                row = self.row(look_at)
                found = caller(row, registers, self._process.read_word)
                if found is None:
                    return frozenset(slots)
                if found.registers[RSP] <= registers[RSP]:
                    return None  # a stack that does not end
                slots.append(found.slot)
                pc, registers = found.pc, found.registers
                # A call may be the last instruction of its function; what a signal interrupted has not run yet.
                look_at = pc if row.signal else pc - 1
        except (NoFrameError, NotNow, ValueError, KeyError, struct.error):
            pass
        return None

    def _frames(self, region: Region) -> Frames:
        """Places in it are relative to the section itself: so it does not matter where the module lies."""
        if region.eh_frame not in self._known:
            mapping = mapping_at(self._process.maps(), region.eh_frame)
            if mapping is None:
                raise NoFrameError(f"nothing is mapped at {region.eh_frame:#x}")
            size = min(mapping.end - region.eh_frame, _MOST_SECTION)
            section = self._process.read(region.eh_frame, size)
            self._known[region.eh_frame] = Frames(section, 0, f"the module at {region.low:#x}")
        return self._known[region.eh_frame]

    def _region(self, pc: int) -> Region:
        for image in self._images:
            if image.low <= pc < image.high:
                return image
        for module in self._modules:
            if any(m.start <= pc < m.end for m in module.mappings):
                return Region(module.low, module.high, self._eh_frame(module))
        raise NoFrameError(f"no module at {pc:#x}")

    def _eh_frame(self, module: Module) -> int:
        """Through the table that the linker makes for the unwinder (``.eh_frame_hdr``)."""
        header = self._process.read(module.low, 64)
        if header[:4] != b"\x7fELF":
            raise NoFrameError(f"no program header of {module.name}")
        offset, count = struct.unpack_from("<Q", header, 32)[0], struct.unpack_from("<H", header, 56)[0]
        table = self._process.read(module.low + offset, 56 * min(count, 64))
        for index in range(len(table) // 56):
            kind, _, _, vaddr = struct.unpack_from("<IIQQ", table, 56 * index)
            if kind == _PT_GNU_EH_FRAME:
                place = module.base + int(vaddr)
                version, encoding, _, _, relative = struct.unpack("<BBBBi", self._process.read(place, 8))
                if (version, encoding) == (1, _RELATIVE_32):
                    return place + 4 + int(relative)
        raise NoFrameError(f"no frame information of {module.name}")
