"""Every place in the code that names an address outside its own function, found by disassembly.

Disassembly over the ranges of function symbols is complete where link-time relocation records are not: the assembler
resolves a ``lea`` of a function in the same section without leaving a record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from iced_x86 import Decoder, Instruction, MemorySizeInfo, Mnemonic, OpKind, Register

from hotupgrade.binary.model import I32, U8, U64, Form

NEAR_BRANCH = int(OpKind.NEAR_BRANCH64)
LEA = int(Mnemonic.LEA)
FS = int(Register.FS)
NO_REGISTER = int(Register.NONE)


@dataclass(frozen=True)
class CodeReferences:
    """What the instructions say; what the targets are is decided elsewhere.  Sorted by ``position``."""

    position: U64
    following: U64
    form: U8
    target: U64
    function: I32
    access: I32  # bytes that a MEMORY reference reads or writes; 0 for other forms
    undecodable: tuple[int, ...]  # rows that hold bytes which are no instruction
    segment_users: tuple[int, ...] = ()  # rows that take the thread pointer, or add something to it
    from_segment: tuple[int, ...] = ()  # vaddrs of instructions with an operand right before the thread pointer


def scan(
    image: U8, starts: Sequence[int], stops: Sequence[int], rows: Sequence[int], *, segments: bool = False
) -> CodeReferences:
    """Disassembles disjoint ranges of ``image``, each owned by a row (a function).

    ``segments``: whether to look for uses of the thread pointer.
    """
    operands: list[Instruction] = []
    branches: list[Instruction] = []
    operand_rows: list[int] = []
    branch_rows: list[int] = []
    undecodable: set[int] = set()
    segment_users: set[int] = set()
    from_segment: list[int] = []
    for start, stop, row in zip(starts, stops, rows, strict=True):
        before = len(operands), len(branches)
        for instruction in Decoder(64, image[start:stop].tobytes(), ip=start):
            if instruction.is_ip_rel_memory_operand:
                operands.append(instruction)
            elif instruction.op0_kind == NEAR_BRANCH:
                if not start <= instruction.near_branch_target < stop:
                    branches.append(instruction)
            elif instruction.is_invalid:
                undecodable.add(row)
            elif segments and instruction.segment_prefix == FS:
                # Canaries and the like lie at fixed places behind the thread pointer.
                if not _is_fixed(instruction) or instruction.memory_displacement == 0:
                    segment_users.add(row)
                elif instruction.memory_displacement >> 63:
                    from_segment.append(instruction.ip)
        operand_rows.extend([row] * (len(operands) - before[0]))
        branch_rows.extend([row] * (len(branches) - before[1]))
    return _sorted(
        _operand_table(image, operands, operand_rows),
        _branch_table(branches, branch_rows),
        tuple(sorted(undecodable)),
        tuple(sorted(segment_users)),
        tuple(from_segment),
    )


Columns = tuple[npt.NDArray[np.int64], ...]  # position, following, form, target, function, access


def _is_fixed(instruction: Instruction) -> bool:
    return instruction.memory_base == NO_REGISTER == instruction.memory_index


def _sorted(
    operands: Columns,
    branches: Columns,
    undecodable: tuple[int, ...],
    segment_users: tuple[int, ...],
    from_segment: tuple[int, ...],
) -> CodeReferences:
    columns = [np.concatenate(pair) for pair in zip(operands, branches, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    position, following, form, target, function, access = (column[order] for column in columns)
    return CodeReferences(
        position=position.astype(np.uint64),
        following=following.astype(np.uint64),
        form=form.astype(np.uint8),
        target=target.astype(np.uint64),
        function=function.astype(np.int32),
        access=access.astype(np.int32),
        undecodable=undecodable,
        segment_users=segment_users,
        from_segment=from_segment,
    )


def _operand_table(image: U8, instructions: list[Instruction], rows: list[int]) -> Columns:
    following = np.array([i.next_ip for i in instructions], np.int64)
    target = np.array([i.ip_rel_memory_address for i in instructions], np.uint64).astype(np.int64)
    code = [i.code for i in instructions]
    shape = {c: _shape(image, i) for c, i in dict(zip(code, instructions, strict=True)).items()}
    tail = np.array([shape[c][0] for c in code], np.int64)
    form = np.array([shape[c][1] for c in code], np.int64)
    width = np.array([_width(i.memory_size) for i in instructions], np.int64)
    access = np.where(form == Form.MEMORY, width, 0)
    return following - 4 - tail, following, form, target, np.array(rows, np.int64), access


def _branch_table(instructions: list[Instruction], rows: list[int]) -> Columns:
    following = np.array([i.next_ip for i in instructions], np.int64)
    target = np.array([i.near_branch_target for i in instructions], np.uint64).astype(np.int64)
    code = [i.code for i in instructions]
    forms = {c: int(_branch_form(i)) for c, i in dict(zip(code, instructions, strict=True)).items()}
    form = np.array([forms[c] for c in code], np.int64)
    size = np.where(form == Form.SHORT, 1, 4)
    return following - size, following, form, target, np.array(rows, np.int64), np.zeros(len(rows), np.int64)


@cache
def _width(memory_size: int) -> int:
    return MemorySizeInfo(memory_size).size  # type: ignore[arg-type]  # the stub wants a class of its own


def _branch_form(instruction: Instruction) -> Form:
    if instruction.is_call_near:
        return Form.CALL
    if instruction.is_jmp_near:
        return Form.JUMP
    if instruction.is_jmp_short or instruction.is_jcc_short or instruction.is_loop or instruction.is_loopcc:
        return Form.SHORT
    return Form.SHORT if instruction.is_jcx_short else Form.BRANCH


def _shape(image: U8, instruction: Instruction) -> tuple[int, Form]:
    """(bytes between the displacement and the end of the instruction, form); the same for all of one opcode."""
    start = instruction.ip
    decoder = Decoder(64, image[start : start + instruction.len].tobytes(), ip=start)
    again = decoder.decode()
    offset = decoder.get_constant_offsets(again).displacement_offset
    tail = instruction.len - offset - 4
    if again.is_call_near_indirect:
        return tail, Form.CALL_MEMORY
    if again.is_jmp_near_indirect:
        return tail, Form.JUMP_MEMORY
    if again.mnemonic == LEA:
        return tail, Form.LEA
    return tail, Form.MEMORY
