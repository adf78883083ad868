"""Runs the real command step by step, and kills it before a step of our choice.

The tool acts on the target, and on what it records, through system calls alone: it shares no memory with it.  Between
two calls that can act it may compute what it likes; killed there, it leaves what it would leave if it was killed
just before the second.  So "before each call that can act" is every moment at which a kill can differ from another.
Such a call is a *step*; which calls are steps is said the other way round, by the list of those that cannot act
(:data:`HARMLESS`): a call that nobody thought of is a step.

How it is done: the command runs in a child of a process that has imported it already (nothing that happens during the
import concerns the target), under a filter that reports each step to that process, which traces its child.  The
native parts are under the filter like the rest.  Waiting again for what did not come is no new step.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: System calls that reach neither the target nor our records: they read, or concern the tool alone.  What the death
#: of a process does anyway (closing, unmapping, unlocking) is no step of its own either.
HARMLESS = {
    "read": 0, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10,
    "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "ioctl": 16, "pread64": 17,
    "readv": 19, "access": 21, "pipe": 22, "mremap": 25, "madvise": 28, "dup": 32, "dup2": 33, "setitimer": 38,
    "getpid": 39,
    "uname": 63, "fcntl": 72, "getcwd": 79, "readlink": 89, "getrlimit": 97, "getrusage": 98, "sysinfo": 99,
    "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "sigaltstack": 131, "prctl": 157,
    "arch_prctl": 158, "gettid": 186, "futex": 202, "sched_getaffinity": 204, "getdents64": 217,
    "set_tid_address": 218, "clock_gettime": 228, "clock_getres": 229, "mbind": 237, "newfstatat": 262,
    "readlinkat": 267, "faccessat": 269, "set_robust_list": 273, "dup3": 292, "pipe2": 293, "prlimit64": 302,
    "process_vm_readv": 310, "getrandom": 318, "membarrier": 324, "statx": 332, "rseq": 334, "faccessat2": 439,
}  # fmt: skip
_OPENAT, _WRITING = 257, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
#: Calls that wait: made again and again until something has come.
_WAITING = {35, 61, 230, 247}
_NAMES = {
    1: "write", 18: "pwrite64", 35: "nanosleep", 56: "clone", 60: "exit", 61: "wait4", 62: "kill", 73: "flock",
    74: "fsync", 77: "ftruncate", 82: "rename", 83: "mkdir", 87: "unlink", 101: "ptrace", 112: "setsid",
    203: "sched_setaffinity", 230: "clock_nanosleep", 231: "exit_group", 247: "waitid", 257: "openat", 258: "mkdirat",
    263: "unlinkat", 264: "renameat", 311: "process_vm_writev", 316: "renameat2", 435: "clone3",
}  # fmt: skip
_REQUESTS = {
    7: "CONT", 12: "GETREGS", 13: "SETREGS", 14: "GETFPREGS", 17: "DETACH", 24: "SYSCALL", 0x4200: "SETOPTIONS",
    0x4206: "SEIZE", 0x4207: "INTERRUPT", 0x4209: "PEEKSIGINFO", 0x420A: "GETSIGMASK", 0x420B: "SETSIGMASK",
}  # fmt: skip

_TRACEME, _CONT, _GETREGS, _SETOPTIONS, _GETEVENTMSG = 0, 7, 12, 0x4200, 0x4201
_OPTIONS = 0x2 | 0x4 | 0x8 | 0x80 | 0x100000  # report fork, vfork, clone, seccomp; end with us
_EVENT_SECCOMP = 7
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_LIBC.ptrace.restype = ctypes.c_long


@dataclass(frozen=True)
class Run:
    """One run of the command under the tracer."""

    steps: int  # that were begun
    killed: str  # the step before which it was killed or held; "" if it ended earlier
    code: int
    out: str
    seconds: float

    @property
    def document(self) -> dict[str, Any]:
        return dict(json.loads(self.out)) if self.out.strip() else {}


class Stepper:
    """A process that runs the command step by step; a context manager."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Stepper:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=10)

    def run(
        self,
        *words: object,
        kill_at: int = -1,
        only: str = "",
        meanwhile: Callable[[], None] | None = None,
        everything: bool = False,
        hold: float = 0.0,
        limit: float = 60,
    ) -> Run:
        """Run ``hotupgrade WORDS``.

        Args:
            kill_at: the number of the step before which the tool is killed; -1: none.
            only: count only steps whose name begins with this.
            meanwhile: something else to be done there instead of killing it; then it goes on.
            everything: kill what the tool has started along with it, as the end of a whole control group does.
            hold: seconds to keep the tool in that place first, so that the target gets as far as it can.
            limit: seconds.
        """
        order = {
            "words": [str(w) for w in words], "kill_at": kill_at, "kill": meanwhile is None, "everything": everything,
            "hold": hold, "only": only,
        }  # fmt: skip
        begin = time.monotonic()
        line = self._say(json.dumps(order), limit)
        if line == "held\n":
            assert meanwhile is not None
            meanwhile()
            line = self._say("go on", limit)
        return Run(**json.loads(line), seconds=time.monotonic() - begin)

    def _say(self, line: str, limit: float) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        assert select.select([self._process.stdout], [], [], limit)[0], f"{line} was not answered within {limit} s"
        answer = self._process.stdout.readline()
        assert answer, f"the stepper ended with {self._process.wait(10)}"
        return answer


