"""What the kernel says of the machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """The machine as it is now: what a figure that was measured on it needs beside it."""
    return {
        "processor": field("/proc/cpuinfo", "model name") or platform.machine(),
        "hypervisor": "hypervisor" in field("/proc/cpuinfo", "flags").split(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int(field("/proc/meminfo", "MemTotal").split()[0]) // 1024,
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
    }


def stolen_s() -> float:
    """Processor time that the hypervisor has given to others since boot, of all cores, in seconds.

    Source of the format: proc(5), ``/proc/stat``.
    """
    words = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(words[8]) / os.sysconf("SC_CLK_TCK")


def field(path: str, name: str) -> str:
    """The first value of that name in a file of "name: value" lines, such as /proc/cpuinfo; nothing if there is none.

    Raises:
        OSError: there is no such file.
    """
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
