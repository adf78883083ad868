"""Busy threads: which they are, the signal that stops them, and how to stay out of their way."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

from hotupgrade.errors import NotNow, Reason
from hotupgrade.target.agent import Agent
from hotupgrade.target.process import ThreadState

#: Polling loops rarely stand deeper in their stacks than this, in bytes.
_STACK_DEPTH = 256 << 10
#: The real-time signals that glibc leaves to programs: 34 to 64, as bits.
_REAL_TIME = (2**64 - 1) >> 33 << 33


def busy_threads(agent: Agent, samples: int = 4, pause: float = 0.003) -> frozenset[int]:
    """The threads that are never seen asleep: a datapath's polling loops."""
    process = agent.process
    always: set[int] | None = None
    for index in range(samples):
        if index:
            time.sleep(pause)
        running = {t.tid for t in process.threads() if t.state == "R" and t.system_call is None}
        always = running if always is None else always & running
        if not always:
            break
    return frozenset(always or ())


def touch_stacks(agent: Agent) -> None:
    """Have the upper ends of all thread stacks present in the target's page table.

    A busy thread scans its own stack in the stop.  What a frame has reserved but never written (arrays for packets)
    is not mapped yet, and the first look at each page costs a fault.  Reading it from here makes the kernel map its
    zero page.
    """
    before = None
    for mapping in agent.process.maps():
        is_stack = mapping.path == "" and mapping.writable and before is not None and before.permissions[:3] == "---"
        if is_stack and before is not None and before.end == mapping.start:
            size = min(mapping.size, _STACK_DEPTH)
            with contextlib.suppress(ValueError):
                agent.process.read(mapping.end - size, size)
        before = mapping


def stay_off(processors: frozenset[int]) -> None:
    """Keep our own process off the cores of busy threads, if it may run on others."""
    allowed = os.sched_getaffinity(0)
    if processors & allowed and allowed - processors:
        os.sched_setaffinity(0, allowed - processors)


def free_signal(agent: Agent, threads: Iterable[ThreadState]) -> int:
    """A signal that the program neither handles, ignores, waits for (blocks) nor has pending.

    SIGURG for choice: should the process execute another program before a thread has handled it, that program ignores
    it; a real-time signal would end it.  A thread that blocks all real-time signals waits for none of them.

    Raises:
        NotNow: there is none.
    """
    status = agent.process.status()
    taken = 0
    for key in ("SigCgt", "SigIgn", "SigPnd", "ShdPnd"):
        taken |= int(status.get(key, "0").strip(), 16)
    for thread in threads:
        if (thread.blocked_signals & _REAL_TIME) != _REAL_TIME:
            taken |= thread.blocked_signals
    for number in (signal.SIGURG, *range(63, 34, -1)):
        if not taken >> (number - 1) & 1:
            return int(number)
    raise NotNow(
        Reason(
            "no-signal",
            str(agent.process.pid),
            "every real-time signal is used or blocked by the program; none is left to stop threads with",
        )
    )
