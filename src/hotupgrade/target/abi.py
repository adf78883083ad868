"""The memory layout that the agent and the tool share: a mirror of ``src/agent/abi.h``.

Every field is a 64-bit word, so that no compiler's padding has to be known.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Iterable

MAGIC = 0x3165646172677075
ABI = 3
ON_ALTERNATE = 2  # of enum hu_arrival
CPU_WORDS = 16
CALL_WORDS = 8

_U64 = ctypes.c_uint64


class State(enum.IntEnum):
    IDLE = 0
    STOPPING = 1
    COMMITTING = 2
    COMMITTED = 3
    ABORTED = 4


class StopReason(enum.IntEnum):
    """Why the agent gave a stop up."""

    OK = 0
    LATE = 1
    ACTIVE = 2
    GONE = 3
    STRANGER = 4
    MISMATCH = 5
    NO_TASK_FD = 6
    NO_HANDLER = 7
    NO_STACK = 8
    HOOK = 9
    ASLEEP = 10
    ELSEWHERE = 11
    OCCUPIED = 12


class OpKind(enum.IntEnum):
    SYSCALL = 1
    CALL = 2
    TOUCH_READ = 3
    TOUCH_WRITE = 4
    STOP = 5
    STORE = 6
    ASK = 7
    LAND = 8
    ENTER = 9
    ARRIVE = 10
    REVOKE = 11
    SKIP = 12
    END = 13
    EXPECT = 14


class MoveState(enum.IntEnum):
    """Where a thread is that is led out of its loop (``enum hu_move_state``)."""

    FREE = 0
    WAITING = 1
    LEAVING = 2
    LANDED = 3
    ENTERED = 4
    ARRIVED = 5
    REVOKED = 6
    STAYED = 7


class SiteKind(enum.IntEnum):
    CLEAN = 1
    SETUP = 2
    WORK = 3


class Stamp(enum.IntEnum):
    BEGIN = 0
    PARKED = 1
    CHECKED = 2
    STOPPED = 3
    SYNCED = 4
    REPLACED = 5
    RELEASED = 6
    CLEANED = 7


class VisitStatus(enum.IntEnum):
    PENDING = 0
    DONE = 1
    GONE = 2
    DENIED = 3
    LATE = 4
    HALTED = 5
    SIGNALLED = 6
    FAILED = 7
    AWAKE = 8


def set_of_calls(numbers: Iterable[int]) -> bytes:
    """System calls as the native parts have them: a bit for each, ``CALL_WORDS`` words."""
    return sum(1 << number for number in numbers).to_bytes(8 * CALL_WORDS, "little")


def _words(*names: str) -> list[tuple[str, type[_U64]]]:
    return [(name, _U64) for name in names]


class Header(ctypes.Structure):
    _fields_ = _words(
        "magic", "abi", "enter", "handler", "restorer", "mailbox", "text_size", "total_size", "landing", "site"
    )


class Thread(ctypes.Structure):
    _fields_ = [
        *_words("tid", "busy", "tcb", "sp", "pc", "parked", "released", "arrived", "loop", "live"),
        ("spare", _U64 * 6),
    ]


class Range(ctypes.Structure):
    _fields_ = _words("low", "high", "loop")


class Edit(ctypes.Structure):
    _fields_ = _words("address", "old", "new")


class Op(ctypes.Structure):
    _fields_ = [*_words("kind", "number"), ("args", _U64 * 6), *_words("result", "fatal")]


class Move(ctypes.Structure):
    """A thread that is led out of its loop (``struct hu_move``)."""

    _fields_ = [
        *_words("state", "tid", "tcb", "slot", "back", "drop"),
        ("kept", _U64 * 6),
        *_words("entry", "argument", "together", "works", "leaving", "clears"),
        ("clear_address", _U64 * 2),
        ("clear_size", _U64 * 2),
        ("clear_value", _U64 * 2),
        *_words("cleaned", "set_up", "patience_ns", "asked", "worked", "left", "entered", "arrived", "code"),
    ]


class Site(ctypes.Structure):
    """A call in a loop that comes by the agent first (``struct hu_site``)."""

    _fields_ = _words("real", "kind", "pair", "alone", "returns", "value")


class Mailbox(ctypes.Structure):
    _fields_ = [
        *_words(
            "magic",
            "abi",
            "state",
            "deadline_tsc",
            "deadline_ns",
            "busy_limit",
            "sleepers",
            "sleepers_in",
            "search",
            "busy",
            "busy_in",
        ),
        *_words(
            "threads", "thread_count", "watches", "watch_count", "watch_low", "watch_high", "stacks", "stack_count"
        ),
        *_words("excuses", "excuse_count", "main_stack", "edits", "edit_count", "sync_count", "hooks", "hook_count"),
        *_words("signal", "expected_threads", "task_fd"),
        *_words("reason", "reason_tid", "reason_address"),
        ("stamps", _U64 * len(Stamp)),
        *_words("ops", "op_count", "serial", "taken", "done", "xsave_size", "ledger"),
        *_words("inside", "leader_in", "leader_out", "owner"),
        ("cpus", _U64 * CPU_WORDS),
        *_words("moves", "move_count", "sites", "hold"),
        ("calls", _U64 * CALL_WORDS),
        *_words("landed"),
    ]


class Frame(ctypes.Structure):
    """What a thread that was sent to the agent has below its red zone."""

    _fields_ = _words(
        *("lead", "thread", "mask", "error", "resume_after"),
        *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
        *("rflags", "rip"),
    )

    def registers(self, sp: int) -> dict[int, int]:
        """By DWARF number (System V ABI for AMD64, figure 3.36); the stack pointer is not in the frame itself."""
        order = [
            "rax",
            "rdx",
            "rcx",
            "rbx",
            "rsi",
            "rdi",
            "rbp",
            "-",
            "r8",
            "r9",
            "r10",
            "r11",
            "r12",
            "r13",
            "r14",
            "r15",
        ]
        return {number: sp if name == "-" else int(getattr(self, name)) for number, name in enumerate(order)}


#: Bytes below a stack pointer that a function may use without moving it (System V ABI for AMD64, 3.2.2).
RED_ZONE = 128


class Visit(ctypes.Structure):
    """One thread that the tracer is to send to the agent (``struct visit`` of tracer.c)."""

    _fields_ = _words("tid", "lead", "thread", "status", "detail", "sp", "pc", "number")


class RemoteCall(ctypes.Structure):
    _fields_ = [("number", _U64), ("args", _U64 * 6), ("result", _U64)]
