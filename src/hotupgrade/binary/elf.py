"""A checked view of an ELF file: headers, segments, sections, the dynamic table.

Every offset and every size is checked against the file before it is used, so that whatever the file says, the outcome
is data or :class:`Refused`.  Tables come out as NumPy structured arrays, never as one object a row.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from hotupgrade.binary.model import U8, U64, Section, Segment
from hotupgrade.errors import Reason, Refused

PAGE = 4096
MAX_SPAN = 1 << 31  # references are 32-bit displacements: nothing larger can be relinked
MAX_TLS = 1 << 28
MAX_SECTIONS = 4096  # what linkers make has dozens; each one is looked at often
MAX_NOTES = 1 << 16  # bytes of notes that are searched for a build-id

FILE_HEADER = np.dtype(
    [
        ("ident", "V16"),
        ("type", "<u2"),
        ("machine", "<u2"),
        ("version", "<u4"),
        ("entry", "<u8"),
        ("phoff", "<u8"),
        ("shoff", "<u8"),
        ("flags", "<u4"),
        ("ehsize", "<u2"),
        ("phentsize", "<u2"),
        ("phnum", "<u2"),
        ("shentsize", "<u2"),
        ("shnum", "<u2"),
        ("shstrndx", "<u2"),
    ]
)
PROGRAM_HEADER = np.dtype(
    [
        ("type", "<u4"),
        ("flags", "<u4"),
        ("offset", "<u8"),
        ("vaddr", "<u8"),
        ("paddr", "<u8"),
        ("filesz", "<u8"),
        ("memsz", "<u8"),
        ("align", "<u8"),
    ]
)
SECTION_HEADER = np.dtype(
    [
        ("name", "<u4"),
        ("type", "<u4"),
        ("flags", "<u8"),
        ("addr", "<u8"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("link", "<u4"),
        ("info", "<u4"),
        ("addralign", "<u8"),
        ("entsize", "<u8"),
    ]
)
SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("shndx", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
RELA = np.dtype([("vaddr", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
DYNAMIC_ENTRY = np.dtype([("tag", "<u8"), ("value", "<u8")])

Table = npt.NDArray[Any]


class FileType(enum.IntEnum):
    REL = 1
    EXEC = 2
    DYN = 3
    CORE = 4


class ProgramType(enum.IntEnum):
    LOAD = 1
    DYNAMIC = 2
    INTERP = 3
    NOTE = 4
    TLS = 7
    GNU_RELRO = 0x6474E552


class SectionType(enum.IntEnum):
    SYMTAB = 2
    STRTAB = 3
    RELA = 4
    NOTE = 7
    NOBITS = 8
    DYNSYM = 11
    INIT_ARRAY = 14
    FINI_ARRAY = 15
    PREINIT_ARRAY = 16


# Section flags are plain numbers: NumPy takes those as the type of the array they are combined with.
SHF_WRITE = 1
SHF_ALLOC = 2
SHF_EXECINSTR = 4
SHF_TLS = 0x400


class Dt(enum.IntEnum):
    NULL = 0
    NEEDED = 1
    PLTRELSZ = 2
    STRTAB = 5
    SYMTAB = 6
    RELA = 7
    RELASZ = 8
    RELAENT = 9
    STRSZ = 10
    INIT = 12
    FINI = 13
    SONAME = 14
    SYMBOLIC = 16
    REL = 17
    PLTREL = 20
    TEXTREL = 22
    JMPREL = 23
    BIND_NOW = 24
    INIT_ARRAY = 25
    FINI_ARRAY = 26
    INIT_ARRAYSZ = 27
    FINI_ARRAYSZ = 28
    FLAGS = 30
    RELRSZ = 35
    RELR = 36
    VERSYM = 0x6FFFFFF0
    FLAGS_1 = 0x6FFFFFFB
    VERDEF = 0x6FFFFFFC
    VERDEFNUM = 0x6FFFFFFD
    VERNEED = 0x6FFFFFFE
    VERNEEDNUM = 0x6FFFFFFF


DF_SYMBOLIC = 2
DF_TEXTREL = 4
DF_BIND_NOW = 8
DF_1_NOW = 1
DF_1_PIE = 0x08000000

MACHINE_X86_64 = 62
NT_GNU_BUILD_ID = 3


@dataclass(frozen=True, slots=True)
class SectionTable:
    """Section headers by number, for symbols that name theirs by number."""

    headers: Table
    names: tuple[str, ...]


class ElfTables:
    """Headers and sections of an ELF file for x86-64 of any kind, checked."""

    def __init__(self, data: bytes, label: str) -> None:
        self.data = data
        self.label = label
        self._header = self._file_header()
        self._require_kind(int(self._header["type"]))
        self.programs = self._program_headers(self._header)
        self.section_table = self._section_headers(self._header)
        self.sections = self._named_sections()

    def _require_kind(self, kind: int) -> None:
        """For who wants only some of the kinds of :class:`FileType`.  Raises Refused."""

    # Refusals

    def refuse(self, code: str, text: str) -> NoReturn:
        raise Refused(Reason(code, self.label, f"{self.label}: {text}"))

    def corrupt(self, what: str) -> NoReturn:
        self.refuse("corrupt", f"{what}; the file is damaged, take a good copy of it")

    def truncated(self, what: str) -> NoReturn:
        self.refuse("truncated", f"{what} lies beyond the end of the file; the file is cut off, take a complete copy")

    # Bounded access

    def table(self, dtype: npt.DTypeLike, offset: int, count: int, what: str) -> Table:
        """``count`` rows at a file offset, without a copy."""
        row = np.dtype(dtype)
        if offset + count * row.itemsize > len(self.data):
            self.truncated(what)
        return np.frombuffer(self.data, row, count, offset)

    # Headers

    def _file_header(self) -> Table:
        data = self.data
        if len(data) < 4 or data[:4] != b"\x7fELF":
            self.refuse("not-elf", "this is not an ELF file; give a shared library or an executable")
        if len(data) < FILE_HEADER.itemsize:
            self.truncated("the file header")
        if data[4] != 2 or data[5] != 1:
            self.refuse("wrong-architecture", "this is not a 64-bit little-endian ELF file; only x86-64 is supported")
        header: Table = np.frombuffer(data, FILE_HEADER, 1)[0]
        if header["machine"] != MACHINE_X86_64:
            self.refuse(
                "wrong-architecture",
                f"this is code for ELF machine {int(header['machine'])}; only x86-64 (62) is supported",
            )
        return header

    def _program_headers(self, header: Table) -> Table:
        if header["phnum"] == 0:
            return np.zeros(0, PROGRAM_HEADER)
        if header["phentsize"] != PROGRAM_HEADER.itemsize:
            self.corrupt("program headers have an impossible size")
        return self.table(PROGRAM_HEADER, int(header["phoff"]), int(header["phnum"]), "the program header table")

    def _section_headers(self, header: Table) -> SectionTable:
        offset, count = int(header["shoff"]), int(header["shnum"])
        if offset == 0 or count == 0:
            return SectionTable(np.zeros(0, SECTION_HEADER), ())
        if header["shentsize"] != SECTION_HEADER.itemsize:
            self.corrupt("section headers have an impossible size")
        if count > MAX_SECTIONS:
            self.corrupt("there are too many sections")
        headers = self.table(SECTION_HEADER, offset, count, "the section header table")
        bits = headers[headers["type"] != SectionType.NOBITS]
        sizes, offsets = bits["size"], bits["offset"]
        if (sizes > len(self.data)).any() or (offsets > len(self.data)).any():
            self.truncated("a section")
        if (offsets + sizes > len(self.data)).any():
            self.truncated("a section")
        index = int(header["shstrndx"])
        if index >= count or headers[index]["type"] != SectionType.STRTAB:
            self.corrupt("the section names cannot be found")
        names = self.strings(self.section_bytes(headers[index]), headers["name"], "a section name")
        return SectionTable(headers, names)

    def section_bytes(self, header: Table) -> bytes:
        """Contents of a section whose bounds were checked when the headers were read."""
        if header["type"] == SectionType.NOBITS:
            return b""
        offset = int(header["offset"])
        return self.data[offset : offset + int(header["size"])]

    def _named_sections(self) -> Mapping[str, Section]:
        found: dict[str, Section] = {}
        for header, name in zip(self.section_table.headers.tolist(), self.section_table.names, strict=True):
            _, kind, flags, vaddr, offset, size, _, _, _, entry_size = header
            found.setdefault(name, Section(name, vaddr, size, offset, kind, flags, entry_size))
        return MappingProxyType(found)

    # Strings and notes

    def strings(self, blob: bytes, offsets: npt.NDArray[Any], what: str) -> tuple[str, ...]:
        """NUL-terminated strings at offsets of a string table."""
        if not len(offsets):
            return ()
        ends = np.flatnonzero(np.frombuffer(blob, np.uint8) == 0)
        at = np.searchsorted(ends, offsets)
        if not len(ends) or int(at.max()) >= len(ends):
            self.corrupt(f"{what} lies outside its string table")
        stops = ends[at]
        # Offsets may all point into one long string: bound what is copied by what an honest table could hold.
        if int((stops - offsets.astype(np.int64)).sum()) > 16 * len(blob) + 64 * len(offsets) + 65536:
            self.corrupt("a string table is overlapped beyond reason")
        pairs = zip(offsets.tolist(), stops.tolist(), strict=True)
        return tuple([blob[start:stop].decode("utf-8", "backslashreplace") for start, stop in pairs])

    def build_id(self) -> str | None:
        room = MAX_NOTES
        for row in self.programs[self.programs["type"] == ProgramType.NOTE]:
            start, size = int(row["offset"]), int(row["filesz"])
            if start + size > len(self.data):
                self.truncated("a note")
            found = find_build_id(self.data[start : start + min(size, room)], 8 if row["align"] == 8 else 4)
            if found is not None:
                return found
            room -= min(size, room)
        return None


class ElfFile(ElfTables):
    """The parts of an x86-64 shared library or position-independent executable, checked."""

    def __init__(self, data: bytes, label: str) -> None:
        super().__init__(data, label)
        self.entry = int(self._header["entry"])
        self.segments = self._load_segments()
        self.span = -(-(self.segments[-1].vaddr + self.segments[-1].memory_size) // PAGE) * PAGE
        self._check_section_places()
        self.image = self._link_image()
        self.tls = self._tls_segment()
        self.relro = self._relro_range()
        self.dynamic = self._dynamic_table()
        self.has_interpreter = bool((self.programs["type"] == ProgramType.INTERP).any())
        self._refuse_static()

    # Bounded access

    def link_table(self, dtype: npt.DTypeLike, vaddr: int, size: int, what: str) -> Table:
        """The rows that fill ``size`` bytes at a vaddr, all of them stored in the file: .bss holds no table."""
        row = np.dtype(dtype)
        if size % row.itemsize:
            self.corrupt(f"the size of {what} is not a multiple of its row")
        if size and not self.stored_from(vaddr) >= size:
            self.corrupt(f"{what} lies outside the segments")
        return self.image[vaddr : vaddr + size].view(row)

    def stored_from(self, vaddr: int) -> int:
        """How many bytes from a vaddr on, within its segment, come from the file; 0 for none."""
        for segment in self.segments:
            if segment.vaddr <= vaddr < segment.vaddr + segment.file_size:
                return segment.vaddr + segment.file_size - vaddr
        return 0

    # What kind of file this is

    def _require_kind(self, kind: int) -> None:
        if kind == FileType.EXEC:
            if not self._mentions_dynamic():
                self._refuse_as_static()
            self.refuse(
                "fixed-address",
                "this executable is linked to a fixed address; build it as a position-independent executable (-pie)",
            )
        if kind != FileType.DYN:
            names = {FileType.REL: "an object file", FileType.CORE: "a core dump"}
            what = names.get(kind, f"of ELF type {kind}")  # type: ignore[call-overload]
            self.refuse("not-a-module", f"this is {what}; give a shared library or an executable")
        if self._header["phnum"] == 0:
            self.corrupt("there are no program headers")

    def _mentions_dynamic(self) -> bool:
        return bool((self._program_headers(self._header)["type"] == ProgramType.DYNAMIC).any())

    def _refuse_as_static(self) -> NoReturn:
        self.refuse("static-executable", "this executable is linked statically; only dynamic ones can be upgraded")

    def _refuse_static(self) -> None:
        pie = self.tag(Dt.FLAGS_1, 0) & DF_1_PIE
        if not self.has_interpreter and pie and Dt.NEEDED not in self.dynamic:
            self._refuse_as_static()

    # Segments

    def _segment(self, row: Table, what: str) -> Segment:
        vaddr, memory, stored, offset = (int(row[name]) for name in ("vaddr", "memsz", "filesz", "offset"))
        if offset + stored > len(self.data):
            self.truncated(what)
        if stored > memory:
            self.corrupt(f"{what} is larger in the file than in memory")
        if vaddr + memory > MAX_SPAN:
            self.refuse("too-large", f"{what} reaches beyond 2 GiB; such an image cannot be relinked")
        flags = int(row["flags"])
        return Segment(
            vaddr=vaddr,
            memory_size=memory,
            file_size=stored,
            file_offset=offset,
            readable=bool(flags & 4),
            writable=bool(flags & 2),
            executable=bool(flags & 1),
            alignment=int(row["align"]),
        )

    def _load_segments(self) -> tuple[Segment, ...]:
        rows = self.programs[self.programs["type"] == ProgramType.LOAD]
        segments = tuple(self._segment(row, "a segment") for row in rows)
        if not segments:
            self.corrupt("there is no loadable segment")
        for before, after in pairwise(segments):
            if before.vaddr + before.memory_size > after.vaddr:
                self.corrupt("segments overlap or are out of order")
        if any((s.file_offset - s.vaddr) % PAGE for s in segments if s.file_size):
            self.corrupt("a segment is not aligned to pages")
        if segments[-1].vaddr + segments[-1].memory_size == 0:
            self.corrupt("the segments are empty")
        if sum(s.file_size for s in segments) > 2 * len(self.data):  # what is read stays in proportion to the file
            self.corrupt("segments share the same bytes of the file")
        return segments

    def _check_section_places(self) -> None:
        for section in self.sections.values():
            # .tbss has an address but takes no room there.
            has_room = section.flags & SHF_ALLOC and not (
                section.flags & SHF_TLS and section.type == SectionType.NOBITS
            )
            if has_room and section.vaddr + section.size > self.span:
                self.corrupt(f"section {section.name} lies outside the segments")

    def _link_image(self) -> U8:
        """The module as it would lie in memory before relocation; pages that stay zero cost nothing."""
        image = np.zeros(self.span, np.uint8)
        stored = np.frombuffer(self.data, np.uint8)
        for s in self.segments:
            image[s.vaddr : s.vaddr + s.file_size] = stored[s.file_offset : s.file_offset + s.file_size]
        image.flags.writeable = False
        return image

    def _tls_segment(self) -> Segment | None:
        rows = self.programs[self.programs["type"] == ProgramType.TLS]
        if not len(rows):
            return None
        segment = self._segment(rows[0], "the thread-local segment")
        if segment.memory_size > MAX_TLS:
            self.refuse("too-large", f"its thread-locals take {segment.memory_size} bytes in every thread")
        return segment

    def _relro_range(self) -> tuple[int, int] | None:
        """What the loader protects: whole pages only at the high end."""
        rows = self.programs[self.programs["type"] == ProgramType.GNU_RELRO]
        if not len(rows):
            return None
        low = int(rows[0]["vaddr"])
        high = (low + int(rows[0]["memsz"])) // PAGE * PAGE
        if high > self.span:
            self.corrupt("the RELRO range lies outside the segments")
        return (low, high) if low < high else None

    def _dynamic_table(self) -> Mapping[int, tuple[int, ...]]:
        rows = self.programs[self.programs["type"] == ProgramType.DYNAMIC]
        if not len(rows):
            self._refuse_as_static()
        size = int(rows[0]["filesz"]) // DYNAMIC_ENTRY.itemsize * DYNAMIC_ENTRY.itemsize
        entries = self.link_table(DYNAMIC_ENTRY, int(rows[0]["vaddr"]), size, "the dynamic table")
        found: dict[int, list[int]] = {}
        for tag, value in entries.tolist():
            if tag == Dt.NULL:
                break
            found.setdefault(tag, []).append(value)
        return MappingProxyType({tag: tuple(values) for tag, values in found.items()})

    def tag(self, tag: Dt, default: int) -> int:
        values = self.dynamic.get(tag)
        return values[0] if values else default


def find_build_id(notes: bytes, alignment: int) -> str | None:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = np.frombuffer(notes, "<u4", 3, at).tolist()
        name_at = at + 12
        content_at = -(-(name_at + name_size) // alignment) * alignment
        end = content_at + size
        if end > len(notes):
            return None
        if kind == NT_GNU_BUILD_ID and notes[name_at : name_at + 4] == b"GNU\0" and size:
            return notes[content_at:end].hex()
        at = -(-end // alignment) * alignment
    return None


def words(image: U8, vaddr: int, count: int) -> U64:
    """Little-endian words at an address that need not be aligned."""
    return np.frombuffer(image[vaddr : vaddr + 8 * count].tobytes(), "<u8")
