"""References found by disassembly: capstone finds the same, the linker's records are all among them."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator

import capstone
import numpy as np
import pytest
from capstone import x86_const as x86
from elftools.elf.elffile import ELFFile

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import THREAD_LOCAL_FORMS, Form, Kind, TargetKind
from hotupgrade.binary.thread_locals import below_thread_pointer
from unit.binary.samples import EVERYTHING, PROGRAM
from unit.conftest import Compiler

RIP_RECORDS = (2, 4, 9, 22, 41, 42, 19, 20)  # PC32 PLT32 GOTPCREL GOTTPOFF GOTPCRELX REX_GOTPCRELX TLSGD TLSLD
DTPOFF32 = 21


@pytest.fixture(scope="module", params=["-O0", "-O1", "-O2", "-O3 -fcf-protection=full", "-Os -fno-plt", "program"])
def build(request: pytest.FixtureRequest, compiler: Compiler) -> Build:
    if request.param == "program":
        return compiler.build(PROGRAM, "-Wl,--emit-relocs", executable=True)
    return compiler.build(EVERYTHING, *request.param.split(), "-Wl,--emit-relocs")


def by_capstone(build: Build) -> Iterator[tuple[int, int, int]]:
    """(position, following, target) of operands that leave their function."""
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    disassembler.detail = True
    entities = build.entities
    for row in np.flatnonzero(entities.kind == Kind.FUNCTION).tolist():
        low, size = int(entities.address[row]), int(build.extent[row])
        for instruction in disassembler.disasm(build.read(low, size), low):
            following = instruction.address + instruction.size
            for operand in instruction.operands:
                if operand.type == x86.X86_OP_MEM and operand.mem.base == x86.X86_REG_RIP:
                    target = following + operand.mem.disp
                    own_start = target == low and instruction.id == x86.X86_INS_LEA
                    if not low <= target < low + size or own_start:
                        yield instruction.address + instruction.disp_offset, following, target
                elif operand.type == x86.X86_OP_IMM and instruction.group(x86.X86_GRP_BRANCH_RELATIVE):
                    width = 1 if instruction.bytes[0] in (0xEB, 0xE3) or instruction.bytes[0] >> 4 == 7 else 4
                    if not low <= operand.imm < low + size:
                        yield following - width, following, operand.imm


def test_capstone_finds_the_same(build: Build) -> None:
    references = build.references
    chosen = ~np.isin(references.form, THREAD_LOCAL_FORMS)
    found = zip(
        references.position[chosen].tolist(),
        references.following[chosen].tolist(),
        references.target[chosen].tolist(),
        strict=True,
    )
    wanted = sorted(by_capstone(build))
    assert len(wanted) > 50
    assert list(found) == wanted


def test_the_field_leads_to_the_target(build: Build) -> None:
    references = build.references
    for position, following, form, target in zip(
        references.position.tolist(),
        references.following.tolist(),
        references.form.tolist(),
        references.target.tolist(),
        strict=True,
    ):
        width = 1 if form == Form.SHORT else 4
        field = int.from_bytes(build.read(position, width), "little", signed=True)
        origin = {Form.DTPOFF: 0, Form.TPOFF: below_thread_pointer(build)}.get(Form(form), following)
        assert origin + field == target


def test_every_record_of_the_linker_is_found(build: Build) -> None:
    elf = ELFFile(io.BytesIO(build.data))
    spans = build.function_spans
    positions = set(build.references.position.tolist())
    entities = build.entities
    count = 0
    for record in elf.get_section_by_name(".rela.text").iter_relocations():
        kind, place = record["r_info_type"], record["r_offset"]
        function = spans.find_one(place)
        if kind not in RIP_RECORDS or function is None:
            continue
        low = int(entities.address[function])
        target = place + 4 + int.from_bytes(build.read(place, 4), "little", signed=True)
        if low <= target < low + int(build.extent[function]):
            continue  # stays within its function
        count += 1
        assert place in positions, hex(place)
    assert count > 30


def test_thread_local_offsets_come_from_the_records(compiler: Compiler) -> None:
    text = """
    __attribute__((visibility("hidden"))) __thread int first = 1, second;
    static __thread long third[4];
    long use(int i) { return first + second + third[2] + (long) &third[i]; }
    """
    build = compiler.build(text, "-ftls-model=local-dynamic", "-Wl,--emit-relocs")
    references = build.references
    chosen = references.form == Form.DTPOFF
    named = {
        (build.entities.names[entity], addend)
        for entity, addend in zip(references.entity[chosen].tolist(), references.addend[chosen].tolist(), strict=True)
    }
    assert named == {("first", 0), ("second", 0), ("third", 16), ("third", 0)}


def test_targets_are_told_apart(compiler: Compiler) -> None:
    build = compiler.build(EVERYTHING)
    assert targets(build, "tail") == {("JUMP", "helper")}
    assert ("LEA", "callback") in targets(build, "gives_callback")
    assert ("MEMORY", "counter") in targets(build, "helper")
    assert ("CALL", "PLT puts") in targets(build, "exported")
    assert ("MEMORY", "GOT exported_data") in targets(build, "helper")
    assert ("MEMORY", "GOT environ") in targets(build, "reads_import")
    assert ("MEMORY", "ANONYMOUS") in targets(build, "uses_double")
    assert ("LEA", "ANONYMOUS") in targets(build, "exported")
    assert ("CALL_MEMORY", "GOT puts") in targets(compiler.build(EVERYTHING, "-fno-plt"), "exported")
    pointer = targets(build, "calls_pointer")
    assert ("MEMORY", "pointer") in pointer or ("CALL_MEMORY", "pointer") in pointer


def test_how_much_an_instruction_reads(compiler: Compiler) -> None:
    build = compiler.build(
        "double a(double x) { return x * 3.25; } float b(float x) { return x * 3.25f; }"
        "typedef int v __attribute__((vector_size(16))); v c(v x) { return x + (v) {1, 2, 3, 4}; }"
    )
    references = build.references
    widths = {
        build.entities.names[function]: access
        for function, access, kind in zip(
            references.function.tolist(), build.access.tolist(), references.target_kind.tolist(), strict=True
        )
        if kind == TargetKind.ANONYMOUS
    }
    assert widths == {"a": 8, "b": 4, "c": 16}


def test_a_short_jump_to_a_neighbour_is_a_reference_of_one_byte(compiler: Compiler) -> None:
    text = """
    .text
    .type first, @function
    first: test %edi, %edi
           je second
           jmp second
    .size first, . - first
    .type second, @function
    second: jmp first
    .size second, . - second
    .globl first, second
    .hidden first, second
    .section .note.GNU-stack
    """
    build = compiler.build({"a.s": text})
    assert targets(build, "first") == {("SHORT", "second")}
    assert targets(build, "second") == {("SHORT", "first")}


@pytest.mark.parametrize("padding", [".p2align 4", ""], ids=["padding", "neighbour"])
def test_a_branch_to_the_own_end_stays_within(compiler: Compiler, padding: str) -> None:
    """Behind a call that never returns, clang -O0 jumps to where nothing is; but a neighbour may begin there."""
    text = f"""
    .globl f, g
    .type f, @function
