"""The loader's lock: is anybody loading a library?  A thread that called ``dlopen()`` now would wait for that, and for
ever if the holder waits for this very thread."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence

from hotupgrade.errors import NotNow, Reason
from hotupgrade.target.maps import mapping_at
from hotupgrade.target.modules import Module
from hotupgrade.target.process import Process

#: Where glibc's ``struct rtld_global`` may hold its locks, in bytes from its start.
_MOST_OFFSET = 8192
#: A pthread_mutex_t of x86-64: lock, count, owner, users, kind, ... in 40 bytes.
_MUTEX = struct.Struct("<iIiIi20x")
_RECURSIVE = 1
_MOST_NAMESPACES = 16


def wait_for_loader(process: Process, modules: Sequence[Module], timeout: float) -> None:
    """Wait until nobody is loading or unloading a library.

    Where the lock cannot be found, a library that is not glibc's, there is nothing to wait for.

    Raises:
        NotNow: somebody was, for ``timeout`` seconds.
    """
    lock = _load_lock(process, modules)
    limit = time.monotonic() + timeout
    while lock is not None and process.read_word(lock) & 0xFFFFFFFF:
        if time.monotonic() > limit:
            raise NotNow(
                Reason(
                    "loader-busy",
                    str(process.pid),
                    f"process {process.pid}: one of its threads is loading a library (its constructors may take long), "
                    f"and the upgrade needs the loader too; try again",
                )
            )
        time.sleep(0.002)


def _load_lock(process: Process, modules: Sequence[Module]) -> int | None:
    """The address of ``_rtld_global._dl_load_lock``: the first of two recursive mutexes behind the number of
    namespaces.  The structure is private; its neighbours tell the place."""
    linker = next((m for m in modules if m.name.startswith("ld-linux")), None)
    start = linker.define("_rtld_global", "") if linker else None
    mapping = mapping_at(process.maps(), start.address) if start else None
    if start is None or mapping is None:
        return None
    raw = process.read(start.address, min(_MOST_OFFSET, mapping.end - start.address))
    for offset in range(8, len(raw) - 2 * _MUTEX.size, 8):
        namespaces = struct.unpack_from("<Q", raw, offset - 8)[0]
        kinds = [_MUTEX.unpack_from(raw, offset + _MUTEX.size * index)[4] for index in range(2)]
        if 1 <= namespaces <= _MOST_NAMESPACES and kinds == [_RECURSIVE] * 2:
            return start.address + offset
    return None
