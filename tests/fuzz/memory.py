"""A dynamic linker's list of modules in this very process, at an address that is always the same, to be spoiled."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import struct

from hotupgrade.errors import NotNow, Refused
from hotupgrade.target.maps import Mapping
from hotupgrade.target.modules import Scope, listed, tls_block
from hotupgrade.target.process import Process

AT, SIZE = 0x10_0000_0000, 1 << 14
MAP_FIXED_NOREPLACE = 0x100000
STRINGS, SYMBOLS, HASH, GNU_HASH, VERSIONS, RELOCATIONS, VERDEF = (AT + 0x1000 + 0x200 * n for n in range(7))
NAMES = b"\0libc.so.6\0libx.so\0f\0g\0ONE\0_thread_db_link_map_l_tls_modid\0_thread_db_link_map_l_tls_offset\0"


def place(content: bytes) -> None:
    """Put bytes at ``AT``."""
    _room()
    ctypes.memset(AT, 0, SIZE)
    ctypes.memmove(AT, content[:SIZE], min(len(content), SIZE))


@functools.cache
def _room() -> None:
    call = ctypes.CDLL(None, use_errno=True).mmap
    call.restype, call.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long],
    )
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    assert call(AT, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == AT


@functools.cache
def _this() -> Process:
    return Process(os.getpid())


MAPS = (Mapping(AT, AT + SIZE, "rw-p", 0, "00:00", 0, ""),)


def modules(data: bytes) -> None:
    """Walks a list that begins at ``AT`` and asks its modules for all that they know."""
    place(data)
    with contextlib.suppress(NotNow, Refused):
        found = listed(_this(), MAPS, AT)
        for module in found:
            assert all(len(name) <= 4096 for name in (*module.needed, module.name))
            with contextlib.suppress(NotNow):
                assert module.build_id is not None
                assert len(module.import_slots) < SIZE
                for definition in (module.define("f", "ONE"), module.define("g", "")):
                    assert definition is None or definition.module == module.name
                assert module.bound("g") != 0
        Scope(found, found[-1]).define("f", "")
        tls_block(found, found[-1])


def seed() -> bytes:
    """Two modules, the first of them a C library."""
    content = bytearray(SIZE)
    dynamic = [
        (1, 11), (4, HASH), (5, STRINGS), (6, SYMBOLS), (10, len(NAMES)), (14, 1), (0x6FFFFEF5, GNU_HASH),
        (0x6FFFFFF0, VERSIONS), (0x6FFFFFFC, VERDEF), (7, RELOCATIONS), (8, 48), (0, 0),
    ]  # fmt: skip
    names = [
        NAMES.index(name)
        for name in (b"f\0", b"g\0", b"_thread_db_link_map_l_tls_modid", b"_thread_db_link_map_l_tls_o")
    ]

    def put(address: int, raw: bytes) -> None:
        content[address - AT : address - AT + len(raw)] = raw

    put(AT, struct.pack("<QQQQ", AT, STRINGS + 1, AT + 0x200, AT + 0x100))
    put(AT + 0x100, struct.pack("<QQQQ", AT, STRINGS + 11, AT + 0x200, 0))
    put(AT + 0x200, b"".join(struct.pack("<QQ", *entry) for entry in dynamic))
    put(STRINGS, NAMES)
    put(SYMBOLS + 24, b"".join(struct.pack("<IBBHQQ", name, 0x12, 0, 1, 0x300, 8) for name in names))
    put(HASH, struct.pack("<II", 1, 5))
    put(GNU_HASH, struct.pack("<IIIIQIII", 1, 1, 1, 0, 0, 1, 2, 3))
    put(VERSIONS, struct.pack("<5H", 0, 2, 2, 2, 2))
    put(VERDEF, struct.pack("<HHHHIIIII", 1, 0, 2, 1, 0, 20, 0, NAMES.index(b"ONE"), 0))
    put(RELOCATIONS, struct.pack("<QQqQQq", 0x400, 1 << 32 | 6, 0, 0x408, 2 << 32 | 7, 0))
    put(AT + 0x300, struct.pack("<III", 64, 1, 0x30))
    return bytes(content[:0x2000])
