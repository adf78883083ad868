"""Functions of the program are called only where that can do no harm: not in the midst of the allocator."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hotupgrade.errors import NotNow
from hotupgrade.target import abi, native
from hotupgrade.target.agent import LEADER_CALLS, Agent, call, inject
from hotupgrade.target.process import Process
from live.harness import Builder, until

LIMIT_US = 500_000
SIZE = 5000  # more than a thread keeps for itself: it takes the allocator's lock


@contextmanager
def running(build: Builder, what: str) -> Iterator[tuple[Agent, int]]:
    """The agent in a program whose main thread is somewhere, and the address of a function that allocates."""
    words = [build.program("called", "-pthread"), what]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            address = int(program.stdout.readline(), 16)
            with Process(program.pid) as process:
                yield inject(process), address
            assert program.poll() is None
        finally:
            program.kill()


def visit(agent: Agent, address: int) -> abi.VisitStatus:
    """Send the main thread there, wherever it is."""
    serial = agent.write_operations([call(address, SIZE)])
    visits = (abi.Visit * 1)()
    visits[0].tid, visits[0].lead = agent.process.pid, serial
    native.redirect(visits, agent.process.memory, agent.entry, LIMIT_US, LEADER_CALLS)
    status = abi.VisitStatus(visits[0].status)
    if status is abi.VisitStatus.DONE:
        agent.wait(serial, 5)
        assert agent.results(1) == [SIZE + 1]
    else:
        assert agent.get("taken") != serial
    return status


def system_call(pid: int) -> str:
    return Path(f"/proc/{pid}/syscall").read_text().split()[0]


@pytest.mark.parametrize(
    ("what", "number", "status"),
    [
        ("polls", "7", abi.VisitStatus.DONE),
        ("joins", "202", abi.VisitStatus.DONE),
        ("waits", "202", abi.VisitStatus.DONE),
        ("locks", "202", abi.VisitStatus.AWAKE),
        ("spins", "running", abi.VisitStatus.AWAKE),
    ],
)
def test_where_a_thread_must_be(build: Builder, what: str, number: str, status: abi.VisitStatus) -> None:
    with running(build, what) as (agent, address):
        for _ in range(3):
            if number != "running":
                until(lambda: system_call(agent.process.pid) in (number, "219"))
            assert visit(agent, address) is status
        if number != "running":
            until(lambda: system_call(agent.process.pid) in (number, "219"))


def test_a_main_thread_that_wakes_all_the_time(build: Builder) -> None:
    """What was seen asleep a moment ago may hold the allocator's lock by now: then it is asked another time."""
    with running(build, "mixed") as (agent, address):
        limit, done, codes = time.monotonic() + 15, 0, set[str]()
        while done < 300 and time.monotonic() < limit:
            try:
                assert agent.run([call(address, SIZE)], only_main=True, timeout=1) == [SIZE + 1]
                done += 1
            except NotNow as error:
                codes.add(error.reason.code)
        assert codes <= {"thread-awake", "no-thread"}
        assert done >= 20
