"""Which versions were measured: without them no figure means anything."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import hotupgrade
from hotupgrade.vswitch.builds import SwitchBuild

Document = dict[str, Any]


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


def _switch_version(build: SwitchBuild) -> str:
    command = [str(build.program("ovs-vswitchd")), "--version"]
    done = subprocess.run(
        command, env=build.environment(Path("/nonexistent")), capture_output=True, text=True, timeout=60
    )
    return done.stdout


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else "not known"
