"""On what was measured, and with which versions: without it no figure means anything."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import hotupgrade
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.machine import field

Document = dict[str, Any]


def machine() -> Document:
    """The machine as it is now."""
    return {
        "processor": field("/proc/cpuinfo", "model name") or platform.machine(),
        "hypervisor": "hypervisor" in field("/proc/cpuinfo", "flags").split(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int(field("/proc/meminfo", "MemTotal").split()[0]) // 1024,
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
    }


def versions(old: SwitchBuild, new: SwitchBuild) -> Document:
    """Of what runs; ``openvswitch`` and ``dpdk`` by the switch's own word."""
    text = _switch_version(old)
    return {
        "hotupgrade": hotupgrade.__version__,
        "openvswitch": _found(r"Open vSwitch\) (\S+)", text),
        "dpdk": _found(r"DPDK (\S+)", text),
        "python": platform.python_version(),
        "old": old.name,
        "new": new.name,
    }


def stolen_s() -> float:
    """Processor time that the hypervisor has given to others since boot, of all cores, in seconds."""
    words = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(words[8]) / os.sysconf("SC_CLK_TCK")


def _switch_version(build: SwitchBuild) -> str:
    command = [str(build.program("ovs-vswitchd")), "--version"]
    done = subprocess.run(
        command, env=build.environment(Path("/nonexistent")), capture_output=True, text=True, timeout=60
    )
    return done.stdout


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else "not known"
