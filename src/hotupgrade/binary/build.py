"""One build of a module, read from its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hotupgrade.binary.model import (
    DynamicRelocations,
    DynamicSymbol,
    Entities,
    Flags,
    I32,
    References,
    Section,
    Segment,
    Slot,
)


@dataclass(frozen=True, slots=True)
class JumpTable:
    """A switch table in anonymous read-only data: ``count`` int32 entries, each ``target - vaddr``.

    The function that owns the table and every function that an entry points into must run from the same image.
    """

    vaddr: int
    count: int
    function: int  # row of Entities whose code names the table
    targets: tuple[int, ...]  # rows of Entities that entries point into (the function itself, its .cold part)


class Build:
    """SIGNATURES ONLY FOR NOW: everything is read eagerly except what says "lazy".  Equality is identity."""

    path: Path | None
    label: str  # for messages: the path, or what the caller of from_bytes said
    data: bytes  # the whole file
    build_id: str  # hex of NT_GNU_BUILD_ID; "sha1-" + hex of the file's digest when there is none
    soname: str
    executable: bool  # a position-independent executable, not a shared library
    entry: int  # e_entry
    segments: tuple[Segment, ...]  # PT_LOAD, ascending
    tls: Segment | None
    relro: tuple[int, int] | None  # vaddr range [low, high), page-rounded at the high end as the loader does
    sections: Mapping[str, Section]  # allocated and not; the first of a name wins
    eh_frame: tuple[int, int] | None  # (vaddr, size)
    span: int  # bytes from vaddr 0 to the end of the last PT_LOAD, rounded up to a page
    entities: Entities
    by_name: Mapping[str, int]  # global names -> row ("foo" for foo@@V; "foo@V" for a non-default version)
    extent: I32  # per row: the bytes a function occupies (its size, or up to the next symbol when that is 0)
    dynamic_relocations: DynamicRelocations  # includes DT_RELR entries, as R_X86_64_RELATIVE with explicit addends
    dynamic_symbols: tuple[DynamicSymbol, ...]  # index = symbol number of the relocations
    needed: tuple[str, ...]
    init: int | None  # DT_INIT
    fini: int | None  # DT_FINI
    init_array: tuple[int, ...]  # vaddrs of the constructors in the order in which they run
    fini_array: tuple[int, ...]
    bind_now: bool
    symbolic: bool
    text_relocations: bool
    has_relocation_records: bool  # linked with --emit-relocs: .rela.text is there
    slots: tuple[Slot, ...]  # every 8-byte word of .got and .got.plt, sorted by vaddr
    plt_slot: Mapping[int, int]  # vaddr of a PLT stub -> index into slots
    marks: Mapping[int, tuple[str, ...]]  # vaddr -> names that the linker defined there (__TMC_END__, _edata, ...)

    @classmethod
    def open(cls, path: Path | str) -> Build:
        """Reads a file through one descriptor, whole.  Raises Refused."""
        raise NotImplementedError

    @classmethod
    def from_bytes(cls, data: bytes, label: str) -> Build:
        raise NotImplementedError

    def read(self, vaddr: int, size: int) -> bytes:
        """Link-space contents: file bytes, zeros for .bss and between segments.  Raises Refused outside [0, span)."""
        raise NotImplementedError

    def row_at(self, vaddr: int) -> int | None:
        """The row (never TLS) whose [address, address + max(size, 1)) holds this vaddr; None if there is none."""
        raise NotImplementedError

    def slot_at(self, vaddr: int) -> int | None:
        """Index into ``slots``."""
        raise NotImplementedError

    def section_at(self, vaddr: int) -> Section | None:
        """The allocated section that holds this vaddr."""
        raise NotImplementedError

    @property
    def references(self) -> References:
        """Lazy: disassembles every function once."""
        raise NotImplementedError

    @property
    def access(self) -> I32:
        """Lazy, parallel to ``references``: bytes that a MEMORY reference reads or writes; 0 for the other forms."""
        raise NotImplementedError

    @property
    def taken(self) -> Flags:
        """Lazy, per row: a function whose address is taken (lea, data word, GOT slot, loader); True for no other kind."""
        raise NotImplementedError

    @property
    def plain(self) -> Flags:
        """Lazy, per row: a function that follows the plain ABI (exported, or taken)."""
        raise NotImplementedError

    @property
    def jump_tables(self) -> tuple[JumpTable, ...]:
        """Lazy, sorted by vaddr."""
        raise NotImplementedError
