"""What was read from one build: plain data, address spaces said in every name.

Two address spaces occur here.  A *vaddr* is an address as the linker wrote it in the file (link space); nothing in this
package knows a process, so there is no other kind of code or data address.  A *TLS offset* counts from the start of the
module's thread-local block.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD (or PT_TLS) program header."""

    vaddr: int
    memory_size: int
    file_size: int
    file_offset: int
    readable: bool
    writable: bool
    executable: bool
    alignment: int


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    vaddr: int
    size: int
    file_offset: int
    type: int
    flags: int
    entry_size: int


class Kind(enum.IntEnum):
    """What an entity is; decides whether it has a home and who may write it."""

    FUNCTION = 1  # STT_FUNC or STT_GNU_IFUNC in an executable section
    OBJECT = 2  # writable after start: .data, .bss
    RELRO = 3  # constant after relocation: .data.rel.ro and what else PT_GNU_RELRO covers
    CONSTANT = 4  # never written: .rodata
    TLS = 5  # thread-local; its address is a TLS offset


@dataclass(frozen=True)
class Entities:
    """The named things of a build, one row per distinct (address, kind); sorted by (is-TLS, address).

    Aliases share a row: ``names[i]`` is the preferred name (global before weak before local, then shortest, then
    alphabetical), ``aliases[i]`` holds every name, the preferred one first.
    """

    address: U64  # vaddr, or TLS offset for Kind.TLS
    size: U64  # bytes, as the symbol says; 0 when it does not
    kind: U8  # Kind
    exported: Flags  # defined in .dynsym with default or protected visibility
    names: tuple[str, ...]
    aliases: tuple[tuple[str, ...], ...]
    files: tuple[str, ...]  # STT_FILE of the first local name; "" for purely global rows

    def __len__(self) -> int:
        return len(self.names)


class Form(enum.IntEnum):
    """The shape of an instruction that refers to an address."""

    CALL = 1  # call rel32
    JUMP = 2  # jmp rel32 to another function
    BRANCH = 3  # jcc rel32 to another function
    LEA = 4  # lea disp32(%rip), reg: takes an address
    MEMORY = 5  # any other disp32(%rip) operand: reads or writes
    CALL_MEMORY = 6  # call *disp32(%rip)
    JUMP_MEMORY = 7  # jmp *disp32(%rip)
    DTPOFF = 8  # four bytes that hold a TLS offset: what is added to the start of the module's block
    SHORT = 9  # jmp/jcc rel8 to a neighbouring function: the field is one byte and cannot be re-pointed elsewhere
    TPOFF = 10  # the same in an executable: what is added to the thread pointer, a negative number


THREAD_LOCAL_FORMS = (Form.DTPOFF, Form.TPOFF)


class TargetKind(enum.IntEnum):
    """What a reference's target address lies in."""

    ENTITY = 1  # a row of Entities; addend = target - address
    ANONYMOUS = 2  # unnamed data that nobody writes: strings, floating constants, jump tables, templates
    GOT = 3  # a slot of .got/.got.plt; ``entity`` is the index into Build.slots
    PLT = 4  # a stub of .plt/.plt.got/.plt.sec; ``entity`` is the index into Build.slots of the slot it jumps through
    UNKNOWN = 5  # none of these: unnamed text, unnamed writable data, padding


@dataclass(frozen=True)
class References:
    """Every place in the code that names an address outside its own function; sorted by ``position``.

    The four bytes at ``position`` (one byte for Form.SHORT) are a displacement; the address named is ``following +
    displacement``.  For Form.DTPOFF it is the displacement itself, a TLS offset; for Form.TPOFF, the displacement plus
    :func:`hotupgrade.binary.thread_locals.below_thread_pointer`, a TLS offset too.  ``following`` then is the end of
    the field, which may be an immediate operand as well.
    A ``lea`` of the function's own start is here too: it takes an address.
    """

    position: U64  # vaddr of the 4-byte field
    following: U64  # vaddr of the next instruction
    form: U8  # Form
    target: U64  # vaddr (or TLS offset)
    function: I32  # row of Entities that contains the instruction
    target_kind: U8  # TargetKind
    entity: I32  # row of Entities, or index of Build.slots, or -1
    addend: I64  # target - start of the entity; 0 where there is none

    def __len__(self) -> int:
        return len(self.position)


@dataclass(frozen=True, slots=True)
class Slot:
    """A GOT slot and what the dynamic linker puts there."""

    vaddr: int
    relocation: int  # R_X86_64_GLOB_DAT, JUMP_SLOT, RELATIVE, TPOFF64, DTPMOD64, DTPOFF64, IRELATIVE, TLSDESC; 0 = none
    symbol: str  # "" where there is none
    version: str  # "" where there is none
    addend: int


@dataclass(frozen=True)
class DynamicRelocations:
    """.rela.dyn and .rela.plt together, sorted by ``vaddr``."""

    vaddr: U64
    type: npt.NDArray[np.uint32]
    symbol: npt.NDArray[np.uint32]  # index into .dynsym
    addend: I64


@dataclass(frozen=True, slots=True)
class DynamicSymbol:
    """A row of .dynsym."""

    name: str
    version: str  # "" for unversioned
    vaddr: int
    size: int
    type: int  # STT_*
    binding: int  # STB_*
    visibility: int  # STV_*
    defined: bool
    hidden_version: bool  # foo@V rather than foo@@V