f:  test %edi, %edi
    je 1f
    call abort@plt
    .byte 0xe9
    .long 1f - . - 4
1:  .size f, . - f
    .fill 3, 1, 0xcc
    {padding}
    .type g, @function
g:  ret
    .size g, . - g
    .section .note.GNU-stack
"""
    build = compiler.build({"module.s": text if padding else text.replace(".fill 3, 1, 0xcc", "")})
    references = build.references
    ours = references.function == build.by_name["f"]
    targets = zip(references.target_kind[ours].tolist(), references.entity[ours].tolist(), strict=True)
    leaving = [(kind, row) for kind, row in targets if kind != TargetKind.PLT]
    assert leaving == ([] if padding else 2 * [(TargetKind.ENTITY, build.by_name["g"])])


def test_a_jump_behind_its_own_function_belongs_to_it(compiler: Compiler) -> None:
    """What gcc makes of a call that does not return: ``jmp`` to where the function has ended."""
    text = """
    .text
    .globl f
    .type f, @function
    f: test %edi, %edi
       je f.cold
       call f
    .Lend:
    .size f, . - f
       nop
       nop
    .type g, @function
    g: jmp .Lend
    .size g, . - g
    .section .text.unlikely
    .type f.cold, @function
    f.cold: call f
       jmp .Lend
    .size f.cold, . - f.cold
    .section .note.GNU-stack
    """
    build = compiler.build({"a.s": text})
    names, references = build.entities.names, build.references
    f = names.index("f")
    mine = (references.function == names.index("f.cold")) & (references.form == Form.JUMP)
    assert references.target_kind[mine].tolist() == [TargetKind.ENTITY]
    assert references.entity[mine].tolist() == [f]
    assert references.addend[mine].tolist() == [build.extent[f]]
    strange = (references.function == names.index("g")) & np.isin(references.form, (Form.JUMP, Form.SHORT))
    assert references.target_kind[strange].tolist() == [TargetKind.UNKNOWN]


def test_a_label_with_a_size_is_a_function(compiler: Compiler) -> None:
    """Some of OpenSSL's have no type.  What lies within another function is a label still."""
    text = """
    .text
    .globl f
    .type f, @function
    f: call forgotten
    inner: ret
    .size inner, . - inner
    .size f, . - f
    forgotten: ret
    .size forgotten, . - forgotten
    label: ret
    .section .note.GNU-stack
    """
    build = compiler.build({"a.s": text})
    assert targets(build, "f") == {("CALL", "forgotten")}
    assert not {"inner", "label"} & set(build.entities.names)


