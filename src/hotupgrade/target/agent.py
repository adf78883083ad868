"""The agent in one process: bring it there, give it work, read what it did."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hotupgrade.errors import HotUpgradeError, NotNow, Reason
from hotupgrade.target import abi, native
from hotupgrade.target.maps import Mapping, free_base, mapping_at
from hotupgrade.target.process import Process, ThreadState, denied, gone

#: The name that marks our mappings in /proc/PID/maps.
NAME = "hotupgrade"
AGENT_PATH = f"/memfd:{NAME}-agent (deleted)"

# System call numbers of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).
SYS_CLOSE, SYS_MMAP, SYS_MPROTECT, SYS_MUNMAP, SYS_MADVISE, SYS_MEMFD_CREATE = 3, 9, 10, 11, 28, 319
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_FIXED_NOREPLACE = 2, 0x10, 0x20, 0x100000
MFD_CLOEXEC = 1
MADV_DONTDUMP = 16

_SYSCALL_RET = b"\x0f\x05\xc3"
#: "mov $15, %rax; syscall": rt_sigreturn, as every C library has it for the return from signal handlers.
_SIGRETURN = b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05"

#: (219 is how the kernel goes on with an interrupted poll, nanosleep or futex.)  Asleep in one of these a thread
#: holds no lock of the C library, and the call can be made again.  Best first.
LEADER_CALLS = (7, 219, 271, 232, 281, 441, 230, 35, 23, 270, 202, 0, 43, 288, 45, 47, 61, 34, 128, 130)

#: Of those: poll and its like, in which a program's main loop waits for something to do, whatever it may be.
POLLING = frozenset((7, 219, 271, 232, 281, 441, 23, 270))

VISIT_TIMEOUT_US = 200_000
#: What functions of the program may need of a stack, in bytes.
_LEAST_STACK = 64 << 10
_LONGEST_NAME = 200  # bytes of the name of a memory file; the kernel takes 249
#: How much of one mapping is searched for instructions, and at once.
_MOST_SEARCHED, _PIECE = 64 << 20, 1 << 20
#: How long it is looked for a thread that sleeps, before one is interrupted that runs, in seconds.
SLEEPERS_FIRST = 0.05
#: How long a thread may take to leave the agent, in seconds.
IDLE_LIMIT = 2.0


@dataclass(frozen=True, slots=True)
class Operation:
    """One step that the agent takes on a thread of the target."""

    kind: abi.OpKind
    number: int = 0
    arguments: tuple[int, ...] = ()
    fatal: bool = True

    def pack(self) -> abi.Op:
        """As the agent reads it."""
        row = abi.Op(kind=self.kind, number=self.number, fatal=self.fatal)
        for index, argument in enumerate(self.arguments):
            row.args[index] = argument & 0xFFFFFFFFFFFFFFFF
        return row


def system_call(number: int, *arguments: int, fatal: bool = True) -> Operation:
    """Make a system call; if ``fatal``, a failure ends the list."""
    return Operation(abi.OpKind.SYSCALL, number, arguments, fatal)


def call(address: int, *arguments: int) -> Operation:
    """Call a function of the target."""
    return Operation(abi.OpKind.CALL, address, arguments)


def has_calls(operations: Iterable[Operation]) -> bool:
    """Whether functions of the target are called."""
    return any(operation.kind is abi.OpKind.CALL for operation in operations)


def leaders(threads: Iterable[ThreadState], main: int, only_main: bool = False) -> list[ThreadState]:
    """The threads that may run operations, best first: asleep in a call that holds no lock and can be made again."""
    order = {number: rank for rank, number in enumerate(LEADER_CALLS)}
    fit = [t for t in threads if t.asleep and t.system_call in order and (t.tid == main or not only_main)]
    # The main thread last of those that are equal: it is the one that is likely to be woken for something.
    return sorted(fit, key=lambda t: (order[t.system_call or 0], t.tid == main, t.cpu_ticks))


def runners(threads: Iterable[ThreadState]) -> list[ThreadState]:
    """The threads that may make system calls for us although they run, best first.

    Wherever they are interrupted, in a library's critical section or half-way through a computation: a system call
    takes no lock of the program's, and the agent keeps registers, flags, vector state and the red zone, as the kernel
    does for a signal handler.  A function of the program's they must not call.
    """
    return sorted((t for t in threads if t.state == "R"), key=lambda t: t.cpu_ticks)


def with_room(process: Process, threads: Iterable[ThreadState]) -> list[ThreadState]:
    """Those whose stack has room for a function of the program, and for the vector registers, which are kept meanwhile.

    The main thread's stack grows; and it comes first, as an allocator may open an arena for any other.
    """
    maps = process.maps()
    least = native.xsave_size() + _LEAST_STACK
    found = [t for t in threads if t.tid == process.pid or _room(maps, t.sp or 0) >= least]
    return sorted(found, key=lambda t: t.tid != process.pid)


def _room(maps: Sequence[Mapping], sp: int) -> int:
    mapping = mapping_at(maps, sp)
    return sp - mapping.start if mapping is not None else 0


def refuse_visit(pid: int, visit: abi.Visit) -> NotNow:
    """The error for a thread that could not be sent to the agent."""
    status = abi.VisitStatus(visit.status)
    if status is abi.VisitStatus.DENIED:
        return denied(pid, f"tracing thread {visit.tid} (is another debugger attached?)")
    words = {
        abi.VisitStatus.GONE: "has ended",
        abi.VisitStatus.LATE: "did not stop in time (it may be in an uninterruptible system call)",
        abi.VisitStatus.HALTED: "is stopped by a signal; let the process continue (SIGCONT) and try again",
        abi.VisitStatus.SIGNALLED: "is handling signals; try again",
        abi.VisitStatus.AWAKE: "was woken, or waits for a lock: it cannot be given functions to call; try again",
    }
    text = words.get(status, f"could not be redirected (errno {visit.detail})")
    return NotNow(Reason(f"thread-{status.name.lower()}", str(visit.tid), f"process {pid}: thread {visit.tid} {text}"))


def is_denied(process: Process, visit: abi.Visit) -> bool:
    """Did the kernel forbid the visit?  It says the same of a thread that has just ended."""
    state = process.thread(visit.tid) if visit.status == abi.VisitStatus.DENIED else None
    return state is not None and state.state not in "ZX"


class Agent:
    """The agent, present in a process.  Made by :func:`find` or :func:`inject`."""

    def __init__(self, process: Process, base: int) -> None:
        self.process = process
        self.base = base
        self.header, _ = native.agent_blob()
        self.mailbox_address = base + self.header.mailbox
        self._abandoned = False
        self.more_room = 0  # where a list of operations lies that is too long for the agent's own page
        box = self.mailbox()
        if box.magic != abi.MAGIC or box.abi != abi.ABI:
            raise NotNow(
                Reason(
                    "foreign-agent",
                    str(process.pid),
                    "the process holds the agent of another hotupgrade version; use that one",
                )
            )

    def adopt(self) -> None:
        """Forget what was under way when this process was forked off another: none of those threads is here.

        To be called under the process's lock, before the agent is given work.
        """
        if self.get("owner") != self.process.identity:
            self.set(state=abi.State.IDLE, inside=0, owner=self.process.identity)

    @property
    def entry(self) -> int:
        return int(self.base + self.header.enter)

    def mailbox(self) -> abi.Mailbox:
        """A copy of the mailbox as it is now."""
        return abi.Mailbox.from_buffer_copy(self.process.read(self.mailbox_address, ctypes.sizeof(abi.Mailbox)))

    def field_address(self, name: str) -> int:
        """The address of a mailbox field."""
        return int(self.mailbox_address + getattr(abi.Mailbox, name).offset)

    def set(self, **fields: int) -> None:
        """Write mailbox fields, in the order given."""
        for name, value in fields.items():
            self.process.write(self.field_address(name), value.to_bytes(8, "little"))

    def get(self, name: str) -> int:
        return self.process.read_word(self.field_address(name))

    def keep_off(self, processors: frozenset[int], thread: int) -> None:
        """Have operations run elsewhere than on these processors, as far as the thread that will run them may.

        A thread that wakes on the core of a polling loop would hold that up, for nothing.
        """
        try:
            allowed = os.sched_getaffinity(thread) - processors
        except OSError:
            allowed = set()
        words = [0] * abi.CPU_WORDS
        for processor in allowed if processors else ():
            if processor < 64 * abi.CPU_WORDS:
                words[processor // 64] |= 1 << processor % 64
        self.process.write(self.field_address("cpus"), b"".join(word.to_bytes(8, "little") for word in words))

    def write_operations(self, operations: Sequence[Operation], *, idle: bool = True) -> int:
        """Put a list of operations into the agent's page; returns the serial number that will mark its end.

        ``idle``: first wait until no thread is in the agent.
        """
        table = (abi.Op * len(operations))(*(operation.pack() for operation in operations))
        place = self._table if ctypes.sizeof(table) <= self._room else self.more_room
        if not place:
            raise HotUpgradeError(f"{len(operations)} operations do not fit into the agent's page")
        if idle:
            self._wait_idle()
        serial = self.get("serial") % (1 << 63) + 1
        self.process.write(place, bytes(table))
        self.set(ops=place, op_count=len(operations), serial=serial, xsave_size=native.xsave_size())
        return serial

    def _wait_idle(self) -> None:
        """Wait until no thread is in the agent."""
        limit = time.monotonic() + IDLE_LIMIT
        while self._abandoned or self.get("inside"):
            if self._abandoned or time.monotonic() > limit:
                self.abandon()
                raise NotNow(
                    Reason(
                        "unfinished",
                        str(self.process.pid),
                        f"process {self.process.pid}: a thread of it has not ended what it was given before (is "
                        f"it stopped by a signal?)",
                    )
                )
            time.sleep(0.0001)

    @property
    def _table(self) -> int:
        return int(self.mailbox_address) + 1024

    @property
    def _room(self) -> int:
        return int(self.base + self.header.total_size - self._table)

    def wait(self, serial: int, timeout: float) -> None:
        """Wait until the list with this serial number has ended.

        Raises:
            NotNow: it has not within ``timeout`` seconds.
        """
        limit = time.monotonic() + timeout
        while self.get("done") != serial:
            if time.monotonic() > limit:
                self.abandon()
                raise NotNow(
                    Reason(
                        "no-answer",
                        str(self.process.pid),
                        f"process {self.process.pid}: the agent did not end its work in time",
                    )
                )
            time.sleep(0.00005)

    def abandon(self) -> None:
        """Give the target no more work: a thread of it may still be busy with the last.  The next run tidies up."""
        self._abandoned = True

    def results(self, count: int) -> list[int]:
        """The results of the operations of the last list, as signed numbers."""
        table = (abi.Op * count).from_buffer_copy(self.process.read(self._table, count * ctypes.sizeof(abi.Op)))
        return [ctypes.c_int64(row.result).value for row in table]

    def run(
        self, operations: Sequence[Operation], *, only_main: bool = False, timeout: float = 5.0, idle: bool = True
    ) -> list[int]:
        """Have the operations made by one sleeping thread, whose system call then goes on.

        If none sleeps, one that runs is interrupted, unless functions are to be called.
        ``only_main``: by the main thread.  ``idle=False``: although others may be parked in the agent.

        Raises:
            NotNow: no thread could be used within the time limit.
        """
        begin = time.monotonic()
        limit = begin + timeout
        problem = NotNow(
            Reason(
                "no-thread",
                str(self.process.pid),
                f"process {self.process.pid}: {'the main thread is not' if only_main else 'no thread is'} asleep "
                f"in a system call "
                "that can be interrupted without a trace; try again",
            )
        )
        calls = has_calls(operations)
        serial = self.write_operations(operations, idle=idle)
        while time.monotonic() < limit:
            self.get("serial")  # raises if the process has become another program
            threads = self.process.threads()
            choice = leaders(threads, self.process.pid, only_main)
            if calls:
                choice = with_room(self.process, choice)
            elif not (choice or only_main) and time.monotonic() > begin + SLEEPERS_FIRST:
                choice = runners(threads)
            for thread in choice:
                visits = (abi.Visit * 1)()
                visits[0].tid, visits[0].lead = thread.tid, serial
                still = LEADER_CALLS if calls else None
                native.redirect(visits, self.process.memory, self.entry, VISIT_TIMEOUT_US, still)
                if visits[0].status == abi.VisitStatus.DONE:
                    self.wait(serial, max(limit - time.monotonic(), 0.5))
                    return self.results(len(operations))
                problem = refuse_visit(self.process.pid, visits[0])
                if visits[0].status == abi.VisitStatus.HALTED or is_denied(self.process, visits[0]):
                    raise problem
            time.sleep(0.002)
        raise problem

    def check(self, operations: Sequence[Operation], results: Sequence[int]) -> None:
        """Raise NotNow for the first system call that failed."""
        for operation, result in zip(operations, results, strict=True):
            if operation.kind is abi.OpKind.SYSCALL and operation.fatal and -4096 < result < 0:
                raise NotNow(
                    Reason(
                        "system-call-failed",
                        str(operation.number),
                        f"process {self.process.pid} may not make system call {operation.number} (errno {-result})",
                    )
                )

    def create_file(self, name: str, content: Iterable[tuple[int, bytes]], size: int) -> int:
        """Make an anonymous file in the process, with contents at offsets; returns the process's descriptor for it."""
        # The name's place: behind the operation table's first row.
        place = self._table + 2048
        name = name.encode()[:_LONGEST_NAME].decode(errors="ignore")
        self.process.write(place, name.encode() + b"\0")
        operation = system_call(SYS_MEMFD_CREATE, place, MFD_CLOEXEC)
        results = self.run([operation])
        self.check([operation], results)
        descriptor = self.process.open_memory_file(results[0], name)
        try:
            os.ftruncate(descriptor, size)
            for offset, piece in content:
                os.pwrite(descriptor, piece, offset)
        finally:
            os.close(descriptor)
        return results[0]


