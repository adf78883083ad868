"""The modules of a process, as its dynamic linker lists them.

The order of the linker's list, and who needs whom, decides which definition a name is bound to; the memory map says
which file each module is, even if that file was replaced or deleted on disk since.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Mapping as Table
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hotupgrade.errors import NotNow, Reason, Refused
from hotupgrade.files import read_regular
from hotupgrade.target.maps import Mapping, mapping_at
from hotupgrade.target.process import Process

_PT_DYNAMIC, _PT_NOTE, _PT_PHDR, _PT_LOAD = 2, 4, 6, 1
_AT_PHDR, _AT_PHNUM = 3, 5
_DT_NULL, _DT_NEEDED, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ = 0, 1, 4, 5, 6, 10
_DT_SONAME, _DT_DEBUG, _DT_VERSYM, _DT_GNU_HASH, _DT_VERDEF = 14, 21, 0x6FFFFFF0, 0x6FFFFEF5, 0x6FFFFFFC
_DT_RELA, _DT_RELASZ, _DT_JMPREL, _DT_PLTRELSZ = 7, 8, 23, 2
_STT_TLS = 6
_R_GLOB_DAT, _R_JUMP_SLOT = 6, 7

#: No process has more modules or dynamic entries than this; a longer list is a broken or hostile one.
_MOST_MODULES, _MOST_ENTRIES = 4096, 1024
#: Bytes of all tables of all modules together, and of one string: what is read stays bounded, whatever sizes are said.
_MOST_BYTES, _MOST_STRING = 1 << 28, 4096


class Allowance:
    """How much may yet be read of the tables of one process's modules."""

    def __init__(self, size: int = _MOST_BYTES) -> None:
        self._left = size

    def take(self, process: Process, size: int) -> None:
        """Raises NotNow when it is used up."""
        self._left -= size + 64  # each reading costs something
        if self._left < 0:
            raise damaged(process, f"says that the tables of its modules take more than {_MOST_BYTES >> 20} MiB")


def damaged(process: Process, what: str) -> NotNow:
    """The error for a process whose own list of modules cannot be right."""
    text = f"process {process.pid} {what}; what its dynamic linker keeps is damaged, so it cannot be upgraded"
    return NotNow(Reason("damaged-modules", str(process.pid), text))


@dataclass(frozen=True, slots=True)
class Definition:
    """A symbol that a module defines."""

    address: int
    type: int
    module: str


