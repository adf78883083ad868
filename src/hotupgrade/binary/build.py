"""One build of a module, read from its file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hotupgrade.binary import code
from hotupgrade.binary.bare.entities import read_structure
from hotupgrade.binary.code import CodeFacts, FactsStore, JumpTable
from hotupgrade.binary.debug.mentions import Spoken, read_mentions
from hotupgrade.binary.debug.model import Debug
from hotupgrade.binary.debug.read import read_debug
from hotupgrade.binary.debug.sections import Supplement, debug_sections
from hotupgrade.binary.elf import (
    DF_1_NOW,
    DF_1_PIE,
    DF_BIND_NOW,
    DF_SYMBOLIC,
    DF_TEXTREL,
    FILE_HEADER,
    SHF_ALLOC,
    SHF_TLS,
    Dt,
    ElfFile,
    SectionType,
)
from hotupgrade.binary.exceptions import ExceptionTable, exception_tables
from hotupgrade.binary.model import I32, U8, Flags, Kind, References, Section
from hotupgrade.binary.relocations import (
    array_of_functions,
    read_code_records,
    read_dynamic_relocations,
    read_plt,
    read_slots,
)
from hotupgrade.binary.separate.find import NOWHERE, Search, Separate, find_separate
from hotupgrade.binary.spans import SpanMap, span_map
from hotupgrade.binary.symbols import (
    RowTable,
    dynamic_strings,
    read_dynamic_symbols,
    read_symbols,
    refuse_stripped,
)
from hotupgrade.files import read_regular

__all__ = ["Build", "JumpTable"]


class DebugStore(Protocol):
    """Keeps what was read of debug information between runs."""

    def load(self, build: Build) -> Debug | None:
        """None: there is nothing of this build."""

    def save(self, build: Build, debug: Debug) -> None:
        """A failure is no failure: the next run reads it again."""


class Build:
    """A shared library or position-independent executable.  Everything is read at once but for what says "lazy".

    Two builds are equal only if they are the same object; compare ``build_id`` for more.
    """

    def __init__(
        self,
        data: bytes,
        label: str,
        path: Path | None = None,
        search: Search = NOWHERE,
        of: Build | None = None,
    ) -> None:
        """``of``: the same build, to be seen as if it had no symbols."""
        elf = ElfFile(data, label)
        self.elf = elf
        self.path = path
        self.label = label  # for messages: the path, or what the caller of from_bytes said
        self.data = data  # the whole file
        self.image: U8 = elf.image  # link space from vaddr 0, zeros where the file has nothing; read-only
        self.build_id = elf.build_id() or f"sha1-{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"
        self.entry = elf.entry
        self.segments = elf.segments  # PT_LOAD, ascending
        self.tls = elf.tls
        self.relro = elf.relro  # vaddr range [low, high) as the loader protects it, whole pages at the high end
        self.sections = elf.sections  # the first of a name wins
        self.span = elf.span  # bytes from vaddr 0 to the end of the last PT_LOAD, rounded up to a page
        flags, flags_1 = elf.tag(Dt.FLAGS, 0), elf.tag(Dt.FLAGS_1, 0)
        self.bind_now = bool(flags & DF_BIND_NOW or flags_1 & DF_1_NOW or Dt.BIND_NOW in elf.dynamic)
        self.symbolic = bool(flags & DF_SYMBOLIC or Dt.SYMBOLIC in elf.dynamic)
        self.text_relocations = bool(flags & DF_TEXTREL or Dt.TEXTREL in elf.dynamic)
        self.dynamic_symbols = read_dynamic_symbols(elf)  # index = symbol number of the relocations
        self.dynamic_relocations = read_dynamic_relocations(elf, len(self.dynamic_symbols))
        self.needed = self._dynamic_strings(Dt.NEEDED)
        self.soname = "".join(self._dynamic_strings(Dt.SONAME)[:1])
        # A library may have an interpreter too, to be run for what it then says (libc.so.6); it has a SONAME.
        pie = bool(elf.tag(Dt.FLAGS_1, 0) & DF_1_PIE)
        self.executable = pie or (elf.has_interpreter and not self.soname)
        self.init = self._optional(Dt.INIT)
        self.fini = self._optional(Dt.FINI)
        self.init_array = self._functions(Dt.INIT_ARRAY, Dt.INIT_ARRAYSZ)  # in the order in which they run
        self.fini_array = self._functions(Dt.FINI_ARRAY, Dt.FINI_ARRAYSZ)
        # Whatever of this lies elsewhere.
        self.separate: Separate = of.separate if of else find_separate(elf, self.dynamic_symbols, path, search)
        # Without symbols, or compared with a build that has none: rows are found by structure, and so are those of all
        # other builds of the module, for rows of either sort do not correspond.
        self.bare = of is not None or self.separate.symbols is None
        if self.separate.symbols is None and (self.separate.problems or not search.structure):
            refuse_stripped(elf, self.separate.absent, self.separate.problems)
        self.eh_frame = self._frame_information()
        table = self._rows()
        symbols = table.symbols
        self.entities = symbols.entities
        self.unbounded = table.unbounded  # objects of which only the address is known
        self.unframed = table.unframed  # functions whose bounds are guessed
        self.by_name = symbols.by_name  # global names -> row ("foo" for foo@@V, "foo@V" for another version)
        self.marks = symbols.marks  # vaddr -> names that the linker invented there (__TMC_END__, _edata, ...)
        self.extent: I32 = symbols.extent  # per row: its size; for a function without one, up to the next symbol
        self.slots = read_slots(elf, self.dynamic_relocations, self.dynamic_symbols)  # words of .got and .got.plt
        self.plt_slot = read_plt(elf, self.slots)  # vaddr of a PLT stub -> index into slots
        # Linked with --emit-relocs: thread-local offsets in the code need not be found by data flow then.
        self._tls_records = read_code_records(elf)
        self.has_relocation_records = self._tls_records is not None
        self.facts_store: FactsStore | None = None  # where an earlier run may have left the facts about the code
        self._facts: CodeFacts | None = None
        self._spoken: dict[frozenset[str], Spoken | None] = {}
        self.debug_store: DebugStore | None = None  # where an earlier run may have left what the debug information says

    @classmethod
    def open(cls, path: Path | str, search: Search = NOWHERE) -> Build:
        """Reads a file, whole, through one descriptor: what happens to the path afterwards does not matter.

        ``search``: where else its symbols and its debug information may be.
        """
        return cls(read_regular(path), os.fspath(path), Path(path), search)

    @classmethod
    def from_bytes(cls, data: bytes, label: str) -> Build:
        return cls(data, label)

    def _frame_information(self) -> tuple[int, int] | None:
        """(vaddr, size) of what an unwinder reads."""
        frame = self.sections.get(".eh_frame")
        if frame is None or not frame.vaddr or not 0 < frame.size <= self.elf.stored_from(frame.vaddr):
            return None
        return frame.vaddr, frame.size

    def _rows(self) -> RowTable:
        if self.bare or self.separate.symbols is None:
            return read_structure(self)
        symbols = read_symbols(self.elf, self.dynamic_symbols, self.separate.symbols)
        nothing = np.zeros(len(symbols.entities), np.bool_)
        return RowTable(symbols, nothing, nothing)

    @cached_property
    def stripped(self) -> Build:
        """The same build, seen as if it had no symbols: to be compared with one that has none."""
        if self.bare:
            return self
        view = Build(self.data, self.label, self.path, of=self)
        view.facts_store, view.debug_store = self.facts_store, self.debug_store
        return view

    def __repr__(self) -> str:
        return f"<Build {self.label} {self.build_id[:12]}>"

    # Reading

    def read(self, vaddr: int, size: int) -> bytes:
        """Link-space contents: file bytes, zeros for .bss and between segments."""
        if vaddr < 0 or size < 0 or vaddr + size > self.span:
            self.elf.corrupt(f"something refers to {size} bytes at {vaddr:#x}, outside the segments")
        return self.image[vaddr : vaddr + size].tobytes()

    def is_empty(self, vaddr: int, size: int) -> bool:
        """Whether the file has nothing for these bytes: they are zeros (.bss)."""
        return all(vaddr + size <= s.vaddr or s.vaddr + s.file_size <= vaddr for s in self.segments)

    def row_at(self, vaddr: int) -> int | None:
        """The row (never thread-local) that occupies this vaddr; a row without size occupies one byte."""
        return self.row_spans.find_one(vaddr)

    def slot_at(self, vaddr: int) -> int | None:
        """Index into ``slots``."""
        return self._slot_index.get(vaddr)

    def section_at(self, vaddr: int) -> Section | None:
        """The allocated section that holds this vaddr."""
        for section in self._allocated:
            if 0 <= vaddr - section.vaddr < section.size:
                return section
        return None

    @cached_property
    def _allocated(self) -> tuple[Section, ...]:
        return tuple(
            section
            for section in self.sections.values()
            if section.flags & SHF_ALLOC
            and not (section.flags & SHF_TLS and section.type == SectionType.NOBITS)  # takes no room in the image
        )

    # Lazy: address maps

    @cached_property
    def row_spans(self) -> SpanMap:
        fixed = np.flatnonzero(self.entities.kind != Kind.TLS).astype(np.int32)
        start = self.entities.address[fixed].astype(np.int64)
        return span_map(start, start + np.maximum(self.extent[fixed], 1), fixed)

    @cached_property
    def function_spans(self) -> SpanMap:
        rows = np.flatnonzero(self.entities.kind == Kind.FUNCTION).astype(np.int32)
        start = self.entities.address[rows].astype(np.int64)
        return span_map(start, np.minimum(start + self.extent[rows], self.span), rows)

    @cached_property
    def _slot_index(self) -> dict[int, int]:
        return {slot.vaddr: index for index, slot in enumerate(self.slots)}

    @cached_property
    def families(self) -> I32:
        """Per row: a number shared by a function and its cold parts; -1 for what is no function."""
        return code.families(self.entities)

    # Lazy: what the code says

    @property
    def facts(self) -> CodeFacts:
        """Disassembles every function, once."""
        if self._facts is None and self.facts_store is not None:
            self._facts = self.facts_store.load(self)
        if self._facts is None:
            self._facts = code.read_code(self, self._tls_records)
            if self.facts_store is not None:
                self.facts_store.save(self, self._facts)
        return self._facts

    @cached_property
    def contents(self) -> str:
        """A digest of what is loaded, but for the file header: strip changes nothing else there."""
        digest = hashlib.blake2b(digest_size=20)
        for segment in self.segments:
            start = max(segment.file_offset, FILE_HEADER.itemsize)
            digest.update(memoryview(self.data)[start : segment.file_offset + segment.file_size])
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Of all that matching and comparing look at.

        The build-id does not tell a stripped file from its original, though they have different symbols.
        """
        digest = hashlib.blake2b(digest_size=20)
        for segment in self.segments:
            digest.update(memoryview(self.data)[segment.file_offset : segment.file_offset + segment.file_size])
        columns = (self.entities.address, self.entities.size, self.entities.kind, self.entities.exported)
        for column in columns:
            digest.update(column.tobytes())
        names = (self.entities.aliases, self.entities.files, sorted(self.by_name), sorted(self.sections.items()))
        digest.update(repr(names).encode())
        digest.update(b"records" if self.has_relocation_records else b"")
        for file in (self.separate.types, self.separate.supplement):
            if file is not None:
                for section in debug_sections(file.sections):
                    digest.update(memoryview(file.data)[section.file_offset : section.file_offset + section.size])
        return f"{self.build_id}-{digest.hexdigest()}"

    # Lazy: what the debug information says

    @cached_property
    def debug(self) -> Debug:
        """Types, variables, prototypes.  The one place to ask: where they were read from is decided here."""
        file = self.separate.types
        if file is None:
            return Debug(missing=self.separate.absent)
        found = None if self.debug_store is None else self.debug_store.load(self)
        if found is None:
            found = read_debug(file.data, file.sections, self._supplement)
            if found.missing and self.separate.absent:
                return Debug(missing=self.separate.absent)  # may be there the next time
            if self.debug_store is not None:
                self.debug_store.save(self, found)
        return found

    @property
    def _supplement(self) -> Supplement | None:
        file = self.separate.supplement
        return None if file is None else (file.data, file.sections)

    def spoken_of(self, names: Collection[str]) -> Spoken | None:
        """Where the debug information speaks of these types; reads it again (None: it cannot be read)."""
        asked, file = frozenset(names), self.separate.types
        if asked not in self._spoken:
            found = None if file is None else read_mentions(file.data, file.sections, asked, self._supplement)
            self._spoken[asked] = found
        return self._spoken[asked]

    @property
    def references(self) -> References:
        return self.facts.references

    @property
    def access(self) -> I32:
        """Parallel to ``references``: bytes that a MEMORY reference reads or writes; 0 for the other forms."""
        return self.facts.access

    @property
    def undecodable(self) -> frozenset[int]:
        """Rows of functions that hold bytes which are no instruction: their references cannot be trusted."""
        return self.facts.undecodable

    @property
    def jump_tables(self) -> tuple[JumpTable, ...]:
        """Sorted by vaddr."""
        return self.facts.jump_tables

    @cached_property
    def taken(self) -> Flags:
        """Per row: a function whose address is taken (lea, data word, GOT slot, loader).  A call is no taking."""
        return code.address_taken(self)

    @cached_property
    def plain(self) -> Flags:
        """Per row: a function that follows the plain ABI, because callers that the compiler did not see may exist."""
        plain: Flags = (self.entities.exported | self.taken) & (self.entities.kind == Kind.FUNCTION)
        return plain

    @cached_property
    def exception_tables(self) -> dict[int, ExceptionTable | None]:
        """By vaddr of the function; None for one that cannot be read."""
        return exception_tables(self)

    @cached_property
    def boundaries(self) -> npt.NDArray[np.int64]:
        """Ascending vaddrs at which a piece of anonymous data ends at the latest."""
        return code.boundaries(self)

    # Parts of reading the dynamic table

    def _optional(self, tag: Dt) -> int | None:
        return self.elf.tag(tag, 0) or None

    def _dynamic_strings(self, tag: Dt) -> tuple[str, ...]:
        offsets = self.elf.dynamic.get(tag, ())
        if not offsets:
            return ()
        blob = dynamic_strings(self.elf)
        if max(offsets) >= len(blob):
            self.elf.corrupt("a name in the dynamic table lies outside its string table")
        return self.elf.strings(blob, np.array(offsets, np.int64), "a name in the dynamic table")

    def _functions(self, start: Dt, size: Dt) -> tuple[int, ...]:
        return array_of_functions(
            self.elf,
            self.dynamic_relocations,
            self.dynamic_symbols,
            self.elf.tag(start, 0),
            self.elf.tag(size, 0),
        )
