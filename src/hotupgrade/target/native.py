"""The one seam to native code: the tracer library of the tool, and the agent's blob."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

from hotupgrade.errors import HotUpgradeError, NotNow, Reason
from hotupgrade.target import abi

_FOLDER = Path(__file__).resolve().parent.parent / "native"


def native_file(name: str) -> Path:
    """A native part that was built with the package.

    Raises:
        HotUpgradeError: it is missing: the package was installed without its build step.
    """
    path = _FOLDER / name
    if not path.is_file():
        raise HotUpgradeError(f"{path} is missing: build the native parts with 'make -C src/agent', or install a wheel")
    return path


@functools.cache
def _tracer() -> ctypes.CDLL:
    library = ctypes.CDLL(str(native_file("libtracer.so")), use_errno=True)
    library.hu_tsc.restype = ctypes.c_uint64
    library.hu_xsave_size.restype = ctypes.c_uint64
    library.hu_redirect.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint64,
        ctypes.c_int,
        ctypes.c_uint64,
        ctypes.c_uint64,
        ctypes.c_int64,
        ctypes.c_char_p,
    ]
    library.hu_call.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_uint64,
        ctypes.c_int,
        ctypes.c_uint64,
        ctypes.c_uint64,
        ctypes.c_char_p,
        ctypes.c_int64,
    ]
    return library


def time_stamp() -> int:
    """The processor's time-stamp counter; the same one that the target's threads read."""
    return int(_tracer().hu_tsc())


def xsave_size() -> int:
    """Bytes that XSAVE needs on this machine (CPUID leaf 0xd)."""
    return int(_tracer().hu_xsave_size())


@functools.cache
def agent_blob() -> tuple[abi.Header, bytes]:
    """The agent's header and its bytes."""
    blob = native_file("agent.bin").read_bytes()
    header = abi.Header.from_buffer_copy(blob)
    if header.magic != abi.MAGIC or header.abi != abi.ABI:
        raise HotUpgradeError("agent.bin is of another version than the Python part: build both again")
    return header, blob


def redirect(
    visits: ctypes.Array[abi.Visit],
    memory: int,
    entry: int,
    timeout_us: int,
    still: Iterable[int] | None = None,
) -> None:
    """Send threads to the agent's entry; the outcome of each is in its ``status``.

    ``memory``: a descriptor of the process's memory.  ``still``: the numbers of the system calls out of which alone a
    thread may be sent, and not while it waits for a lock; None: from anywhere.

    Blocks at most ``timeout_us``, and for threads that are late in
    coming three seconds more.

    Raises:
        NotNow: the helper that does it could not be started, or was killed.
    """
    if visits:
        header, blob = agent_blob()
        code = int.from_bytes(blob[header.enter : header.enter + 8], "little")
        calls = None if still is None else abi.set_of_calls(still)
        error = _tracer().hu_redirect(ctypes.byref(visits), len(visits), memory, entry, code, timeout_us, calls)
        if error:
            raise _no_helper(error)


def remote_calls(
    visit: abi.Visit,
    calls: Sequence[tuple[int, ...]],
    memory: int,
    syscall_at: int,
    sigreturn_at: int,
    name: str,
    timeout_us: int,
) -> list[int]:
    """Let one thread of the target make system calls, each ``(number, arguments...)``; their results, in order.

    If ``name`` is not empty, the first argument of the first call becomes a pointer to it.  A failing call ends the
    list.
    """
    table = (abi.RemoteCall * len(calls))()
    for row, (number, *arguments) in zip(table, calls, strict=True):
        row.number = number
        for index, argument in enumerate(arguments):
            row.args[index] = argument & 0xFFFFFFFFFFFFFFFF
    error = _tracer().hu_call(
        ctypes.byref(visit),
        ctypes.byref(table),
        len(calls),
        memory,
        syscall_at,
        sigreturn_at,
        name.encode(),
        timeout_us,
    )
    if error:
        raise _no_helper(error)
    return [ctypes.c_int64(row.result).value for row in table]


def _no_helper(error: int) -> NotNow:
    return NotNow(
        Reason(
            "no-helper",
            "",
            f"the helper process that traces could not be started, or was killed (errno {-error}); try again",
        )
    )