# What follows runs in the stepper's process.


def _filter() -> ctypes.Array[ctypes.c_char]:
    """The program that allows what is harmless and reports everything else (struct sock_filter[])."""
    allow, report = 0x7FFF0000, 0x7FF00000
    rows = [(0x20, 0, 0, 0)]  # the call's number
    rows += [(0x15, 0, 1, _OPENAT), (0x05, 0, 0, len(HARMLESS) * 2 + 1)]  # to the look at the flags
    for number in HARMLESS.values():
        rows += [(0x15, 0, 1, number), (0x06, 0, 0, allow)]
    rows += [(0x06, 0, 0, report)]
    rows += [(0x20, 0, 0, 32), (0x45, 1, 0, _WRITING), (0x06, 0, 0, allow), (0x06, 0, 0, report)]
    return ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *row) for row in rows))


def _install_filter() -> None:
    rows = _filter()
    count = (len(rows) - 1) // 8
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", count, ctypes.addressof(rows)))
    no_new_privileges, set_seccomp, by_filter = 38, 22, 2
    if os.geteuid() != 0:
        _LIBC.prctl(no_new_privileges, 1, 0, 0, 0)
    if _LIBC.prctl(set_seccomp, by_filter, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def _ptrace(request: int, tid: int, data: Any = None) -> int:
    return int(_LIBC.ptrace(request, tid, None, data))


def _be_the_tool(words: list[str], out: int) -> None:
    """In the child: become traced, then run the command."""
    from hotupgrade.cli import main

    code = 1
    try:
        os.dup2(out, 1)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        _ptrace(_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        _install_filter()
        main(words, standalone_mode=False)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _step(tid: int) -> tuple[int, str]:
    """The system call that a stopped thread is about to make: number and name."""
    registers = (ctypes.c_uint64 * 27)()
    _ptrace(_GETREGS, tid, ctypes.addressof(registers))
    number, first = registers[15], registers[14]
    name = _NAMES.get(number, f"system call {number}")
    return number, f"{name} {_REQUESTS.get(first, first)}" if name == "ptrace" else name


def _group(tid: int) -> int:
    for line in Path(f"/proc/{tid}/status").read_text().splitlines():
        if line.startswith("Tgid:"):
            return int(line.split()[1])
    return tid


def _drive(order: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out:
        tool = os.fork()
        if tool == 0:
            _be_the_tool(order["words"], out.fileno())
        os.waitpid(tool, 0x40000000)
        _ptrace(_SETOPTIONS, tool, _OPTIONS)
        _ptrace(_CONT, tool)
        steps, killed, code, last = 0, "", -1, {}
        while True:
            try:
                tid, status = os.waitpid(-1, 0x40000000)
            except ChildProcessError:
                break
            if not os.WIFSTOPPED(status):
                if tid == tool:
                    code = os.waitstatus_to_exitcode(status)
                continue
            event, number = status >> 16, os.WSTOPSIG(status)
            if event == _EVENT_SECCOMP:
                call, name = _step(tid)
                if not (call in _WAITING and last.get(tid) == call) and name.startswith(order["only"]):
                    if steps == order["kill_at"]:
                        killed = f"{name} in {'a helper' if _group(tid) != tool else 'the tool'}"
                        if not order["kill"]:
                            sys.stdout.write("held\n")
                            sys.stdout.flush()
                            sys.stdin.readline()
                        time.sleep(order["hold"])
                        if order["kill"]:
                            _kill(tool, everything=order["everything"])
                    steps += 1
                last[tid] = call
            deliver = number if event == 0 and number not in (signal.SIGTRAP, signal.SIGSTOP) else 0
            _ptrace(_CONT, tid, deliver)
        out.seek(0)
        return {"steps": steps, "killed": killed, "code": code, "out": out.read().decode()}


def _kill(tool: int, *, everything: bool) -> None:
    """SIGKILL to the tool; also to the processes that it started, if so ordered."""
    mine = {tool}
    if everything:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if f"\nTracerPid:\t{os.getpid()}\n" in (entry / "status").read_text():
                        mine.add(int(entry.name))
    for pid in mine:
        os.kill(pid, signal.SIGKILL)


def _serve() -> None:
    import hotupgrade.binary.cache
    import hotupgrade.upgrade.look
    import hotupgrade.upgrade.perform
    import hotupgrade.upgrade.rollback  # noqa: F401

    while line := sys.stdin.readline():
        answer = _drive(json.loads(line))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
