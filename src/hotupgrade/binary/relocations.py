"""What the dynamic linker patches (.rela.dyn, .rela.plt, .relr.dyn), the GOT and the PLT."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from hotupgrade.binary.elf import RELA, SHF_ALLOC, SHF_EXECINSTR, SYMBOL, Dt, ElfFile, SectionType, Table
from hotupgrade.binary.model import DynamicRelocations, DynamicSymbol, Slot


class Relocation(enum.IntEnum):
    """R_X86_64_*"""

    NONE = 0
    ABS64 = 1
    PC32 = 2
    PLT32 = 4
    COPY = 5
    GLOB_DAT = 6
    JUMP_SLOT = 7
    RELATIVE = 8
    GOTPCREL = 9
    DTPMOD64 = 16
    DTPOFF64 = 17
    TPOFF64 = 18
    TLSGD = 19
    DTPOFF32 = 21
    GOTTPOFF = 22
    TPOFF32 = 23
    GOTPC32_TLSDESC = 34
    TLSDESC = 36
    IRELATIVE = 37


WITHOUT_SYMBOL = (
    Relocation.DTPMOD64,
    Relocation.DTPOFF64,
    Relocation.IRELATIVE,
    Relocation.RELATIVE,
    Relocation.TLSDESC,
    Relocation.TPOFF64,
)
# What the code may have been left for the linker with, where it needs the offset of a thread-local.
THREAD_LOCAL_RECORDS = (
    Relocation.TLSGD,
    Relocation.DTPOFF32,
    Relocation.GOTTPOFF,
    Relocation.TPOFF32,
    Relocation.GOTPC32_TLSDESC,
)
CODE_RECORD = np.dtype([("vaddr", "<u8"), ("type", "<u4"), ("symbol", "<i8"), ("addend", "<i8"), ("defined", "?")])
STT_TLS = 6
GOT_SECTIONS = (".got", ".got.plt")
PLT_SECTIONS = (".plt", ".plt.got", ".plt.sec", ".plt.bnd", ".iplt")
PLT_STUB = 16


def read_dynamic_relocations(elf: ElfFile, symbol_count: int) -> DynamicRelocations:
    """All of them, sorted by address."""
    if Dt.REL in elf.dynamic or elf.tag(Dt.PLTREL, Dt.RELA) != Dt.RELA:
        elf.corrupt("relocations without addends do not belong into an x86-64 file")
    if elf.tag(Dt.RELAENT, RELA.itemsize) != RELA.itemsize:
        elf.corrupt("relocations have an impossible size")
    main = elf.link_table(RELA, elf.tag(Dt.RELA, 0), elf.tag(Dt.RELASZ, 0), "the relocation table")
    plt = elf.link_table(RELA, elf.tag(Dt.JMPREL, 0), elf.tag(Dt.PLTRELSZ, 0), "the PLT relocation table")
    relative = _packed_relative(elf)
    rows = np.concatenate([main, plt, relative])
    rows = rows[rows["type"] != Relocation.NONE]
    if (rows["vaddr"] > elf.span - 8).any():
        elf.corrupt("a relocation lies outside the segments")
    # Symbol 0 is none; the loader's own relocations go without, the others need a table that has at least that.
    if (rows["symbol"][~np.isin(rows["type"], WITHOUT_SYMBOL)] >= symbol_count).any() or (
        rows["symbol"] >= max(symbol_count, 1)
    ).any():
        elf.corrupt("a relocation names a symbol that does not exist")
    rows = rows[np.argsort(rows["vaddr"], kind="stable")]
    return DynamicRelocations(
        vaddr=rows["vaddr"].copy(), type=rows["type"].copy(), symbol=rows["symbol"].copy(), addend=rows["addend"].copy()
    )


def _packed_relative(elf: ElfFile) -> Table:
    """DT_RELR: an address, then bitmaps of the 63 words that follow."""
    entries = elf.link_table("<u8", elf.tag(Dt.RELR, 0), elf.tag(Dt.RELRSZ, 0), "the packed relocation table")
    places: list[int] = []
    at = -1
    for entry in entries.tolist():
        if entry & 1 == 0:
            if entry < at or entry % 8 or entry > elf.span - 8:
                elf.corrupt("packed relocations are out of order")
            places.append(entry)
            at = entry + 8
            continue
        if at < 0 or at > elf.span:
            elf.corrupt("packed relocations leave the segments")
        if 4 * len(places) > len(elf.data):
            elf.corrupt("there are more packed relocations than words")
        places.extend(at + 8 * bit for bit in range(63) if entry >> (bit + 1) & 1)
        at += 63 * 8
    rows = np.zeros(len(places), RELA)
    if places and max(places) > elf.span - 8:
        elf.corrupt("packed relocations leave the segments")
    rows["vaddr"] = places
    rows["type"] = Relocation.RELATIVE
    rows["addend"] = elf.image[: elf.span // 8 * 8].view("<i8")[rows["vaddr"] // 8]
    return rows


def read_code_records(elf: ElfFile) -> Table | None:
    """Link-time records (--emit-relocs) about thread-locals in executable sections; None when the file has none at all.

    The linker keeps the type that the assembler wrote, whatever it made of the instruction since.
    """
    headers = elf.section_table.headers
    chosen = [np.zeros(0, CODE_RECORD)]
    present, read = False, 0
    for header in headers[headers["type"] == SectionType.RELA]:
        subject = int(header["info"])
        if header["flags"] & SHF_ALLOC or not 0 < subject < len(headers):
            continue
        if not headers[subject]["flags"] & SHF_EXECINSTR:
            continue
        present = True
        count, rest = divmod(int(header["size"]), RELA.itemsize)
        read += int(header["size"])
        if rest or read > len(elf.data):
            elf.corrupt("link-time relocation records have an impossible size")
        rows = elf.table(RELA, int(header["offset"]), count, "link-time relocation records")
        chosen.append(_code_records(elf, rows[np.isin(rows["type"], THREAD_LOCAL_RECORDS)], int(header["link"])))
    if not present:
        return None
    found = np.concatenate(chosen)
    if (found["vaddr"] > elf.span - 8).any():
        elf.corrupt("a link-time relocation record lies outside the segments")
    return found[np.argsort(found["vaddr"], kind="stable")]


def _code_records(elf: ElfFile, rows: Table, link: int) -> Table:
    headers = elf.section_table.headers
    records = np.zeros(len(rows), CODE_RECORD)
    if not len(rows):
        return records
    if not 0 < link < len(headers) or headers[link]["type"] != SectionType.SYMTAB:
        elf.corrupt("link-time relocation records have no symbol table")
    count = int(headers[link]["size"]) // SYMBOL.itemsize
    symbols = elf.table(SYMBOL, int(headers[link]["offset"]), count, "the symbol table")
    if (rows["symbol"] >= count).any():
        elf.corrupt("a link-time relocation record names a symbol that does not exist")
    named = symbols[rows["symbol"]]
    records["vaddr"], records["type"], records["addend"] = rows["vaddr"], rows["type"], rows["addend"]
    records["defined"] = (named["shndx"] != 0) & (named["info"] & 15 == STT_TLS)
    records["symbol"] = named["value"].astype(np.int64)
    return records


def array_of_functions(
    elf: ElfFile, relocations: DynamicRelocations, symbols: Sequence[DynamicSymbol], start: int, size: int
) -> tuple[int, ...]:
    """DT_INIT_ARRAY or DT_FINI_ARRAY: the addresses that will be there once the loader is done."""
    values = elf.link_table("<u8", start, size, "an array of constructors").tolist()
    low, high = np.searchsorted(relocations.vaddr, [start, start + size]).tolist()
    for i in range(low, high):
        place, rest = divmod(int(relocations.vaddr[i]) - start, 8)
        if rest:
            continue
        target = relocation_target(relocations, symbols, i)
        values[place] = 0 if target is None else target
    return tuple(value for value in values if value not in (0, (1 << 64) - 1))


def relocation_target(relocations: DynamicRelocations, symbols: Sequence[DynamicSymbol], index: int) -> int | None:
    """The vaddr within this module that a relocation makes its word point to; None when it lies elsewhere."""
    kind = int(relocations.type[index])
    addend = int(relocations.addend[index])
    if kind in (Relocation.RELATIVE, Relocation.IRELATIVE):
        return addend
    if kind in (Relocation.ABS64, Relocation.GLOB_DAT, Relocation.JUMP_SLOT):
        symbol = symbols[int(relocations.symbol[index])]
        return symbol.vaddr + (addend if kind == Relocation.ABS64 else 0) if symbol.defined else None
    return None


def read_slots(elf: ElfFile, relocations: DynamicRelocations, symbols: Sequence[DynamicSymbol]) -> tuple[Slot, ...]:
    """Every word of .got and .got.plt, and every word elsewhere that only a GOT slot can be (JUMP_SLOT)."""
    places: set[int] = set()
    for name in GOT_SECTIONS:
        section = elf.sections.get(name)
        if section is None or section.size == 0 or section.type == SectionType.NOBITS:
            continue
        if section.vaddr + section.size > elf.span:
            elf.corrupt("the GOT lies outside the segments")
        places.update(range(section.vaddr, section.vaddr + section.size - 7, 8))
    places.update(relocations.vaddr[relocations.type == Relocation.JUMP_SLOT].tolist())
    ordered = np.array(sorted(places), np.uint64)
    at = np.searchsorted(relocations.vaddr, ordered).tolist()
    vaddrs, types = relocations.vaddr.tolist(), relocations.type.tolist()
    numbers, addends = relocations.symbol.tolist(), relocations.addend.tolist()
    slots = []
    for vaddr, i in zip(ordered.tolist(), at, strict=True):
        if i == len(vaddrs) or vaddrs[i] != vaddr:
            slots.append(Slot(vaddr, 0, "", "", 0))
            continue
        symbol = symbols[numbers[i]] if numbers[i] else None
        name, version = (symbol.name, symbol.version) if symbol else ("", "")
        slots.append(Slot(vaddr, types[i], name, version, addends[i]))
    return tuple(slots)


def read_plt(elf: ElfFile, slots: Sequence[Slot]) -> Mapping[int, int]:
    """Stub address to the index of the slot that it jumps through."""
    known = {slot.vaddr: index for index, slot in enumerate(slots) if slot.relocation}
    stubs: dict[int, int] = {}
    for name in PLT_SECTIONS:
        section = elf.sections.get(name)
        if section is None or section.size == 0 or section.type == SectionType.NOBITS:
            continue
        if section.vaddr + section.size > elf.span:
            elf.corrupt("the PLT lies outside the segments")
        size = section.entry_size if section.entry_size in (8, 16) else PLT_STUB
        for start, slot in _stubs(elf, section.vaddr, section.size, size):
            if slot in known:
                stubs.setdefault(start, known[slot])
    return MappingProxyType(stubs)


def _stubs(elf: ElfFile, start: int, size: int, stub: int) -> list[tuple[int, int]]:
    """(stub, address of the word it jumps through) for each ``jmp *disp32(%rip)`` in a PLT section."""
    code = elf.image[start : start + size]
    jumps = np.flatnonzero((code[:-5] == 0xFF) & (code[1:-4] == 0x25)) if size > 5 else np.zeros(0, np.intp)
    blob = code.tobytes()
    found: list[tuple[int, int]] = []
    for at in jumps.tolist():
        displacement = int.from_bytes(blob[at + 2 : at + 6], "little", signed=True)
        found.append((start + at // stub * stub, start + at + 6 + displacement))
    return found
