"""Small files that ask for much memory or time.  Written from scratch: they can say what no linker would."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

PAGE = 4096
GIB = 1 << 30
RX, RW = 5, 6
ALLOC, WRITE, CODE = 2, 1, 4
PROGBITS, SYMTAB, STRTAB, RELA, NOTE, NOBITS, DYNSYM = 1, 2, 3, 4, 7, 8, 11
FUNC, OBJECT, GLOBAL = 2, 1, 0x10


@dataclass
class Part:
    """A section; with a vaddr it is allocated, at that place."""

    name: str
    content: bytes = b""
    vaddr: int = 0
    type: int = PROGBITS
    flags: int = 0
    size: int | None = None  # if another than that of the content
    link: int = 0
    entry: int = 0
    info: int = 0


@dataclass
class Bomb:
    """One file.  Its first page is text with a function in it; sections follow as they are added."""

    parts: list[Part] = field(default_factory=list)
    segments: list[tuple[int, ...]] = field(
        default_factory=list
    )  # more of them: type, flags, offset, vaddr, filesz, memsz
    dynamic: list[tuple[int, int]] = field(default_factory=list)
    symbols: list[tuple[str, int, int, int, int]] = field(default_factory=list)  # name, info, section, value, size
    bss: int = PAGE

    def bytes(self) -> bytes:
        names, text = bytearray(b"\0"), b"\xc3" * 64
        strings = bytearray(b"\0")
        rows = bytearray(24)
        for name, info, section, value, size in [("f", FUNC | GLOBAL, 1, 2 * PAGE, 16), *self.symbols]:
            rows += struct.pack("<IBBHQQ", len(strings), info, 0, section, value, size)
            strings += name.encode() + b"\0"
        parts = [
            Part(".text", text, 2 * PAGE, flags=ALLOC | CODE),
            Part(".symtab", bytes(rows), type=SYMTAB, link=3, entry=24),
            Part(".strtab", bytes(strings), type=STRTAB),
            Part(".shstrtab", type=STRTAB),
            *self.parts,
        ]
        dynamic = b"".join(struct.pack("<QQ", *entry) for entry in [*self.dynamic, (0, 0)])
        # Everything with a vaddr lies at that offset too; the rest behind it.
        placed = [p for p in parts if p.vaddr and p.type != NOBITS]
        end = max([p.vaddr + len(p.content) for p in placed] + [3 * PAGE + len(dynamic)])
        body = bytearray(end)
        for part in placed:
            body[part.vaddr : part.vaddr + len(part.content)] = part.content
        body[3 * PAGE : 3 * PAGE + len(dynamic)] = dynamic
        programs = [
            (1, 7, 0, 0, end, end + self.bss),
            (2, RW, 3 * PAGE, 3 * PAGE, len(dynamic), len(dynamic)),
            *self.segments,
        ]
        headers = [bytes(64)]
        for part in parts:
            offset, content = part.vaddr, part.content
            if part.name == ".shstrtab":
                for each in parts:
                    names += each.name.encode() + b"\0"
                content = bytes(names)
            if not part.vaddr:
                offset = len(body)
                body += content
            size = len(content) if part.size is None else part.size
            name = bytes(names).find(b"\0" + part.name.encode() + b"\0") + 1 if len(names) > 1 else 0
            fields = (name, part.type, part.flags, part.vaddr, offset, size, part.link, part.info, 8, part.entry)
            headers.append(struct.pack("<IIQQQQIIQQ", *fields))
        # The first ones were written before the names were known.
        for index, part in enumerate(parts, 1):
            name = bytes(names).find(b"\0" + part.name.encode() + b"\0") + 1
            headers[index] = struct.pack("<I", name) + headers[index][4:]
        table = b"".join(struct.pack("<IIQQQQQQ", t, f, o, v, v, s, m, PAGE) for t, f, o, v, s, m in programs)
        programs_at = len(body)
        body += table
        sections_at = len(body)
        body += b"".join(headers)
        header = struct.pack(
            "<4s5B7xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 0, 3, 62, 1, 0, programs_at, sections_at, 0, 64, 56,
            len(programs), 64, len(headers), 4,
        )  # fmt: skip
        body[: len(header)] = header
        return bytes(body)


AT = 16 * PAGE


def plain() -> bytes:
    return Bomb().bytes()


def bss_of_two_gib() -> bytes:
    """A variable that fills it."""
    bss = Part(".bss", vaddr=AT, type=NOBITS, flags=ALLOC | WRITE, size=2 * GIB - 64 * PAGE)
    return Bomb([bss], bss=2 * GIB - 32 * PAGE, symbols=[("all", OBJECT | GLOBAL, 5, AT, 2 * GIB - 64 * PAGE)]).bytes()


def tables_in_bss() -> bytes:
    """Relocations, strings and constructors where the file has nothing."""
    size = (GIB // 24) * 24
    tags = [(7, AT), (8, size), (5, AT), (10, size), (25, AT), (27, size // 8 * 8), (36, AT), (35, size // 8 * 8)]
    return Bomb(bss=2 * GIB - 32 * PAGE, dynamic=tags).bytes()


def strings_in_bss() -> bytes:
    return Bomb(bss=2 * GIB - 32 * PAGE, dynamic=[(1, 0), (5, AT), (10, GIB)]).bytes()


def code_in_bss() -> bytes:
    """A function of a gigabyte of zeros."""
    text = Part(".more", vaddr=AT, type=NOBITS, flags=ALLOC | CODE, size=GIB)
    return Bomb([text], bss=2 * GIB - 32 * PAGE, symbols=[("g", FUNC | GLOBAL, 5, AT, GIB)]).bytes()


def code_without_a_size() -> bytes:
    text = Part(".more", vaddr=AT, type=NOBITS, flags=ALLOC | CODE, size=GIB)
    return Bomb([text], bss=2 * GIB - 32 * PAGE, symbols=[("g", FUNC | GLOBAL, 5, AT, 0)]).bytes()


def packed_relocations() -> bytes:
    """Eight bytes for each 63 relocations."""
    table = struct.pack("<Q", AT) + b"\xff" * (1 << 20)
    return Bomb([Part(".relr", table, AT, flags=ALLOC)], bss=GIB, dynamic=[(36, AT), (35, len(table))]).bytes()


def overlapping_symbols() -> bytes:
    """Each of them all of the constants."""
    data = Part(".rodata", bytes(1 << 20), AT, flags=ALLOC)
    symbols = [(f"c{i}", OBJECT, 5, AT + i, (1 << 20) - i) for i in range(20000)]
    return Bomb([data], symbols=symbols).bytes()


def overlapping_functions() -> bytes:
    data = Part(".more", b"\x90" * (1 << 20), AT, flags=ALLOC | CODE)
    symbols = [(f"g{i}", FUNC, 5, AT + i, (1 << 20) - i) for i in range(20000)]
    return Bomb([data], symbols=symbols).bytes()


def shared_strings() -> bytes:
    """Every name the end of one long string."""
    bomb = Bomb([Part(".rodata", bytes(64), AT, flags=ALLOC)], symbols=[("x" * (1 << 18), OBJECT, 5, AT, 1)])
    data = bytearray(bomb.bytes())
    rows = b"".join(struct.pack("<IBBHQQ", 3 + i, OBJECT, 0, 5, AT, 1) for i in range(1 << 16))
    at = len(data)
    data += rows
    sections = struct.unpack_from("<Q", data, 40)[0]
    struct.pack_into("<QQ", data, sections + 64 * 2 + 24, at, len(rows))
    return bytes(data)


def sections_over_each_other() -> bytes:
    """Link-time records, many times the same ones."""
    bomb = Bomb([Part(".rela.text", bytes(24) * 40000, type=RELA, info=1, entry=24)])
    data = bytearray(bomb.bytes())
    sections, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    header = data[sections + 64 * (count - 1) : sections + 64 * count]
    table = data[sections:] + header * 4000
    struct.pack_into("<Q", data, 40, len(data))
    struct.pack_into("<H", data, 60, count + 4000)
    return bytes(data + table)


def notes_without_end() -> bytes:
    """Thousands of segments over the same megabyte of small notes."""
    notes = Part(".note", struct.pack("<III", 4, 0, 1) + b"GNU\0", AT, type=NOTE, flags=ALLOC)
    notes.content *= 1 << 16
    return Bomb([notes], segments=[(4, 4, AT, AT, len(notes.content), len(notes.content))] * 60000).bytes()


def segments_over_each_other() -> bytes:
    """The same bytes of the file, all over two gigabytes."""
    size = 1 << 20
    filler = Part(".data", b"\1" * size, AT, flags=ALLOC | WRITE)
    first = AT + size + 16 * PAGE
    loads = [(1, RW, AT, first + i * size, size, size) for i in range(2000)]
    return Bomb([filler], segments=loads).bytes()


def versions_in_a_circle() -> bytes:
    """Records that lead to themselves, each of many."""
    record = struct.pack("<HHIII", 1, 0xFFFF, 1, 0, 0) + b"".join(
        struct.pack("<IHHII", 0, 0, 2, 1, 0) for _ in range(4)
    )
    tags = [(0x6FFFFFFE, AT), (0x6FFFFFFF, 1 << 40), (0x6FFFFFFC, AT), (0x6FFFFFFD, 1 << 40), (0x6FFFFFF0, AT)]
    dynsym = Part(".dynsym", bytes(24), AT + PAGE, type=DYNSYM, flags=ALLOC, entry=24)
    tags += [(6, AT + PAGE), (5, AT + 2 * PAGE), (10, 1 << 20)]
    strings = Part(".dynstr", b"\0" * (1 << 20), AT + 2 * PAGE, type=STRTAB, flags=ALLOC)
    return Bomb([Part(".gnu.version_r", record, AT, flags=ALLOC), dynsym, strings], dynamic=tags).bytes()


def augmentations() -> bytes:
    """Entries of an unwind table whose text never ends."""
    entry = struct.pack("<IIB", 8, 0, 1) + b"zzz"
    frames = Part(".eh_frame", entry * (1 << 16), AT, flags=ALLOC)
    return Bomb([frames, Part(".gcc_except_table", b"\xff" * 64, AT + (1 << 20), flags=ALLOC)]).bytes()


def _frames(at: int, count: int, common: bytes, data_at: Callable[[int], int]) -> bytes:
    """An unwind table: one common entry, and so many functions with language-specific data."""
    found = bytearray(common)
    for index in range(count):
        place = at + len(found)
        found += struct.pack("<IIiIBi", 17, len(found) + 4, 2 * PAGE - place - 8, 1, 4, data_at(index) - place - 17)
    return bytes(found)


COMMON = struct.pack("<II", 20, 0) + b"\1zLR\0\1\x78\x10\2\x1b\x1b" + bytes(5)


def exception_tables_over_each_other() -> bytes:
    """Each function's table the rest of the section."""
    size = 1 << 19
    table_at = AT + (1 << 21)
    # A table of types with one call site after the other, all the way.
    table = b"\xff\xff\x01" + b"\xff\xff\x1f" + b"\0\0\0\1" * (size // 4)
    frames = _frames(AT, 20000, COMMON, lambda index: table_at + 6 + 4 * index)
    return Bomb(
        [Part(".eh_frame", frames, AT, flags=ALLOC), Part(".gcc_except_table", table, table_at, flags=ALLOC)]
    ).bytes()


def actions_in_a_circle() -> bytes:
    """What to do about an exception: do this, and then the same again."""
    table_at = AT + PAGE
    table = b"\xff\x9b\x10\x01\x04" + b"\0\1\2\1" + b"\1\x7f" + bytes(64)
    frames = _frames(AT, 1, COMMON, lambda _: table_at) + bytes(4)
    return Bomb(
        [Part(".eh_frame", frames, AT, flags=ALLOC), Part(".gcc_except_table", table, table_at, flags=ALLOC)]
    ).bytes()


def switch_tables(segments: Sequence[tuple[int, ...]] = ()) -> bytes:
    """Thousands of functions that all use one long table, each with entries into all of them."""
    count, table_at = 3000, AT + (1 << 20)
    code = bytearray()
    symbols = []
    for index in range(count):
        at = AT + len(code)
        code += b"\x48\x8d\x05" + struct.pack("<i", table_at - at - 7) + b"\xc3"
        symbols.append((f"f.cold{index}", FUNC, 5, at, 8))
    table = struct.pack("<i", AT - table_at) * (1 << 18)
    parts = [Part(".more", bytes(code), AT, flags=ALLOC | CODE), Part(".rodata", table, table_at, flags=ALLOC)]
    return Bomb(parts, list(segments), symbols=symbols).bytes()


def switch_tables_beside_thread_locals() -> bytes:
    """The same, where it matters to which labels each function may jump."""
    return switch_tables([(7, 4, 0, 0, 0, 64)])


def texts_without_end() -> bytes:
    """Thousands of references into a megabyte without a NUL."""
    count, text_at = 8000, AT + (1 << 20)
    code = bytearray()
    for index in range(count):
        at = AT + len(code)
        code += b"\x48\x8d\x05" + struct.pack("<i", text_at + 97 * index - at - 7)
    code += b"\xc3"
    parts = [
        Part(".more", bytes(code), AT, flags=ALLOC | CODE),
        Part(".rodata", b"\x01" * (1 << 20), text_at, flags=ALLOC),
    ]
    return Bomb(parts, symbols=[("g", FUNC | GLOBAL, 5, AT, len(code))]).bytes()


def thread_locals() -> bytes:
    return Bomb(segments=[(7, 4, 0, 0, 0, GIB)], symbols=[("t", 6 | GLOBAL, 1, 0, GIB)]).bytes()


BOMBS: dict[str, Callable[[], bytes]] = {
    made.__name__: made
    for made in (
        plain, bss_of_two_gib, tables_in_bss, strings_in_bss, code_in_bss, code_without_a_size, packed_relocations,
        overlapping_symbols, overlapping_functions, shared_strings, sections_over_each_other, notes_without_end,
        segments_over_each_other, versions_in_a_circle, augmentations, exception_tables_over_each_other,
        actions_in_a_circle, switch_tables, switch_tables_beside_thread_locals,
        texts_without_end, thread_locals,
    )
}  # fmt: skip
