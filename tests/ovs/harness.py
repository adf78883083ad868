"""Drives the command line on a real switch, and looks whether the switch goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hotupgrade.vswitch import baseline, vulnerability
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.demo import LIBRARIES, run_hotupgrade
from hotupgrade.vswitch.switch import Switch

Document = dict[str, Any]

ATTEMPT_SECONDS = 150.0  # on a crowded machine, beside what polls for ever


def files(build: SwitchBuild) -> list[str]:
    return [str(build.library(name)) for name in LIBRARIES]


def attempt(command: str, switch: Switch, *words: str) -> tuple[int, Document]:
    """Run a command that may end otherwise than well; its exit code and its document."""
    arguments = [sys.executable, "-m", "hotupgrade.cli", command, str(switch.pid), *words, "--json"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=ATTEMPT_SECONDS)
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return done.returncode, document


def upgrade(switch: Switch, *words: str) -> Document:
    document = run_hotupgrade(["upgrade", str(switch.pid), *words, "--json"])
    assert document["outcome"] == "done", document["reasons"]
    return document


def rollback(switch: Switch) -> Document:
    document = run_hotupgrade(["rollback", str(switch.pid), "--json"])
    assert document["outcome"] == "done", document["reasons"]
    return document


def holes(switch: Switch) -> list[bool]:
    """For every probe whether the switch is vulnerable."""
    return [finding.vulnerable for finding in vulnerability.examine(switch)]


ALL, NONE = [True] * len(vulnerability.PROBES), [False] * len(vulnerability.PROBES)


def check_goes_on(before: baseline.Baseline, switch: Switch, *, same_threads: bool = True) -> None:
    """It is the same switch, and packets flow."""
    wrong = [fact for fact in baseline.compare(before, baseline.take(switch)) if not fact.ok]
    assert not [fact for fact in wrong if same_threads or fact.name != "threads"]


def check_forwards(switch: Switch) -> None:
    rate = switch.rate(0.4)
    assert rate.packets > 1000, rate
    assert switch.alive


def check_log(log: str) -> None:
    """Nothing that a program says when it falls over."""
    wrong = ("|EMER|", "assertion", "Segmentation", "SIGSEGV", "terminated by", "double free", "corrupt", "panic")
    assert [line for line in log.splitlines() if any(word in line for word in wrong)] == []


def mappings(switch: Switch) -> list[str]:
    """Mappings of files: anonymous ones come and go with the program's own work."""
    lines = Path(f"/proc/{switch.pid}/maps").read_text().splitlines()
    return [line for line in lines if len(line.split()) > 5 and not line.split()[5].startswith("[")]


def size(switch: Switch) -> dict[str, int]:
    process = Path(f"/proc/{switch.pid}")
    private = sum(
        int(line.split()[1])
        for line in (process / "smaps_rollup").read_text().splitlines()
        if line.startswith(("Private_Clean", "Private_Dirty"))
    )
    return {
        "maps": len((process / "maps").read_text().splitlines()),
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": len(switch.threads()),
        "private_kb": private,
    }
