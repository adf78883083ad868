"""What processes cost, as the kernel says it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hotupgrade.vswitch.compare.usage import Usage, memory, usage

ROLLUP = """55d0c0a00000-7ffd2a9f9000 ---p 00000000 00:00 0                          [rollup]
Rss:               41236 kB
Pss:               30000 kB
Shared_Clean:      10000 kB
Shared_Dirty:          5 kB
Private_Clean:      1000 kB
Private_Dirty:     20000 kB
Shared_Hugetlb:    98304 kB
Private_Hugetlb:    2048 kB
"""
LITTLE = 0.2


def test_hugepages_are_no_private_memory() -> None:
    assert memory(ROLLUP) == (21_000, 2048, 98_304)


def test_what_is_more() -> None:
    assert Usage(5, 7, 2).beyond(Usage(1, 10, 1)) == Usage(4, -3, 1)


def test_threads_that_never_sleep_are_counted() -> None:
    """Two programs, of which one polls; whether the two, and all others, have cores enough does not matter."""
    spins = "print(flush=True)\nwhile True: pass"
    sleeps = "import time\nprint(flush=True)\ntime.sleep(60)"
    programs = [
        subprocess.Popen([sys.executable, "-S", "-c", text], stdout=subprocess.PIPE) for text in (spins, sleeps)
    ]
    try:
        for program in programs:
            assert program.stdout is not None
            program.stdout.readline()
        found = usage([program.pid for program in programs], LITTLE)
        assert found.polling == 1
        assert 1000 < found.private_kb < 200_000
        assert found.hugepages_kb == 0
        assert usage([programs[1].pid], LITTLE).polling == 0
    finally:
        for program in programs:
            program.kill()
            program.wait()
            assert program.stdout is not None
            program.stdout.close()


def test_nothing_costs_nothing() -> None:
    assert usage([], 0.0) == Usage()


def test_a_process_that_is_gone() -> None:
    program = subprocess.Popen([sys.executable, "-S", "-c", ""])
    program.wait()
    with pytest.raises(OSError, match="No such file"):
        usage([program.pid], 0.0)
