"""What was measured on: without it no figure means anything."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import hotupgrade
from hotupgrade.vswitch.machine import field


def describe() -> dict[str, Any]:
    return {
        "processor": field("/proc/cpuinfo", "model name"),
        "hypervisor": "hypervisor" in field("/proc/cpuinfo", "flags").split(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_kb": int(field("/proc/meminfo", "MemTotal").split()[0]),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "compiler": _first_line("gcc", "--version"),
        "hotupgrade": hotupgrade.__version__,
        "load_at_start": os.getloadavg(),
    }


def stolen_and_busy() -> tuple[int, int]:
    """Ticks that the hypervisor and all programs have taken so far."""
    words = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    ticks = [int(word) for word in words]
    return ticks[7], sum(ticks[:3]) + sum(ticks[5:8])


def _first_line(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0]
    except (OSError, IndexError):
        return ""
