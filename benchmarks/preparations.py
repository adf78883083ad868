"""How long it takes to prepare an upgrade, with nothing known of either build and with both known: a dry run in a
process of its own.

Beside the library of benchmarks/ovs.py: the switch as Debian links it (3 MB of program, 17 with debug information), and
libcrypto with debug information, in a process that does nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from program import Program
from samples import Effort, Result, Row

from hotupgrade.vswitch.builds import find_build
from hotupgrade.vswitch.switch import Switch

OVS = Path("build/ovs")
REAL = Path("build/real")
PREPARE_SECONDS = 300.0  # on a crowded machine
PROGRAM_COLD, PROGRAM_CACHED = 3.0, 0.75
LIBRARY_COLD, LIBRARY_CACHED = 6.0, 1.0
HOLDS = "import ctypes, sys, time; ctypes.CDLL(sys.argv[1]); print('ready', flush=True); time.sleep(3600)"


def run(efforts: dict[str, Effort], wanted: Callable[[str], bool], say: Callable[[str], None]) -> list[Result]:
    parts = {"prepare_program": program, "prepare_libcrypto": libcrypto}
    results = []
    for name, part in parts.items():
        if wanted(name):
            say(f"{name}: builds that are not there are made first, which takes minutes")
            begin = time.monotonic()
            results.append(part(name, efforts[name]))
            results[-1].seconds = time.monotonic() - begin
    return results


def program(name: str, effort: Effort) -> Result:
    """ovs-vswitchd, linked statically; without load, which is not what is measured and takes a core."""
    for variant in ("vulnerable", "fixed"):
        subprocess.run(["scripts/build-ovs", "--static", variant], check=True, stdout=subprocess.DEVNULL)
    old, new = (find_build(f"{variant}-static", OVS) for variant in ("vulnerable", "fixed"))
    with Switch(old) as switch:
        switch.vsctl("del-port", "null1", "--", "del-port", "null2")
        result = measure(name, switch.pid, new.program("ovs-vswitchd"), effort)
    result.rows = rows(result, "ovs-vswitchd, linked statically", PROGRAM_COLD, PROGRAM_CACHED)
    return result


def libcrypto(name: str, effort: Effort) -> Result:
    subprocess.run(["scripts/build-real", "openssl"], check=True, stdout=subprocess.DEVNULL)
    old, new = (REAL.resolve() / "openssl" / side / "lib" / "libcrypto.so.3" for side in ("old", "new"))
    with Program([sys.executable, "-c", HOLDS, str(old)]) as process:
        result = measure(name, process.pid, new, effort)
    result.rows = rows(result, "libcrypto", LIBRARY_COLD, LIBRARY_CACHED)
    return result


def measure(name: str, pid: int, new: Path, effort: Effort) -> Result:
    """Cold and cached, in turn."""
    result = Result(name)
    result.facts["bytes"] = new.stat().st_size
    for turn in effort.turns():
        with tempfile.TemporaryDirectory(prefix="hotupgrade-bench-") as directory:
            kinds = ("cold", "cached", "cached")
            for kind in kinds if turn else kinds[:2]:
                take(result, kind, prepare_once(pid, Path(directory), new))
    return result


def prepare_once(pid: int, cache: Path, new: Path) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("prepare_once.py")), str(pid), str(cache), str(new)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PREPARE_SECONDS)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    if found["outcome"] != "dry-run":
        raise RuntimeError(f"the dry run was not made: {found['outcome']}")
    return found


def take(result: Result, kind: str, found: dict[str, Any]) -> None:
    result.take(kind, "s", found["seconds"])
    result.take(f"{kind}_processor", "s", found["processor_seconds"])
    result.take("import", "s", found["import_seconds"])


def rows(result: Result, what: str, cold: float, cached: float) -> list[Row]:
    found = []
    for kind, words, limit in (("cold", "nothing known", cold), ("cached", "both builds known", cached)):
        series, processor = result[kind], result[f"{kind}_processor"]
        found.append(
            Row(
                f"prepare, {what}, {words}",
                f"{series.median:.2f} s (p95 {series.p95:.2f} s)",
                f"processor time {processor.median:.2f} s",
                f"≤ {limit} s",
                series.median <= limit,
                len(series.values),
                "time waited for a processor" if series.median > 1.2 * processor.median else "",
            )
        )
    return found
