"""Constants among the variables: what gcc copies into a local array that holds pointers.

``const char *words[] = {"one", "two", ...};`` within a function is filled from a template without a name.  In
position-independent code its words need the loader, and gcc puts it into .data, where variables are.  That nobody
writes there is proven by use: every place that leads into the gap between two named objects takes the address as the
source of a ``rep movs`` or of ``memcpy()``, and for nothing else; or it is the end of a loop over the object before the
gap, and nothing but compared with.  Code without a name must not lead there at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from iced_x86 import Code, Decoder, FlowControl, Instruction, InstructionInfoFactory, Register

from hotupgrade.binary.elf import SHF_ALLOC, SHF_EXECINSTR, SHF_TLS, SHF_WRITE, SectionType
from hotupgrade.binary.model import Flags, Form, Kind
from hotupgrade.binary.pointers import Taken, is_end
from hotupgrade.binary.references import CodeReferences
from hotupgrade.binary.relocations import GOT_SECTIONS

if TYPE_CHECKING:
    from hotupgrade.binary.build import Build

Addresses = npt.NDArray[np.int64]

COPIES = frozenset((Code.MOVSB_M8_M8, Code.MOVSW_M16_M16, Code.MOVSD_M32_M32, Code.MOVSQ_M64_M64))
FUNCTIONS = ("memcpy", "memmove", "__memcpy_chk", "__memmove_chk")
SOURCE = (Register.RSI, Register.ESI, Register.SI, Register.SIL)
IMMEDIATES = (0, 1, 2, 4)  # bytes of an instruction behind the displacement
RELATIVE = 0x05  # ModRM: mod 0, r/m 5
LEA_RSI = b"\x48\x8d\x35"
LOOK_AHEAD = 16  # instructions; a compiler puts few between the two


def template_uses(build: Build, found: CodeReferences, unnamed: Flags, pointed: Addresses) -> Flags:
    """Which references name a template.

    ``unnamed``: those that lead to no named object.  ``pointed``: where data words lead.
    """
    chosen = np.zeros(len(found.target), np.bool_)
    target = found.target.astype(np.int64)
    candidates = np.flatnonzero(unnamed & _in_variables(build, target))
    if not len(candidates):
        return chosen
    edges = _edges(build)
    gap = np.searchsorted(edges, target[candidates], side="right")
    led_to = pointed[~np.isin(pointed, build.entities.address)]  # some have no size, such as __dso_handle
    spoiled = set(np.searchsorted(edges, led_to, side="right").tolist())
    spoiled |= _gaps_in_nameless_code(build, edges, np.unique(gap))
    for place, index in zip(gap.tolist(), candidates.tolist(), strict=True):
        chosen[index] = place not in spoiled and _is_source(build, found, index)
        if not chosen[index] and not _is_end(build, found, index, int(edges[place - 1])):
            spoiled.add(place)
    chosen[candidates] &= ~np.isin(gap, list(spoiled))
    return chosen


def _edges(build: Build) -> Addresses:
    """Where named things begin and end."""
    entities = build.entities
    named = entities.kind != Kind.TLS
    start = entities.address[named].astype(np.int64)
    return np.unique(np.concatenate([start, start + entities.size[named].astype(np.int64)]))


def _gaps_in_nameless_code(build: Build, edges: Addresses, gaps: npt.NDArray[np.intp]) -> set[int]:
    """Which gaps may be led to by code that has no name, and so is no function of ours.

    Any four bytes of it count as a displacement that may be one, behind a byte that says "relative to the instruction
    pointer" (ModRM), with whatever immediate operand behind them.  What the linker makes itself leads to its slots.
    """
    spans = build.function_spans
    found: set[int] = set()
    for section in build.sections.values():
        linkers = section.name == ".plt" or section.name.startswith(".plt.")
        if not section.flags & SHF_EXECINSTR or section.type == SectionType.NOBITS or linkers:
            continue
        code = build.image[section.vaddr : section.vaddr + section.size]
        named = np.zeros(len(code) + 1, np.int64)
        for edge, step in ((spans.start, 1), (spans.stop, -1)):
            np.add.at(named, np.clip(edge - section.vaddr, 0, len(code)), step)
        at = np.flatnonzero(np.cumsum(named[:-1]) == 0)
        at = at[(at > 0) & (at + 4 <= len(code))]
        at = at[(code[at - 1] & 0xC7) == RELATIVE]
        displacement = code[at[:, None] + np.arange(4)].copy().view("<i4")[:, 0].astype(np.int64)
        for behind in IMMEDIATES:
            places = np.searchsorted(edges, section.vaddr + at + 4 + behind + displacement, side="right")
            found.update(places[np.isin(places, gaps)].tolist())
    return found


def _in_variables(build: Build, target: Addresses) -> Flags:
    """Whether they lie in sections like .data: with contents, and writable when the program runs."""
    inside = np.zeros(len(target), np.bool_)
    low, high = build.relro or (0, 0)
    for section in build.sections.values():
        kept = section.flags & (SHF_ALLOC | SHF_WRITE) == SHF_ALLOC | SHF_WRITE
        if not kept or section.flags & (SHF_EXECINSTR | SHF_TLS) or section.type == SectionType.NOBITS:
            continue
        end = section.vaddr + section.size
        if section.name in GOT_SECTIONS or section.name == ".dynamic" or (low <= section.vaddr and end <= high):
            continue
        inside |= (target >= section.vaddr) & (target < end)
    return inside


def _is_source(build: Build, found: CodeReferences, index: int) -> bool:
    """A ``lea`` into rsi that a ``rep movs`` or a call of ``memcpy()`` behind it uses, and before that nothing."""
    position, following = int(found.position[index]), int(found.following[index])
    if found.form[index] != Form.LEA or build.read(position - 3, 3) != LEA_RSI:
        return False
    end = int(build.entities.address[found.function[index]]) + int(build.extent[found.function[index]])
    information = InstructionInfoFactory()
    code = Decoder(64, build.read(following, max(0, min(end - following, 15 * LOOK_AHEAD))), ip=following)
    for instruction, _ in zip(code, range(LOOK_AHEAD), strict=False):
        if instruction.code in COPIES:
            return instruction.has_rep_prefix
        if _copied_by(build, instruction) in FUNCTIONS:
            return True
        if _leaves(instruction) or any(
            used.register in SOURCE for used in information.info(instruction).used_registers()
        ):
            return False
    return False


def _copied_by(build: Build, instruction: Instruction) -> str:
    """The function of another module that is called; "" for everything else."""
    slot: int | None = None
    if instruction.flow_control == FlowControl.CALL:
        slot = build.plt_slot.get(instruction.near_branch_target)
    elif instruction.flow_control == FlowControl.INDIRECT_CALL and instruction.is_ip_rel_memory_operand:
        slot = build.slot_at(instruction.ip_rel_memory_address)
    return "" if slot is None else build.slots[slot].symbol


def _is_end(build: Build, found: CodeReferences, index: int, low: int) -> bool:
    """Where a loop over the object before the gap ends: at ``low``, or at some field of the row that would follow.

    An address that the function uses otherwise may be that of a variable without a name, or of a template that is
    copied in another way.
    """
    if found.form[index] != Form.LEA:
        return False
    entities = build.entities
    before = (entities.address + entities.size == low) & (entities.size > 0) & (entities.kind != Kind.TLS)
    function, beyond = int(found.function[index]), int(found.target[index]) - low
    targets = found.target[found.function == function].astype(np.int64)
    start, extent = int(entities.address[function]), int(build.extent[function])
    position, following = int(found.position[index]), int(found.following[index])
    return any(
        beyond < size
        and bool(((targets >= first) & (targets < low)).any())
        and is_end(build.image, Taken(start, start + extent, position, following, first + beyond, unnamed=False))
        for first, size in zip(entities.address[before].tolist(), entities.size[before].tolist(), strict=True)
    )


def _leaves(instruction: Instruction) -> bool:
    """Whether another instruction than the next one may follow, or none."""
    return instruction.is_invalid or instruction.flow_control != 0
