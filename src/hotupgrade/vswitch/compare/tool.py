"""A command that ends, with what it took from the machine."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hotupgrade.errors import NotNow, Reason

_PAUSE_S = 0.005


@dataclass(frozen=True, slots=True)
class Ran:
    """``memory_kb``: the most that it had in memory at a time, shared or not, in KiB; ``cpu_s``: seconds of a core."""

    code: int
    output: str
    errors: str
    memory_kb: int
    cpu_s: float


def run_tool(words: Sequence[str], limit_s: float) -> Ran:
    """Run it to its end.

    Raises:
        NotNow: it took longer than ``limit_s`` seconds, and was ended.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        deadline = time.monotonic() + limit_s
        while True:
            # Not Popen.wait(): only the call that reaps a process is told what it used.
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                break
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise NotNow(Reason("tool", words[0], f"{' '.join(words)}: no end within {limit_s:g} s"))
            time.sleep(_PAUSE_S)
        said = []
        for file in (output, errors):
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
    return Ran(process.returncode, said[0], said[1], used.ru_maxrss, used.ru_utime + used.ru_stime)