def find(process: Process) -> Agent | None:
    """The agent that is in the process already."""
    header, _ = native.agent_blob()
    parts = {(m.start, m.permissions) for m in process.maps() if m.path == AGENT_PATH}
    for start, permissions in sorted(parts):
        # Both parts, or it is one that a killed tool did not finish.
        if permissions == "r-xp" and (start + header.text_size, "rw-p") in parts:
            return Agent(process, start)
    return None


def inject(process: Process, timeout: float = 5.0) -> Agent:
    """Bring the agent into the process, or find it there.

    A memory file is made and mapped by one sleeping thread, or by one that is interrupted if none sleeps; the loader,
    the allocator and all other threads take no part.

    Raises:
        NotNow: no thread could be used, or the system calls are not permitted there.
    """
    present = find(process)
    if present:
        return present
    header, blob = native.agent_blob()
    maps = process.maps()
    gadgets = _find_gadgets(process)
    first = min(m.start for m in maps if m.path)
    base = free_base(maps, header.total_size, first, 0x7FFFFFFFF000)
    if base is None:
        raise NotNow(Reason("no-room", str(process.pid), "no free address space for the agent"))
    descriptor = _remote(process, [(SYS_MEMFD_CREATE, 0, MFD_CLOEXEC)], gadgets, f"{NAME}-agent", timeout)[0]
    ours = process.open_memory_file(descriptor, f"{NAME}-agent")
    try:
        os.ftruncate(ours, header.total_size)
        os.pwrite(ours, blob, 0)
        os.pwrite(ours, bytes(abi.Mailbox(magic=abi.MAGIC, abi=abi.ABI)), header.mailbox)
    finally:
        os.close(ours)
    text, total = int(header.text_size), int(header.total_size)
    read_execute, read_write = PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE
    _remote(
        process,
        [
            (SYS_MMAP, base, total, read_execute, MAP_PRIVATE | MAP_FIXED_NOREPLACE, descriptor, 0),
            (SYS_MMAP, base + text, total - text, read_write, MAP_PRIVATE | MAP_FIXED, descriptor, text),
            (SYS_CLOSE, descriptor),
        ],
        gadgets,
        "",
        timeout,
    )
    agent = find(process)
    if agent is None:
        raise NotNow(Reason("no-agent", str(process.pid), f"process {process.pid} did not map the agent"))
    return agent


