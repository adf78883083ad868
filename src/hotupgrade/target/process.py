"""One process: identity, memory, threads.  Reading only, but for :meth:`Process.write`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from hotupgrade.errors import NotNow, Reason
from hotupgrade.target.maps import HIGHEST, Mapping, read_maps

#: Names of the system calls that threads are commonly found asleep in (arch/x86/entry/syscalls/syscall_64.tbl).
SYSTEM_CALLS = {
    0: "read", 7: "poll", 23: "select", 34: "pause", 35: "nanosleep", 43: "accept", 45: "recvfrom", 47: "recvmsg",
    61: "wait4", 128: "rt_sigtimedwait", 130: "rt_sigsuspend", 202: "futex", 208: "io_getevents",
    219: "restart_syscall", 230: "clock_nanosleep", 232: "epoll_wait", 247: "waitid", 270: "pselect6", 271: "ppoll",
    281: "epoll_pwait", 288: "accept4", 299: "recvmmsg", 426: "io_uring_enter", 441: "epoll_pwait2",
    449: "futex_waitv",
}  # fmt: skip


def gone(pid: int) -> NotNow:
    """The error for a process that does not exist (any more), or whose main thread does not."""
    with contextlib.suppress(OSError):
        if len(list(Path(f"/proc/{pid}/task").iterdir())) > 1 and main_has_ended(pid):
            return NotNow(
                Reason(
                    "main-ended",
                    str(pid),
                    f"process {pid}: its main thread has ended while others go on, so that the kernel does not show "
                    f"its memory any more; such a process cannot be upgraded",
                )
            )
    return NotNow(
        Reason("no-such-process", str(pid), f"there is no process {pid}: it has ended, or the number is wrong")
    )


def main_has_ended(pid: int) -> bool:
    """Is the process's main thread a zombie, or all of it gone?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2][0] in "ZX"
    except (OSError, IndexError):
        return True


def denied(pid: int, what: str) -> NotNow:
    """The error for a process that we may not touch."""
    return NotNow(
        Reason(
            "no-permission",
            str(pid),
            f"process {pid}: {what} is not permitted; run as root or as the user who may trace it",
        )
    )


class NoMemoryThere(NotNow, ValueError):
    """An address that the process does not have.

    Where the address was read from the process itself, this says that what it holds there is damaged.
    """

    def __init__(self, pid: int, size: int, address: int, what: str) -> None:
        text = f"process {pid}: {size} bytes at {address:#x} of its memory cannot be {what}; is it damaged, or ending?"
        super().__init__(Reason("no-memory-there", str(pid), text))


@dataclass(frozen=True, slots=True)
class ThreadState:
    """One thread, as ``/proc`` shows it at one moment."""

    tid: int
    name: str
    state: str  # R, S, D, T, t, Z, X
    system_call: int | None  # number; None while it runs
    sp: int | None
    pc: int | None
    blocked_signals: int  # bit n-1 for signal n
    cpu_ticks: int
    processor: int  # where it ran last

    @property
    def asleep(self) -> bool:
        return self.state == "S" and self.system_call is not None

    @property
    def activity(self) -> str:
        """The system call it is in, by name."""
        if self.system_call is None:
            return "running"
        return SYSTEM_CALLS.get(self.system_call, f"system call {self.system_call}")


