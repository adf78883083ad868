"""Instructions taken apart: capstone sees the same operands; what is not followed says what it reads and writes."""

from __future__ import annotations

from collections.abc import Iterator

import capstone
import numpy as np
import pytest
from capstone import x86_const as x86
from iced_x86 import Decoder, Instruction, Register

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Kind
from hotupgrade.binary.steps import RSP, Do, Step, Translator
from unit.binary.samples import EVERYTHING
from unit.conftest import Compiler

SOURCE = ".globl f\n.type f, @function\nf: {code}\n.size f, . - f\n.section .note.GNU-stack\n"


def steps(compiler: Compiler, code: str) -> list[Step]:
    build = compiler.build({"module.s": SOURCE.replace("{code}", code)})
    translate = Translator(build.image)
    return [translate(each) for each in instructions(build, "f")]


def instructions(build: Build, name: str) -> Iterator[Instruction]:
    row = build.by_name[name]
    low = int(build.entities.address[row])
    yield from Decoder(64, build.read(low, int(build.extent[row])), ip=low)


@pytest.mark.parametrize(
    ("code", "do", "target", "source", "wide"),
    [
        ("mov %rax, %rbx", Do.MOVE, Register.RBX, Register.RAX, True),
        ("mov %eax, %ebx", Do.MOVE, Register.RBX, Register.RAX, False),
        ("mov 8(%rsp), %rcx", Do.MOVE, Register.RCX, 0, True),
        ("mov %rcx, 8(%rsp)", Do.MOVE, 0, Register.RCX, True),
        ("mov %cl, 8(%rsp)", Do.MOVE, 0, Register.RCX, False),
        ("lea 0x1000(%rax), %rdx", Do.LEA, Register.RDX, 0, True),
        ("add %rax, %rdx", Do.ADD, Register.RDX, Register.RAX, True),
        ("push %rbp", Do.PUSH, 0, Register.RBP, False),
        ("pop %rbp", Do.POP, Register.RBP, 0, True),
        ("xchg %rbx, %rcx", Do.EXCHANGE, Register.RCX, Register.RBX, True),
        ("cmovne %rbx, %rcx", Do.CONDITIONAL, Register.RCX, Register.RBX, True),
        ("xor %ecx, %ecx", Do.CLEAR, Register.RCX, Register.RCX, False),
        ("xor %ebx, %ecx", Do.GENERIC, 0, 0, False),
        ("sub $8, %rsp", Do.SUBTRACT, Register.RSP, 0, True),
        ("sub %rbx, %rcx", Do.GENERIC, 0, 0, False),
        ("leave", Do.LEAVE, 0, 0, False),
        ("imul %rbx, %rcx", Do.GENERIC, 0, 0, False),
        ("endbr64", Do.NOTHING, 0, 0, False),
    ],
)
def test_how_values_move(compiler: Compiler, code: str, do: Do, target: int, source: int, wide: bool) -> None:
    (step,) = steps(compiler, code)
    assert (step.do, step.target, step.source) == (do, target, source)
    if step.do not in (Do.GENERIC, Do.PUSH, Do.LEAVE, Do.NOTHING):
        assert step.wide == wide


def test_what_is_not_followed_says_what_it_reads_and_writes(compiler: Compiler) -> None:
    (step,) = steps(compiler, "imul (%rdi,%rsi,4), %rcx")
    assert (step.reads, step.writes) == ({Register.RCX}, {Register.RCX})
    assert step.touched == {Register.RCX, Register.RDI, Register.RSI}
    (step,) = steps(compiler, "cmpxchg %rbx, (%rdi)")
    assert step.stores
    assert Register.RAX in step.writes


def test_where_a_call_leads(compiler: Compiler) -> None:
    code = "call 1f\n1: call *g@gotpcrel(%rip)\ncall *%rbx\ncall *(%rax)\ncall *8(%rax)"
    direct, by_slot, by_register, by_word, by_field = steps(compiler, code)
    assert direct.call == by_slot.vaddr
    assert by_slot.memory is not None
    assert by_slot.call == by_slot.memory.absolute > 0
    assert (by_register.call, by_register.call_register) == (-1, 0)
    assert (by_word.call, by_word.call_register) == (-1, Register.RAX), "as descriptors are called"
    assert (by_field.call, by_field.call_register) == (-1, 0)


def test_where_the_linkers_field_is(compiler: Compiler) -> None:
    build = compiler.build({"module.s": SOURCE.replace("{code}", "mov 0x12345678(%rax), %rcx\nadd $0x7654321, %rax")})
    translate = Translator(build.image)
    numbers = [translate.number_at(translate.field_of(each.ip)) for each in instructions(build, "f")]
    assert numbers == [0x12345678, 0x7654321]


def test_capstone_sees_the_same_places_in_memory(compiler: Compiler) -> None:
    build = compiler.build(EVERYTHING, "-O2")
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    disassembler.detail = True
    translate, compared = Translator(build.image), 0
    for row in np.flatnonzero(build.entities.kind == Kind.FUNCTION).tolist():
        low, size = int(build.entities.address[row]), int(build.extent[row])
        theirs = {each.address: each for each in disassembler.disasm(build.read(low, size), low)}
        for instruction in Decoder(64, build.read(low, size), ip=low):
            step, other = translate(instruction), theirs[instruction.ip]
            places = [operand.mem for operand in other.operands if operand.type == x86.X86_OP_MEM]
            if step.do == Do.NOTHING or not places:
                continue
            assert step.memory is not None
            place = places[0]
            if place.base == x86.X86_REG_RIP:
                assert step.memory.absolute == other.address + other.size + place.disp
            else:
                assert step.memory.displacement == place.disp
                assert (step.memory.base == RSP) == (place.base == x86.X86_REG_RSP)
                assert bool(step.memory.index) == (place.index != 0)
                assert step.memory.fs == (place.segment == x86.X86_REG_FS)
            compared += 1
    assert compared > 50
