"""What was measured on: without it no figure means anything."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import hotupgrade
from hotupgrade.vswitch import machine


def describe() -> dict[str, Any]:
    return {
        **machine.describe(),
        "python": platform.python_version(),
        "compiler": _first_line("gcc", "--version"),
        "hotupgrade": hotupgrade.__version__,
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