class Process:
    """A handle on a running process; use as a context manager.

    The handle is bound to the process by an open directory descriptor: if the process ends and its number is given to
    another, every later access fails instead of reaching a stranger.

    Raises:
        NotNow: there is no such process, or it may not be traced by us.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._folder = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise gone(pid) from None
        try:
            self._memory = os.open("mem", os.O_RDWR | os.O_CLOEXEC, dir_fd=self._folder)
        except OSError as error:
            os.close(self._folder)
            if error.errno in (errno.EACCES, errno.EPERM):
                raise denied(pid, "reading its memory") from None
            raise gone(pid) from None
        self._locked = False

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._memory)
        os.close(self._folder)

    @property
    def memory(self) -> int:
        """A descriptor of its memory, which stays with the program that it runs now: after an exec it reaches none."""
        return self._memory

    def text(self, name: str) -> str:
        """The text of ``/proc/PID/NAME``."""
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
            with open(descriptor, "rb") as file:
                return file.read().decode(errors="surrogateescape")  # as it is: no newline but \n
        except (FileNotFoundError, ProcessLookupError):
            raise gone(self.pid) from None
        except PermissionError:
            raise denied(self.pid, f"reading /proc/{self.pid}/{name}") from None

    def open_memory_file(self, number: int, name: str) -> int:
        """Our own descriptor, for writing, of a memory file that the process has made for us.

        The number comes from the process, which could have put any file there that it may read; we may write many more.
        So the file is looked at, without being opened, before it is opened for anything.

        Raises:
            NotNow: the process is gone, or the file is another.
        """
        try:
            seen = os.open(f"fd/{number}", os.O_PATH | os.O_CLOEXEC, dir_fd=self._folder)
        except PermissionError:
            raise denied(self.pid, f"opening its file {number}") from None
        except OSError:
            raise gone(self.pid) from None
        try:
            status, place = os.fstat(seen), Path(f"/proc/self/fd/{seen}")
            nameless = stat.S_ISREG(status.st_mode) and status.st_nlink == 0
            if not nameless or str(place.readlink()) != f"/memfd:{name} (deleted)":
                text = f"process {self.pid} gave another file for the memory that it was asked for; leave it alone"
                raise NotNow(Reason("not-our-file", str(self.pid), text))
            return os.open(place, os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.close(seen)

    def lock(self) -> None:
        """Be the only hotupgrade that works on this process, until the handle is closed.

        The lock is on the process's ``/proc/PID/mem``: it needs no file, is the same from every mount namespace, ends
        with the process or with us, and only who may trace the process can take it.

        Raises:
            NotNow: another one is at work.
        """
        try:
            fcntl.flock(self._memory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotNow(
                Reason(
                    "busy",
                    str(self.pid),
                    f"another hotupgrade works on process {self.pid}; wait for it to end and try again",
                )
            ) from None

    @property
    def identity(self) -> int:
        """A number that no other process has, not even the one that this was forked from."""
        start_ticks = int(self.text("stat").rpartition(") ")[2].split()[19])
        return (start_ticks << 22 | self.pid) & 0xFFFFFFFFFFFFFFFF

    @property
    def name(self) -> str:
        return self.text("comm").strip()

    @property
    def executable(self) -> str:
        try:
            return os.readlink("exe", dir_fd=self._folder)
        except OSError:
            return ""

    def status(self) -> dict[str, str]:
        """``/proc/PID/status`` by key."""
        return dict(line.split(":\t", 1) for line in self.text("status").split("\n") if ":\t" in line)

    def maps(self) -> tuple[Mapping, ...]:
        try:
            maps = read_maps(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            raise gone(self.pid) from None
        except PermissionError:
            raise denied(self.pid, "reading its memory map") from None
        if not maps:
            raise gone(self.pid)
        return maps

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the process's memory.

        Raises:
            NotNow: the process is gone.
            NoMemoryThere: the range is not mapped.  (It is a ValueError too.)
        """
        if not 0 <= address <= HIGHEST:
            raise NoMemoryThere(self.pid, size, address, "read")
        chunks = []
        while size:
            try:
                chunk = os.pread(self._memory, min(size, 1 << 24), address)
            except OSError as error:
                raise NoMemoryThere(self.pid, size, address, "read") from error
            if not chunk:
                raise gone(self.pid)
            chunks.append(chunk)
            address += len(chunk)
            size -= len(chunk)
        return b"".join(chunks)

    def read_word(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")

    def present_pages(self, address: int, count: int) -> npt.NDArray[np.bool_]:
        """Which of ``count`` pages from ``address`` on hold something: present or swapped out (proc_pid_pagemap(5))."""
        try:
            descriptor = os.open("pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        except FileNotFoundError:
            raise gone(self.pid) from None
        with open(descriptor, "rb", buffering=0) as file:
            raw = os.pread(file.fileno(), 8 * count, address // 4096 * 8)
        entries = np.zeros(count, np.uint64)
        entries[: len(raw) // 8] = np.frombuffer(raw[: len(raw) // 8 * 8], np.uint64)
        held: npt.NDArray[np.bool_] = (entries >> np.uint64(62)) != 0
        return held

    def read_string(self, address: int, limit: int = 4096) -> str:
        """A NUL-terminated string of at most ``limit`` bytes."""
        text = b""
        while len(text) < limit and b"\0" not in text:
            step = min(256, 4096 - address % 4096, limit - len(text))
            text += self.read(address, step)
            address += step
        return text.split(b"\0", 1)[0].decode(errors="surrogateescape")

    def write(self, address: int, content: bytes) -> None:
        """Write to the process's memory.  Only ever used on memory that is ours: the agent's and what it mapped for
        us."""
        if not 0 <= address <= HIGHEST:
            raise NoMemoryThere(self.pid, len(content), address, "written")
        view = memoryview(content)
        while view:
            try:
                count = os.pwrite(self._memory, view, address)
            except OSError as error:
                raise NoMemoryThere(self.pid, len(view), address, "written") from error
            if count == 0:
                raise gone(self.pid)
            view = view[count:]
            address += count

    def thread_ids(self) -> list[int]:
        try:
            return sorted(int(entry.name) for entry in Path(f"/proc/{self.pid}/task").iterdir())
        except (FileNotFoundError, ProcessLookupError):
            raise gone(self.pid) from None

    def thread(self, tid: int) -> ThreadState | None:
        """One thread's state now; None if it has ended."""
        try:
            stat = self.text(f"task/{tid}/stat")
            where = self.text(f"task/{tid}/syscall").split()
            status = self.text(f"task/{tid}/status")
        except NotNow as problem:
            if problem.reason.code == "no-such-process":
                return None
            raise
        name, _, rest = stat[stat.index("(") + 1 :].rpartition(") ")
        fields = rest.split()
        blocked = re.search(r"^SigBlk:\s*([0-9a-f]+)", status, re.MULTILINE)
        number = sp = pc = None
        if len(where) >= 9:
            number, sp, pc = int(where[0]), int(where[7], 16), int(where[8], 16)
        return ThreadState(
            tid,
            name,
            fields[0],
            number if number is not None and number >= 0 else None,
            sp,
            pc,
            int(blocked[1], 16) if blocked else 0,
            int(fields[11]) + int(fields[12]),
            int(fields[36]),
        )

    def tracer(self, tid: int) -> int:
        """Who traces a thread; 0 if nobody does, or if it has ended."""
        try:
            found = re.search(r"^TracerPid:\s*(\d+)", self.text(f"task/{tid}/status"), re.MULTILINE)
        except NotNow as problem:
            if problem.reason.code == "no-permission":
                raise
            return 0
        return int(found[1]) if found else 0

    def threads(self) -> list[ThreadState]:
        return [state for tid in self.thread_ids() if (state := self.thread(tid)) is not None]

    def mapped_file(self, mapping: Mapping) -> Path:
        """A path by which the very file of a mapping can be opened, even if it was replaced or deleted on disk."""
        return Path(f"/proc/{self.pid}/map_files/{mapping.start:x}-{mapping.end:x}")
