"""Reading a build: pyelftools and readelf say the same."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Kind
from hotupgrade.binary.relocations import Relocation
from hotupgrade.binary.symbols import LOADER_SECTIONS
from hotupgrade.errors import Refused
from unit.binary.samples import EVERYTHING, PROGRAM
from unit.conftest import Compiler

LINKS = {
    "plain": (),
    "now": ("-Wl,-z,now",),
    "lazy": ("-Wl,-z,lazy", "-Wl,-z,norelro"),
    "records": ("-Wl,--emit-relocs",),
    "indirect": ("-fno-plt",),
    "branch tracking": ("-fcf-protection=full", "-Wl,-z,ibtplt"),
    "packed": ("-Wl,-z,pack-relative-relocs",),
    "gold": ("-fuse-ld=gold",),
    "one segment": ("-Wl,-z,noseparate-code",),
    "descriptors": ("-mtls-dialect=gnu2",),
}


@pytest.fixture(params=[*LINKS, "program"])
def path(request: pytest.FixtureRequest, compiler: Compiler) -> Path:
    if request.param == "program":
        return compiler.file(PROGRAM, executable=True)
    try:
        return compiler.file(EVERYTHING, *LINKS[request.param])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this linker cannot: {error.stderr.strip().splitlines()[-1]}")


@pytest.fixture
def build(path: Path) -> Build:
    return Build.open(path)


@pytest.fixture
def oracle(path: Path) -> ELFFile:
    return ELFFile(io.BytesIO(path.read_bytes()))


def test_header_and_segments(build: Build, oracle: ELFFile) -> None:
    loads = [s for s in oracle.iter_segments() if s["p_type"] == "PT_LOAD"]
    assert [(s.vaddr, s.memory_size, s.file_size, s.file_offset) for s in build.segments] == [
        (s["p_vaddr"], s["p_memsz"], s["p_filesz"], s["p_offset"]) for s in loads
    ]
    assert [(s.readable, s.writable, s.executable) for s in build.segments] == [
        (bool(s["p_flags"] & 4), bool(s["p_flags"] & 2), bool(s["p_flags"] & 1)) for s in loads
    ]
    assert build.entry == oracle["e_entry"]
    assert build.span % 4096 == 0
    assert build.span - 4096 < loads[-1]["p_vaddr"] + loads[-1]["p_memsz"] <= build.span


def test_build_id_and_names(build: Build, oracle: ELFFile) -> None:
    notes = oracle.get_section_by_name(".note.gnu.build-id").iter_notes()
    assert build.build_id == next(n["n_desc"] for n in notes if n["n_type"] == "NT_GNU_BUILD_ID")
    dynamic = oracle.get_section_by_name(".dynamic")
    assert list(build.needed) == [t.needed for t in dynamic.iter_tags("DT_NEEDED")]
    assert "libc.so.6" in build.needed


def test_every_symbol_has_its_row(build: Build, oracle: ELFFile) -> None:
    wanted = {"STT_FUNC": {Kind.FUNCTION}, "STT_TLS": {Kind.TLS}}
    data = {Kind.OBJECT, Kind.RELRO, Kind.CONSTANT}
    names = {alias: row for row, aliases in enumerate(build.entities.aliases) for alias in aliases}
    count = 0
    for symbol in oracle.get_section_by_name(".symtab").iter_symbols():
        kind = symbol["st_info"]["type"]
        if symbol["st_shndx"] in ("SHN_UNDEF", "SHN_ABS") or kind not in ("STT_FUNC", "STT_TLS", "STT_OBJECT"):
            continue
        section = oracle.get_section(symbol["st_shndx"])
        if section["sh_type"].endswith("_ARRAY") or section.name in LOADER_SECTIONS:
            continue
        if symbol.name in ("__TMC_END__", "_DYNAMIC", "_GLOBAL_OFFSET_TABLE_") or section["sh_type"] == "SHT_NOTE":
            continue
        row = names[symbol.name]
        count += 1
        assert build.entities.address[row] == symbol["st_value"], symbol.name
        assert build.entities.size[row] >= symbol["st_size"], symbol.name
        assert Kind(int(build.entities.kind[row])) in wanted.get(kind, data), symbol.name
    assert count > 30


def test_rows_are_sorted_and_distinct(build: Build) -> None:
    entities = build.entities
    keys = list(
        zip((entities.kind == Kind.TLS).tolist(), entities.address.tolist(), entities.kind.tolist(), strict=True)
    )
    assert keys == sorted(set(keys))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("exported", Kind.FUNCTION),
        ("helper", Kind.FUNCTION),
        ("exported_data", Kind.OBJECT),
        ("exported_zeroed", Kind.OBJECT),
        ("counter", Kind.OBJECT),
        ("exported_constant", Kind.CONSTANT),
        ("numbers", Kind.CONSTANT),
        ("exported_thread_local", Kind.TLS),
        ("hidden_thread_local", Kind.TLS),
    ],
)
def test_kinds(build: Build, name: str, kind: Kind) -> None:
    row = row_of(build, name)
    assert build.entities.kind[row] == kind
    assert build.entities.exported[row] == (name.startswith("exported") and not build.executable)


def test_relocated_constants_are_told_from_variables(compiler: Compiler) -> None:
    build = compiler.build(EVERYTHING)
    assert build.entities.kind[row_of(build, "words")] == Kind.RELRO
    without = compiler.build(EVERYTHING, "-Wl,-z,norelro")
    assert without.relro is None
    assert without.entities.kind[row_of(without, "words")] == Kind.RELRO  # constant to the source all the same


def test_global_names_lead_to_rows(build: Build) -> None:
    assert build.entities.names[build.by_name["exported"]] == "exported"
    assert "helper" not in build.by_name
    assert build.row_at(int(build.entities.address[build.by_name["exported"]]) + 1) == build.by_name["exported"]


def test_local_rows_know_their_file(build: Build) -> None:
    assert build.entities.files[row_of(build, "helper")] == "module.c"
    assert build.entities.files[row_of(build, "exported")] == ""


def test_dynamic_symbols(build: Build, oracle: ELFFile) -> None:
    table = oracle.get_section_by_name(".dynsym")
    assert [s.name for s in build.dynamic_symbols] == [s.name for s in table.iter_symbols()]
    assert [s.vaddr for s in build.dynamic_symbols] == [s["st_value"] for s in table.iter_symbols()]
    imported = next(s for s in build.dynamic_symbols if s.name == "puts")
    assert (imported.version, imported.defined, imported.hidden_version) == ("GLIBC_2.2.5", False, False)


def test_dynamic_relocations(build: Build, oracle: ELFFile) -> None:
    wanted = []
    for name in (".rela.dyn", ".rela.plt"):
        section = oracle.get_section_by_name(name)
        if section is not None:
            wanted += [
                (r["r_offset"], r["r_info_type"], r["r_info_sym"], r["r_addend"]) for r in section.iter_relocations()
            ]
    found = build.dynamic_relocations
    columns = (found.vaddr, found.type, found.symbol, found.addend)
    rows = list(zip(*(c.tolist() for c in columns), strict=True))
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    if ".relr.dyn" not in build.sections:
        assert sorted(rows) == sorted(wanted)
        return
    assert set(wanted) < set(rows)
    packed = {r["r_offset"] for r in oracle.get_section_by_name(".relr.dyn").iter_relocations()}
    assert packed == {row[0] for row in rows if row not in wanted}
    assert all(row[1] == Relocation.RELATIVE for row in rows if row not in wanted)


def test_packed_relocations_carry_the_addend_that_lies_in_the_file(compiler: Compiler) -> None:
    plain = compiler.build(EVERYTHING)
    try:
        packed = compiler.build(EVERYTHING, "-Wl,-z,pack-relative-relocs")
    except subprocess.CalledProcessError:
        pytest.skip("this linker packs no relocations")
    for build in (plain, packed):
        start = int(build.entities.address[row_of(build, "words")])
        at = np.searchsorted(build.dynamic_relocations.vaddr, start)
        assert build.read(int(build.dynamic_relocations.addend[at]), 4) == b"one\0"


def test_constructors(build: Build) -> None:
    names = [build.entities.names[build.row_at(vaddr) or 0] for vaddr in build.init_array]
    assert names == ["frame_dummy", "first_constructor", "second_constructor"]
    last = [build.entities.names[build.row_at(vaddr) or 0] for vaddr in build.fini_array]
    assert "last" in last
    assert build.init is not None
    assert build.entities.names[build.row_at(build.init) or 0] == "_init"


def test_plt_stubs_lead_to_the_slots_that_objdump_names(build: Build, path: Path) -> None:
    text = subprocess.run(["objdump", "-d", path], capture_output=True, text=True, check=True).stdout
    named = {}
    for line in text.splitlines():
        if line.endswith("@plt>:"):
            vaddr, name = line[:-2].split(" <")
            named[int(vaddr, 16)] = name.split("@")[0]
    found = {vaddr: build.slots[slot].symbol for vaddr, slot in build.plt_slot.items()}
    assert named.items() <= found.items()
    assert set(found.values()) <= {s.name for s in build.dynamic_symbols}


def test_slots_cover_the_offset_tables(build: Build) -> None:
    vaddrs = [slot.vaddr for slot in build.slots]
    assert vaddrs == sorted(set(vaddrs))
    for name in (".got", ".got.plt"):
        section = build.sections.get(name)
        if section is not None:
            assert set(range(section.vaddr, section.vaddr + section.size, 8)) <= set(vaddrs)
    # An executable holds a copy of the variable and needs no slot for it.
    name, kind = ("puts", Relocation.JUMP_SLOT) if build.executable else ("environ", Relocation.GLOB_DAT)
    imported = next(slot for slot in build.slots if slot.symbol == name)
    assert imported.relocation == kind
    assert imported.version == "GLIBC_2.2.5"
    assert build.slots[build.slot_at(imported.vaddr) or 0] == imported


def test_read_gives_file_bytes_and_zeros(build: Build, oracle: ELFFile) -> None:
    text = oracle.get_section_by_name(".text")
    assert build.read(text["sh_addr"], text["sh_size"]) == text.data()
    zeroed = int(build.entities.address[row_of(build, "exported_zeroed")])
    assert build.read(zeroed, 40) == bytes(40)
    assert build.read(build.span - 1, 1) == b"\0"
    with pytest.raises(Refused):
        build.read(build.span - 1, 2)


def test_flags(compiler: Compiler) -> None:
    now = compiler.build(EVERYTHING, "-Wl,-z,now")
    lazy = compiler.build(EVERYTHING, "-Wl,-z,lazy")
    assert (now.bind_now, lazy.bind_now) == (True, False)
    assert compiler.build(EVERYTHING, "-Wl,-Bsymbolic").symbolic
    assert not lazy.symbolic
    assert compiler.build(EVERYTHING, "-Wl,--emit-relocs").has_relocation_records
    assert not lazy.has_relocation_records
    assert compiler.build(PROGRAM, executable=True).executable
    assert not lazy.executable
    assert compiler.build(EVERYTHING, "-Wl,-soname,libx.so.3").soname == "libx.so.3"


def test_without_a_build_id_the_content_identifies(compiler: Compiler) -> None:
    first = compiler.build(EVERYTHING, "-Wl,--build-id=none")
    second = compiler.build(EVERYTHING + "int more;", "-Wl,--build-id=none")
    assert first.build_id.startswith("sha1-")
    assert first.build_id != second.build_id


def test_default_versions_are_plain_names_and_others_are_not(compiler: Compiler, tmp_path: Path) -> None:
    script = tmp_path / "versions"
    script.write_text("V1 { global: f; };\nV2 { global: f; g; } V1;\n")
    text = """
    __asm__(".symver old_f, f@V1"); __asm__(".symver new_f, f@@V2");
    int old_f(void) { return 1; } int new_f(void) { return 2; } int g(void) { return 3; }
    """
    build = compiler.build(text, f"-Wl,--version-script={script}")
    assert "new_f" in build.entities.aliases[build.by_name["f"]]
    assert "old_f" in build.entities.aliases[build.by_name["f@V1"]]
    versions = {(s.name, s.version, s.hidden_version) for s in build.dynamic_symbols if s.name in ("f", "g")}
    assert versions == {("f", "V1", True), ("f", "V2", False), ("g", "V2", False)}


def test_aliases_share_a_row(compiler: Compiler) -> None:
    build = compiler.build(
        'int first(void) { return 3; } int abc(void) __attribute__((alias("first")));'
        'int weak(void) __attribute__((weak, alias("first")));'
    )
    row = build.by_name["first"]
    assert build.entities.aliases[row] == ("abc", "first", "weak")
    assert build.entities.names[row] == "abc"
    assert {build.by_name[name] for name in ("first", "abc", "weak")} == {row}


def test_a_function_without_a_size_reaches_to_the_next(compiler: Compiler) -> None:
    text = """
    .text
    .globl naked
    .type naked, @function
    naked: xor %eax, %eax
           ret
    .globl sized
    .type sized, @function
    sized: ret
    .size sized, . - sized
    .section .note.GNU-stack
    """
    build = compiler.build({"a.s": text})
    naked, sized = build.by_name["naked"], build.by_name["sized"]
    assert build.entities.size[naked] == 0
    assert build.extent[naked] == build.entities.address[sized] - build.entities.address[naked] == 3
    assert build.row_at(int(build.entities.address[naked]) + 2) == naked


def test_the_file_may_go_once_it_is_open(compiler: Compiler, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(compiler.file(EVERYTHING).read_bytes())
    build = Build.open(copy)
    os.truncate(copy, 0)
    assert build.references.position.size > 10


def row_of(build: Build, name: str) -> int:
    rows = [row for row, aliases in enumerate(build.entities.aliases) if name in aliases]
    assert len(rows) == 1, name
    return rows[0]
