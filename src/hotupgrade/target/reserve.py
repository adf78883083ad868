"""Room for new thread-locals: a small library with initial contents of our choice, loaded by the target's own loader.

Only the loader can give every thread, present and future, more thread-local storage.  It is asked to load a library
that consists of nothing else, while no thread is stopped.
"""

from __future__ import annotations

import struct

from hotupgrade.errors import NotNow, Reason
from hotupgrade.target import native
from hotupgrade.target.agent import SYS_CLOSE, Agent, call, system_call
from hotupgrade.target.loader import wait_for_loader
from hotupgrade.target.modules import read_modules, tls_block
from hotupgrade.target.scratch import Scratch

_PT_TLS = 7
_RTLD_NOW = 2
LARGEST, STRICTEST = 1024, 64


def _library(initial: bytes, alignment: int) -> bytes:
    """The reserve library with this initial image."""
    raw = bytearray(native.native_file("libreserve.so").read_bytes())
    table = struct.unpack_from("<Q", raw, 32)[0]
    for index in range(struct.unpack_from("<H", raw, 56)[0]):
        at = table + 56 * index
        if struct.unpack_from("<I", raw, at)[0] == _PT_TLS:
            offset = struct.unpack_from("<Q", raw, at + 8)[0]
            raw[offset : offset + len(initial)] = initial
            struct.pack_into("<QQQ", raw, at + 32, len(initial), len(initial), alignment)
    return bytes(raw)


def load_reserve(agent: Agent, scratch: Scratch, initial: bytes, alignment: int, timeout: float) -> int:
    """Load a reserve; returns its offset from the thread pointer (negative), the same in every thread.

    Raises:
        NotNow: the loader has no room left for it in static TLS (glibc.rtld.optional_static_tls), or cannot load now:
            somebody else was loading for ``timeout`` seconds.
    """
    process = agent.process
    if len(initial) > LARGEST or alignment > STRICTEST:
        raise NotNow(
            Reason(
                "tls-too-large",
                str(len(initial)),
                f"{len(initial)} bytes of new thread-locals are more than a process can take",
            )
        )
    modules = read_modules(process)
    libc = next((m for m in modules if m.name.startswith("libc.so")), None)
    dlopen = libc.define("dlopen", "") if libc else None
    if dlopen is None:
        raise NotNow(
            Reason("no-dlopen", str(process.pid), "the process has no dlopen (a C library older than glibc 2.34)")
        )
    wait_for_loader(process, modules, timeout)
    library = _library(initial, alignment)
    descriptor = agent.create_file("hotupgrade-reserve", [(0, library)], len(library))
    # The loader takes two libraries of one name for one: the number of "./" makes each name its own.
    unique = "./" * sum(m.path.startswith("/memfd:hotupgrade-reserve") for m in modules)
    name = scratch.put(f"/proc/self/{unique}fd/{descriptor}".encode() + b"\0")
    results = agent.run([call(dlopen.address, name, _RTLD_NOW), system_call(SYS_CLOSE, descriptor, fatal=False)])
    handle = results[0]
    now = read_modules(process)
    module = next((m for m in now if m.link_map == handle & 0xFFFFFFFFFFFFFFFF), None)
    block = tls_block(now, module)[1] if module else None
    if block is None:
        raise NotNow(
            Reason(
                "no-tls-room",
                str(process.pid),
                "the loader has no room left for new thread-locals in every thread's static block",
            )
        )
    return block