@dataclass(frozen=True, eq=False)
class Module:
    """One loaded ELF image."""

    process: Process
    base: int  # load bias: absolute address = base + vaddr
    name: str  # SONAME, else the file's name
    path: str  # as the memory map shows it, "(deleted)" taken off
    opened: str  # the path by which the loader opened it; "" for the program
    deleted: bool
    mappings: tuple[Mapping, ...]
    dynamic: Table[int, tuple[int, ...]]
    strings_at: int  # address of .dynstr
    link_map: int
    executable: bool
    allowance: Allowance

    @property
    def low(self) -> int:
        return self.mappings[0].start if self.mappings else self.base

    @property
    def high(self) -> int:
        return self.mappings[-1].end if self.mappings else self.base

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """The SONAMEs of the libraries that this module asks for."""
        found = []
        try:
            for at in self.dynamic.get(_DT_NEEDED, ()):
                found.append(self.process.read_string(self.strings_at + at, _MOST_STRING))
                self.allowance.take(self.process, len(found[-1]))
        except ValueError:
            return ()
        return tuple(found)

    @cached_property
    def build_id(self) -> str:
        """The GNU build-id in hexadecimal, read from the process's memory; "" if there is none."""
        try:
            header = self.process.read(self.low, 64)
            if header[:4] != b"\x7fELF":
                return ""
            start, count = struct.unpack_from("<Q", header, 32)[0], struct.unpack_from("<H", header, 56)[0]
            table = self.process.read(self.low + start, 56 * min(count, 64))
            for index in range(min(count, 64)):
                kind, _, _, vaddr, _, size = struct.unpack_from("<IIQQQQ", table, 56 * index)
                if kind == _PT_NOTE and size <= 65536:
                    found = _build_id(self.process.read(self.base + vaddr, size))
                    if found:
                        return found
        except ValueError:
            pass
        return ""

    def contents(self) -> bytes:
        """The bytes of the file that is mapped, even if it is no longer on disk.

        Raises:
            NotNow: it cannot be had.
        """
        candidates = [self.process.mapped_file(m) for m in self.mappings if m.inode][:1]
        candidates.append(Path(f"/proc/{self.process.pid}/root{self.path}"))
        for candidate in candidates:
            with contextlib.suppress(OSError, Refused):
                return read_regular(candidate, self._require_mapped)
        raise NotNow(
            Reason(
                "no-old-build",
                self.name,
                f"{self.path}: the file that process {self.process.pid} has mapped cannot be read any more; run "
                f"as root, which may "
                "read deleted files through /proc",
            )
        )

    def _require_mapped(self, status: os.stat_result) -> None:
        """Raises OSError for a file that is not the one that is mapped.

        Devices are not compared: several file systems show one here and another in the memory map.
        """
        if not any(m.inode == status.st_ino for m in self.mappings):
            raise FileNotFoundError(self.path)

    @cached_property
    def _symbols(self) -> tuple[bytes, bytes, bytes]:
        """.dynsym, .dynstr and .gnu.version as they lie in memory."""
        strings = self._table(_DT_STRTAB, self._value(_DT_STRSZ))
        count = self._symbol_count()
        return self._table(_DT_SYMTAB, 24 * count), strings, self._table(_DT_VERSYM, 2 * count)

    def _value(self, tag: int) -> int:
        return self.dynamic.get(tag, (0,))[0]

    def _address(self, tag: int) -> int:
        """glibc relocates these entries in place, other loaders do not."""
        value = self._value(tag)
        return value if value >= self.low else self.base + value

    def _table(self, tag: int, size: int) -> bytes:
        if tag not in self.dynamic or not 0 < size < 1 << 28:
            return b""
        self.allowance.take(self.process, size)
        try:
            return self.process.read(self._address(tag), size)
        except ValueError:
            return b""

    def _symbol_count(self) -> int:
        """From the hash table, since .dynsym does not say its own length."""
        if _DT_HASH in self.dynamic:
            return min(int(struct.unpack("<II", self.process.read(self._address(_DT_HASH), 8))[1]), 1 << 22)
        if _DT_GNU_HASH not in self.dynamic:
            return 0
        at = self._address(_DT_GNU_HASH)
        buckets, first, bloom, _ = struct.unpack("<IIII", self.process.read(at, 16))
        if buckets > 1 << 22 or bloom > 1 << 20:
            return 0
        self.allowance.take(self.process, 4 * buckets)
        heads = struct.unpack(f"<{buckets}I", self.process.read(at + 16 + 8 * bloom, 4 * buckets))
        last = max(heads, default=0)
        if last < first:
            return min(int(first), 1 << 22)
        chains = at + 16 + 8 * bloom + 4 * buckets
        while last < 1 << 22:
            self.allowance.take(self.process, 4)
            if struct.unpack("<I", self.process.read(chains + 4 * (last - first), 4))[0] & 1:
                break
            last += 1
        return last + 1

    def mentions(self, symbol: str) -> bool:
        """Whether the module defines or uses a symbol of this name."""
        return bool(_all(self._symbols[1], symbol.encode() + b"\0"))

    def imports(self, symbol: str) -> bool:
        """Whether the linker bound a slot of this module to a symbol of this name."""
        return self.mentions(symbol) and any(name == symbol for _, name, _ in self._relocations)

    @cached_property
    def import_slots(self) -> tuple[tuple[int, str], ...]:
        """(address, symbol) of every slot through which this module calls imported functions (R_X86_64_JUMP_SLOT)."""
        return tuple((at, name) for at, name, kind in self._relocations if kind == _R_JUMP_SLOT)

    @cached_property
    def _relocations(self) -> tuple[tuple[int, str, int], ...]:
        """(address, symbol, type) of the slots that the linker bound to symbols."""
        symbols, strings, _ = self._symbols
        found = []
        for table, size in ((_DT_RELA, _DT_RELASZ), (_DT_JMPREL, _DT_PLTRELSZ)):
            raw = self._table(table, self._value(size))
            for offset, info, _ in struct.iter_unpack("<QQq", raw[: len(raw) // 24 * 24]):
                if info & 0xFFFFFFFF in (_R_GLOB_DAT, _R_JUMP_SLOT) and (info >> 32) * 24 + 24 <= len(symbols):
                    name = struct.unpack_from("<I", symbols, (info >> 32) * 24)[0]
                    text = _string(strings, name)
                    self.allowance.take(self.process, len(text))
                    found.append((self.base + offset, text, info & 0xFFFFFFFF))
        return tuple(found)

    def bound(self, symbol: str) -> int | None:
        """What a slot of this module for a symbol holds, if the linker has bound it to something outside of the
        module."""
        for address, name, _ in self._relocations:
            if name == symbol:
                value = self.process.read_word(address)
                if value and not self.low <= value < self.high:
                    return value
        return None

    @cached_property
    def _versions(self) -> dict[int, str]:
        """Names of the versions that this module defines, by index."""
        found: dict[int, str] = {}
        if _DT_VERDEF not in self.dynamic:
            return found
        strings = self._symbols[1]
        at = self._address(_DT_VERDEF)
        for _ in range(_MOST_ENTRIES):
            _, _, index, _, _, auxiliary, following = struct.unpack("<HHHHIII", self.process.read(at, 20))
            name = struct.unpack("<I", self.process.read(at + auxiliary, 4))[0]
            found[index] = _string(strings, name)
            if not following:
                break
            at += following
        return found

    @cached_property
    def _order(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.intp]]:
        """Offsets of the symbols' names, ascending, and the numbers of the symbols."""
        names = np.frombuffer(self._symbols[0], _NAME_OF_SYMBOL)["name"]
        order = np.argsort(names, kind="stable")
        return names[order], order

    def _named(self, offsets: Sequence[int]) -> list[int]:
        """Symbols whose names stand at these offsets, in the order of the table."""
        names, order = self._order
        low, high = np.searchsorted(names, offsets, side="left"), np.searchsorted(names, offsets, side="right")
        found: list[int] = []
        for first, last in zip(low.tolist(), high.tolist(), strict=True):
            found.extend(order[first:last].tolist())
        return sorted(found)

    def define(self, symbol: str, version: str) -> Definition | None:
        """This module's definition of a symbol, if it has one of that version (any, if it has no versions)."""
        symbols, strings, versions = self._symbols
        wanted = symbol.encode() + b"\0"
        names = _all(strings, wanted)  # suffixes of longer names count: linkers share them
        if not names:
            return None
        best = None
        for index in self._named(names):
            _, info, _, section, value, _ = struct.unpack_from("<IBBHQQ", symbols, 24 * index)
            if section == 0 or info >> 4 == 0:
                continue
            label = struct.unpack_from("<H", versions, 2 * index)[0] if versions else 1
            if version and self._versions and self._versions.get(label & 0x7FFF, "") not in ("", version):
                continue
            found = Definition(value if info & 15 == _STT_TLS else self.base + value, info & 15, self.name)
            if not label & 0x8000:
                return found
            best = best or found
        return best if version else None


_NAME_OF_SYMBOL = np.dtype({"names": ["name"], "formats": ["<u4"], "offsets": [0], "itemsize": 24})


def _string(strings: bytes, at: int) -> str:
    end = strings.find(b"\0", at, at + _MOST_STRING)
    return strings[at:end].decode(errors="replace") if end >= 0 else ""


def _all(text: bytes, wanted: bytes) -> list[int]:
    found, at = [], -1
    while (at := text.find(wanted, at + 1)) >= 0:
        found.append(at)
    return found


def _build_id(notes: bytes) -> str:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_size]
        at += 12 + -(-name_size // 4) * 4
        if kind == 3 and name == b"GNU\0":
            return notes[at : at + size].hex()
        at += -(-size // 4) * 4
    return ""


def _dynamic(process: Process, address: int, room: int = 0) -> dict[int, tuple[int, ...]]:
    """The dynamic section; ``room``: bytes that are known to be mapped from its start on."""
    table: dict[int, list[int]] = {}
    step = min(room // 16 * 16, 1024) or 16
    for start in range(0, 16 * _MOST_ENTRIES, step):
        if start + step > room:
            step = 16
        for tag, value in struct.iter_unpack("<QQ", process.read(address + start, step)):
            if tag == _DT_NULL:
                return {tag: tuple(values) for tag, values in table.items()}
            table.setdefault(tag, []).append(value)
    return {tag: tuple(values) for tag, values in table.items()}


def _auxiliary(process: Process) -> dict[int, int]:
    with open(f"/proc/{process.pid}/auxv", "rb") as file:
        raw = file.read()
    words = struct.unpack(f"<{len(raw) // 8}Q", raw[: len(raw) // 8 * 8])
    return dict(zip(words[::2], words[1::2], strict=False))


def _executable_dynamic(process: Process) -> tuple[int, int]:
    """Load bias and address of the dynamic section of the main program."""
    auxiliary = _auxiliary(process)
    at, count = auxiliary.get(_AT_PHDR, 0), auxiliary.get(_AT_PHNUM, 0)
    table = process.read(at, 56 * count) if at and count < 128 else b""
    base = dynamic = None
    for index in range(len(table) // 56):
        kind, _, _, vaddr = struct.unpack_from("<IIQQ", table, 56 * index)
        if kind == _PT_PHDR:
            base = at - vaddr
        elif kind == _PT_DYNAMIC:
            dynamic = vaddr
    if dynamic is None:
        raise NotNow(
            Reason(
                "static-process",
                process.executable,
                f"process {process.pid} is statically linked: it has no shared library that could be upgraded",
            )
        )
    base = base or 0
    return base, base + dynamic


def read_modules(process: Process) -> tuple[Module, ...]:
    """All modules, in the order of the linker's list: the executable first.

    Raises:
        NotNow: the process is statically linked, or its linker has not come far enough yet.
    """
    maps = process.maps()
    _base, dynamic_at = _executable_dynamic(process)
    rendezvous = _dynamic(process, dynamic_at).get(_DT_DEBUG, (0,))[0]
    if not rendezvous:
        raise NotNow(
            Reason(
                "not-started",
                str(process.pid),
                f"process {process.pid} has not finished loading its libraries; try again",
            )
        )
    return listed(process, maps, process.read_word(rendezvous + 8))


def listed(process: Process, maps: Sequence[Mapping], at: int) -> tuple[Module, ...]:
    """The modules of the linker's list that begins at an address.

    Raises:
        NotNow: it is no such list.
    """
    found: list[Module] = []
    allowance = Allowance()
    seen: set[int] = set()
    files: dict[tuple[int, str, str], list[Mapping]] = {}
    for mapping in maps:
        if mapping.inode:
            files.setdefault((mapping.inode, mapping.device, mapping.path), []).append(mapping)
    while at:
        if at in seen or len(seen) == _MOST_MODULES:
            raise damaged(process, "holds a list of modules that does not end")
        seen.add(at)
        bias, name_at, dynamic_at, following = struct.unpack("<QQQQ", process.read(at, 32))
        module = _module(process, maps, files, at, bias, name_at, dynamic_at, allowance, executable=not found)
        if module is not None:
            found.append(module)
        at = following
    if not found:
        raise damaged(process, "holds an empty list of modules")
    return tuple(found)


def _module(
    process: Process,
    maps: Sequence[Mapping],
    files: Table[tuple[int, str, str], list[Mapping]],
    at: int,
    bias: int,
    name_at: int,
    dynamic_at: int,
    allowance: Allowance,
    *,
    executable: bool,
) -> Module | None:
    home = mapping_at(maps, dynamic_at)
    if home is None:
        return None
    allowance.take(process, 4096)
    dynamic = _dynamic(process, dynamic_at, home.end - dynamic_at)
    if home.inode:
        same = files[home.inode, home.device, home.path]
        index = same.index(home)
        # One file may be mapped by several modules (dlmopen); ours are those around the dynamic section.  A small
        # file's first page may be mapped twice, as code and as data; where link space begins at 0, ours is at the bias.
        starts = [i for i in range(index + 1) if same[i].offset == 0]
        first = next((i for i in starts if same[i].start == bias), max(starts, default=0))
        mine = [m for i, m in enumerate(same) if i >= first and (i <= index or m.offset)]
    else:
        mine = [home]
    path = home.path.removesuffix(" (deleted)")
    strings_at = dynamic.get(_DT_STRTAB, (0,))[0]
    if strings_at < (mine[0].start if mine else 0):
        strings_at += bias
    soname = ""
    try:
        if _DT_SONAME in dynamic:
            soname = process.read_string(strings_at + dynamic[_DT_SONAME][0])
        listed = process.read_string(name_at) if name_at else ""
    except ValueError:
        listed = ""
    name = soname or Path(listed or path).name
    return Module(
        process,
        bias,
        name,
        path or listed,
        "" if executable else listed,
        home.path.endswith(" (deleted)"),
        tuple(mine),
        dynamic,
        strings_at,
        at,
        executable,
        allowance,
    )


class Scope:
    """Resolves names as the dynamic linker does for one module."""

    def __init__(self, modules: Sequence[Module], module: Module) -> None:
        by_name = {m.name: m for m in reversed(modules)}
        started = _closure(modules[0], by_name)
        place = {module: index for index, module in enumerate(modules)}
        last = max(place[m] for m in started)
        among = set(started)
        # What stands in the list among the modules of the start but is needed by none of them was preloaded.
        wanted = {name for m in modules for name in m.needed}
        loaded = [m for m in modules if not m.path.startswith("[")]  # the kernel's own object is searched for by nobody
        order = [m for m in loaded if m in among or (place[m] < last and m.name not in wanted)]
        if module not in order:
            known = set(order)
            order += [m for m in _closure(module, by_name) if m not in known]
        self._order = order
        self._known: dict[tuple[str, str], Definition | None] = {}

    def define(self, symbol: str, version: str) -> Definition | None:
        """The definition that the linker binds a reference of this module to."""
        key = symbol, version
        if key not in self._known:
            self._known[key] = next((d for m in self._order if (d := m.define(symbol, version))), None)
        return self._known[key]

    def definers(self, symbol: str) -> list[Module]:
        """The modules that define a symbol, in the order in which they are asked for it."""
        return [m for m in self._order if m.define(symbol, "") is not None]

    def comes_before(self, module: Module, other: Module | None) -> bool:
        """Whether a module is asked before another (None: one that is asked last), if it is asked at all."""
        if module not in self._order:
            return False
        return other is None or self._order.index(module) < self._order.index(other)


def _closure(root: Module, by_name: Table[str, Module]) -> list[Module]:
    """A module and what it needs, breadth first."""
    order, seen = [root], {root}
    for module in order:
        for name in module.needed:
            other = by_name.get(name)
            if other is not None and other not in seen:
                seen.add(other)
                order.append(other)
    return order


def tls_block(modules: Sequence[Module], module: Module) -> tuple[int | None, int | None]:
    """(module id, thread-pointer offset of the block or None if it is allocated on demand) of a module's thread-locals.

    The offsets of these two fields within glibc's private ``struct link_map`` are published for debuggers, in symbols
    ``_thread_db_link_map_*`` of the C library: three 32-bit words each, bits, count and offset (nptl_db/db_info.c).
    """
    libc = next((m for m in modules if m.name.startswith("libc.so")), None)
    if libc is None:
        return None, None
    values: list[int | None] = []
    for field in ("l_tls_modid", "l_tls_offset"):
        where = libc.define(f"_thread_db_link_map_{field}", "GLIBC_PRIVATE")
        if where is None:
            return None, None
        bits, _, offset = struct.unpack("<III", module.process.read(where.address, 12))
        if bits != 64 or offset > 8192:
            return None, None
        values.append(module.process.read_word(module.link_map + offset))
    identifier, offset = values[0] or 0, values[1] or 0
    if identifier == 0:
        return None, None
    # NO_TLS_OFFSET is 0 and FORCED_DYNAMIC_TLS_OFFSET is -1 on x86-64 (elf/dl-tls.h, link.h).
    return identifier, None if offset in (0, 2**64 - 1) else -offset
