"""A command that ends, with what it took from the machine."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hotupgrade.errors import NotNow, Reason

_PAUSE_S = 0.005


@dataclass(frozen=True, slots=True)
class Ran:
    """``memory_kb``: the most that it had in memory at a time, shared or not, in KiB, as last seen some milliseconds
    before its end; ``cpu_s``: seconds of a core."""

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
        deadline, memory = time.monotonic() + limit_s, 0
        while True:
            memory = max(memory, _peak_kb(process.pid))
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
    return Ran(process.returncode, said[0], said[1], memory, used.ru_utime + used.ru_stime)


def _peak_kb(pid: int) -> int:
    """Not what wait4 says: that counts the memory of whoever started the process, too, which was its own up to exec."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) if found else 0