def test_calls_take_no_address(compiler: Compiler) -> None:
    build = compiler.build(EVERYTHING)
    taken = {name for name, flag in zip(build.entities.names, build.taken.tolist(), strict=True) if flag}
    assert {"callback", "first_constructor", "second_constructor", "last", "_init", "_fini", "exported"} <= taken
    assert not {"helper", "failed", "rarely", "tail", "uses_double", "counter"} & taken
    plain = {name for name, flag in zip(build.entities.names, build.plain.tolist(), strict=True) if flag}
    assert "tail" in plain
    assert "helper" not in plain


def test_the_address_of_the_own_function_is_taken(compiler: Compiler) -> None:
    text = """
    extern void start(void *);
    static void again(void) { start((void *) again); }
    __attribute__((noinline)) static void *loop(int x) { return x ? (void *) loop : 0; }
    void *use(int x) { again(); return loop(x); }
    """
    build = compiler.build(text)
    assert ("LEA", "loop") in targets(build, "loop")
    assert build.taken[build.entities.names.index("loop")]


def test_switch_tables_have_the_count_that_the_source_has(compiler: Compiler) -> None:
    cases = "".join(f"case {i}: g({i * 7 + 1}); return {i * i};" for i in range(23))
    text = f"extern void g(int); int f(int x) {{ switch (x) {{ {cases} }} return -1; }}"
    build = compiler.build(text)
    (table,) = build.jump_tables
    assert table.count == 23
    assert build.entities.names[table.function] == "f"
    assert table.targets == (table.function,)
    start, size = int(build.entities.address[table.function]), int(build.extent[table.function])
    entries = np.frombuffer(build.read(table.vaddr, 4 * table.count), "<i4") + table.vaddr
    assert all(start <= entry < start + size for entry in entries.tolist())


def test_switch_tables_may_lead_into_the_cold_part(compiler: Compiler) -> None:
    cases = "".join(f"case {i}: {'die' if i % 3 == 1 else 'g'}({i * 7 + 1}); return {i * i};" for i in range(11))
    text = "extern void g(int); extern void die(int) __attribute__((cold, noreturn));"
    build = compiler.build(text + f"int f(int x) {{ switch (x) {{ {cases} }} return -1; }}")
    (table,) = build.jump_tables
    assert table.count == 11
    assert {build.entities.names[row] for row in table.targets} == {"f", "f.cold"}


def test_strings_are_no_switch_tables(compiler: Compiler) -> None:
    texts = ";".join(f'puts("text number {i} {"x" * i}")' for i in range(40))
    build = compiler.build(f"#include <stdio.h>\nvoid f(void) {{ {texts}; }}")
    assert build.jump_tables == ()
    assert (build.references.target_kind == TargetKind.ANONYMOUS).sum() == 40


def test_bytes_that_are_no_instruction_are_reported(compiler: Compiler) -> None:
    text = """
    .text
    .globl f
    .type f, @function
    f: ret
       .byte 0x06, 0x07, 0x0e
    .size f, . - f
    .section .note.GNU-stack
    """
    build = compiler.build({"a.s": text})
    assert {build.entities.names[row] for row in build.undecodable} == {"f"}
    assert compiler.build(EVERYTHING).undecodable == frozenset()


def test_all_code_has_been_looked_at(build: Build) -> None:
    """objdump's own count of operands relative to the instruction pointer, over the whole text."""
    text = subprocess.run(
        ["objdump", "-d", "-j", ".text", "--no-show-raw-insn", build.label], capture_output=True, text=True, check=True
    ).stdout
    references, section = build.references, build.sections[".text"]
    operand = np.isin(references.form, (Form.LEA, Form.MEMORY, Form.CALL_MEMORY, Form.JUMP_MEMORY))
    inside = (references.position >= section.vaddr) & (references.position < section.vaddr + section.size)
    assert int((operand & inside).sum()) == text.count("(%rip)")


def targets(build: Build, function: str) -> set[tuple[str, str]]:
    references = build.references
    found = set()
    for i in np.flatnonzero(references.function == build.entities.names.index(function)).tolist():
        kind, entity = TargetKind(int(references.target_kind[i])), int(references.entity[i])
        name = kind.name
        if kind == TargetKind.ENTITY:
            name = build.entities.names[entity]
        elif kind in (TargetKind.GOT, TargetKind.PLT):
            name = f"{kind.name} {build.slots[entity].symbol}"
        found.add((Form(int(references.form[i])).name, name))
    return found