def _remote(
    process: Process, calls: Sequence[tuple[int, ...]], gadgets: tuple[int, int], name: str, timeout: float
) -> list[int]:
    begin = time.monotonic()
    problem: NotNow | None = None
    while time.monotonic() < begin + timeout:
        process.read(gadgets[0], 1)  # raises if the process has become another program
        threads = process.threads()
        choice = leaders(threads, process.pid)
        if not choice and time.monotonic() > begin + SLEEPERS_FIRST:
            choice = runners(threads)
        for thread in choice:
            visit = abi.Visit(tid=thread.tid)
            results = native.remote_calls(visit, calls, process.memory, *gadgets, name, VISIT_TIMEOUT_US)
            if visit.status == abi.VisitStatus.DONE:
                for (number, *_), result in zip(calls, results, strict=True):
                    if -4096 < result < 0:
                        raise NotNow(
                            Reason(
                                "system-call-failed",
                                str(number),
                                f"process {process.pid} may not make system call {number} (errno {-result})",
                            )
                        )
                return results
            problem = refuse_visit(process.pid, visit)
            if visit.status == abi.VisitStatus.HALTED or is_denied(process, visit):
                raise problem
            if visit.status == abi.VisitStatus.FAILED:
                raise problem  # some of the calls may have been made: not again with the same arguments
        time.sleep(0.002)
    if problem is None:
        if not process.thread_ids():
            raise gone(process.pid)
        problem = NotNow(
            Reason(
                "no-thread",
                str(process.pid),
                f"process {process.pid}: no thread is asleep in a system call that can be interrupted without a "
                f"trace; try again",
            )
        )
    raise problem


def _find_gadgets(process: Process) -> tuple[int, int]:
    """Addresses of "syscall; ret" and of rt_sigreturn in the process's own code, the C library's for choice."""
    found: dict[bytes, int] = {}
    maps = [m for m in process.maps() if m.executable and m.path and not m.path.startswith("[vsyscall")]
    for mapping in sorted(maps, key=lambda m: "libc" not in m.path):
        for start in range(mapping.start, min(mapping.end, mapping.start + _MOST_SEARCHED), _PIECE):
            try:  # a piece, and as much of the next as an instruction may reach into it
                text = process.read(start, min(_PIECE + len(_SIGRETURN), mapping.end - start))
            except ValueError:
                break
            for pattern in (_SYSCALL_RET, _SIGRETURN):
                at = text.find(pattern)
                if at >= 0 and pattern not in found:
                    found[pattern] = start + at
            if len(found) == 2:
                return found[_SYSCALL_RET], found[_SIGRETURN]
    raise NotNow(
        Reason(
            "no-system-call",
            str(process.pid),
            f"process {process.pid}: no C library with rt_sigreturn was found in it; statically linked programs "
            f"of this kind are "
            "not supported",
        )
    )
