"""Can Open vSwitch be the secondary of DPDK's two processes?  It is tried, and what it says is kept.

Open vSwitch 3.1 asks DPDK for memory that nobody shares (``--in-memory``) unless it is told ``--legacy-mem``; as a
secondary it then waits for ever for the primary's configuration, which it cannot see.  With ``--legacy-mem`` it
attaches to the primary, and calls ``rte_mp_disable()``, since it makes threads of its own known to DPDK; with a second
process DPDK does not allow that, and the switch ends.  Source: Open vSwitch 3.1, lib/dpdk.c, dpdk_init__().

``python -m hotupgrade.vswitch.compare.secondary BUILD`` does the latter, in a mount namespace of its own, and prints
what came of it as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hotupgrade.errors import HotUpgradeError, NotNow
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare.network import network
from hotupgrade.vswitch.compare.standby import BUFFERS
from hotupgrade.vswitch.hugepages import hugepages
from hotupgrade.vswitch.processes import in_network_of
from hotupgrade.vswitch.switch import BRIDGE, HUGEPAGES_BESIDE_MEMORY, Switch, SwitchOptions
from hotupgrade.vswitch.testpmd import PROGRAM, Testpmd

Document = dict[str, Any]
PREFIX = "holder"
MEMORY_MIB = 256  # for both
_LIMIT_S = 120.0
START_S = 20.0
#: What the log says of the matter.
_TELLING = ("EAL: ", "dpdk|", "netdev_dpdk|", "ETHDEV: ", "EMER|", "ERR|")


def try_it(build: SwitchBuild) -> Document:
    """In a process of its own, since it changes the file systems that it sees."""
    words = ["unshare", "--mount", "--", sys.executable, "-m", __name__, str(build.root)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=_LIMIT_S)
    if done.returncode != 0:
        raise HotUpgradeError(f"{' '.join(words)}: {done.stderr[-1000:]}")
    document: Document = json.loads(done.stdout)
    return document


def attempt(build: SwitchBuild) -> Document:
    """A primary that holds two ports, and a switch that is told to be its secondary and to take one of them."""
    with ExitStack() as resources:
        resources.enter_context(hugepages(MEMORY_MIB + HUGEPAGES_BESIDE_MEMORY))
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="hotupgrade-compare-")))
        pages = folder / "hugepages"
        pages.mkdir()
        subprocess.run(["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "none", str(pages)], check=True)
        resources.callback(subprocess.run, ["umount", "--lazy", str(pages)], check=True)
        os.environ["RUNTIME_DIRECTORY"] = str(folder)  # where DPDK's processes find one another
        made = resources.enter_context(network(()))
        common = ["--no-pci", "--no-telemetry", f"--file-prefix={PREFIX}", f"--huge-dir={pages}"]
        primary = [PROGRAM, "--proc-type=primary", *common, "-m", str(MEMORY_MIB), "--lcores", "0@0,1@0"]
        primary += ["--vdev=net_tap0,iface=tap0", "--vdev=net_tap1,iface=tap1", "--", "--interactive"]
        primary += [f"--total-num-mbufs={BUFFERS}"]
        resources.enter_context(Testpmd([*in_network_of(made.pid), *primary], folder / "primary.errors"))
        words = " ".join(["--proc-type=secondary", *common, "--legacy-mem"])
        return _secondary(build, made.pid, words)


class _Talkative(Switch):
    """Its log is still there when it is not."""

    said = ""

    def stop(self) -> None:
        if self._directory is not None:
            self.said = self.log()
        super().stop()


def _secondary(build: SwitchBuild, network_of: int, extra: str) -> Document:
    settings = {"dpdk-extra": f'"{extra}"'}
    options = SwitchOptions(ports=0, memory_mib=16, network_of=network_of, other_config=settings, start_timeout=START_S)
    switch = _Talkative(build, options)
    starts, answer = False, ""
    try:
        with switch:
            starts = True
            words = ["add-port", BRIDGE, "p0", "--", "set", "interface", "p0", "type=dpdk"]
            switch.vsctl(*words, "options:dpdk-devargs=net_tap0")
            switch.check_interfaces()
    except NotNow as problem:
        answer = str(problem)
    log = _telling(switch.said)
    complaints = [line.partition("|EMER|")[2] for line in log if "|EMER|" in line]
    return {"starts": starts, "forwards": not answer, "says": " ".join(complaints) or answer, "log": log}


def _telling(log: str) -> list[str]:
    return [line for line in log.splitlines() if any(word in line for word in _TELLING)]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(attempt(SwitchBuild(Path(sys.argv[1]))), indent=1) + "\n")
