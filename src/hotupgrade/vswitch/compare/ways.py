"""The ways that work on one switch, each as an operator goes it, under traffic."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare.bed import Bed, one_switch, plain_switch
from hotupgrade.vswitch.compare.cores import aside
from hotupgrade.vswitch.compare.hosts import Hosts, hosts
from hotupgrade.vswitch.compare.tool import Ran, run_tool
from hotupgrade.vswitch.demo import LIBRARIES
from hotupgrade.vswitch.switch import Switch

Document = dict[str, Any]
_ATTEMPTS, _LIMIT_S = 5, 60.0
_NOT_NOW = 4  # exit code
CONTROL_S = 2.0

S = TypeVar("S")


@dataclass(frozen=True)
class Works:
    """Where a way can be gone; each a word or two, and why.  Nothing here is measured by the comparison."""

    kernel: str
    dpdk: str
    offload: str

    def document(self) -> dict[str, str]:
        return {"kernel datapath": self.kernel, "DPDK": self.dpdk, "offload": self.offload}


ANY_RESTART = Works(
    kernel="yes; flows that the kernel has go on until the new process flushes them, packets without one wait for it",
    dpdk="yes",
    offload="yes; the new process takes the filters out and puts in its own",
)
ANY_HOT = Works(
    kernel="yes; the kernel's flows are left alone (docs/datapaths.md)",
    dpdk="yes",
    offload="yes as far as the kernel's traffic control shows it; on no card was it tried (docs/datapaths.md)",
)
SILENT = Works("", "", "")  # nothing to say, or said of the same way with DPDK


@dataclass(frozen=True)
class Way(Generic[S]):
    """``go`` brings the build in while the meter watches, and returns what it found itself: what the tool measured,
    and as ``peak`` what was in use when most was.  ``back`` brings all to where it was, unwatched.  ``prepare`` comes
    before the first run.  ``bed`` makes what the way is gone on, with so many flows more than the traffic needs;
    ``between`` makes the same between two hosts, if applications are to be seen.
    ``note``: what a reader has to know of it."""

    key: str
    title: str
    go: Callable[[S, SwitchBuild], Document]
    back: Callable[[S, SwitchBuild], object]
    bed: Callable[[SwitchBuild, int], AbstractContextManager[Bed[S]]]
    between: Callable[[SwitchBuild], AbstractContextManager[Hosts]] | None
    works: Works
    prepare: Callable[[S, SwitchBuild], object] = lambda *_: None
    note: str = ""
    loops: bool = False  # it brings in the build in which threads' own loops changed
    flowless: bool = False  # what it is gone on has no flows


def restart(switch: Switch, build: SwitchBuild) -> Document:
    """What ``ovs-ctl restart`` does: save the flows, stop, start, and hold the datapath back until they are restored.

    Source: Open vSwitch 3.1, utilities/ovs-ctl.in (restart, save_flows_if_required, restore_flows) and ovs-save.in.
    """
    return _started_anew(switch, build, hold=True)


def stop_and_start(switch: Switch, build: SwitchBuild) -> Document:
    """What the upgrade of a package does: stop, start; a controller brings the flows, and here has them at hand."""
    return _started_anew(switch, build, hold=False)


def _started_anew(switch: Switch, build: SwitchBuild, *, hold: bool) -> Document:
    """``hold``: the datapath waits until the flows are restored."""
    flows = {bridge: rules(switch, bridge) for bridge in switch.bridges()}
    switch.end_daemon()
    if hold:
        switch.vsctl("--no-wait", "set", "Open_vSwitch", ".", "other_config:flow-restore-wait=true")
    switch.start_daemon(build)
    for bridge, lines in flows.items():
        switch.ofctl("add-flows", bridge, "-", text="\n".join(lines) + "\n")
    if hold:
        switch.vsctl("--if-exists", "remove", "Open_vSwitch", ".", "other_config", "flow-restore-wait=true")
    return {}


def rules(switch: Switch, bridge: str) -> list[str]:
    """All flows, as ``add-flows`` takes them."""
    dump = switch.ofctl("--no-stats", "--no-names", "dump-flows", bridge)
    return [line.strip() for line in dump.splitlines() if "actions=" in line]


def hot(*options: str) -> Callable[[Switch, SwitchBuild], Document]:
    """Ours, by the command as everywhere."""

    def go(switch: Switch, build: SwitchBuild) -> Document:
        files = [str(build.library(name)) for name in LIBRARIES]
        document, ran = _patiently(["upgrade", str(switch.pid), *files, *options, "--json"])
        return document | {"tool": {"memory_kb": ran.memory_kb, "cpu_s": ran.cpu_s}}

    return go


def look(switch: Switch, build: SwitchBuild) -> None:
    """Ask for the verdict first, as an operator does; what was read of both builds is kept for the upgrade."""
    _patiently(["check", str(switch.pid), *(str(build.library(name)) for name in LIBRARIES), "--json"])


def _roll_back(switch: Switch, _: SwitchBuild) -> None:
    _patiently(["rollback", str(switch.pid), "--json"])


def _patiently(words: Sequence[str]) -> tuple[Document, Ran]:
    """The command's document; where it says "not now" it is asked again, since nothing has happened.

    Raises:
        HotUpgradeError: it was refused, or failed.
    """
    said = ""
    for _ in range(_ATTEMPTS):
        ran = run_tool([*aside(), sys.executable, "-m", "hotupgrade.cli", *words], _LIMIT_S)
        if ran.code == 0:
            document: Document = json.loads(ran.output)
            return document, ran
        said = ran.output[-2000:] + ran.errors[-500:]
        if ran.code != _NOT_NOW:
            break
        time.sleep(0.2)
    raise HotUpgradeError(f"hotupgrade {' '.join(words)}: {said}")


def nothing(_: Switch, __: SwitchBuild) -> Document:
    """The control: as long as a hot upgrade takes, and what the machine itself does to the traffic meanwhile."""
    time.sleep(CONTROL_S)
    return {}


def _nothing_back(_: Switch, __: SwitchBuild) -> None:
    return


RESTART_NOTE = (
    "The controller is connected as ovn-controller is, to the bridge's management socket. With one that the bridge is "
    "told to connect to (set-controller), Open vSwitch 3.1 throws the restored flows away at the end of "
    "flow-restore-wait: only then it takes the controller up (ofproto/connmgr.c, connmgr_set_controllers)."
)
#: With DPDK, on one switch.
WAYS = (
    Way("nothing", "Nothing (control)", nothing, _nothing_back, one_switch, hosts, SILENT),
    Way(
        "restart",
        "Restart, flows saved and restored (ovs-ctl restart)",
        restart,
        restart,
        one_switch,
        hosts,
        ANY_RESTART,
    ),
    Way(
        "stop-start", "Stop and start, flows from a controller", stop_and_start, restart, one_switch, hosts, ANY_RESTART
    ),
    Way("hot", "Hot upgrade, changed functions only", hot(), _roll_back, one_switch, hosts, ANY_HOT, look),
    Way(
        "hot-whole",
        "Hot upgrade, every function (--whole)",
        hot("--whole"),
        _roll_back,
        one_switch,
        hosts,
        ANY_HOT,
        look,
    ),
)
LOOPS_NOTE = (
    "The new build also changes the main loops of eight threads: of the polling one, of handlers and "
    "revalidators, of those that clean up. Each is led out of the old loop and into the new one, with all that it "
    "had."
)
#: The same, into a build in which every thread's own loop changed.
RESTARTED_THREADS = Way(
    "hot-loops",
    "Hot upgrade with restart of threads",
    hot(),
    _roll_back,
    one_switch,
    hosts,
    ANY_HOT,
    look,
    loops=True,
    note=LOOPS_NOTE,
)
#: Without DPDK.
PLAIN = (
    Way("plain-nothing", "Userspace datapath: nothing (control)", nothing, _nothing_back, plain_switch, None, SILENT),
    Way("plain-restart", "Userspace datapath: restart (ovs-ctl restart)", restart, restart, plain_switch, None, SILENT),
    Way("plain-stop-start", "Userspace datapath: stop and start", stop_and_start, restart, plain_switch, None, SILENT),
    Way("plain-hot", "Userspace datapath: hot upgrade", hot(), _roll_back, plain_switch, None, SILENT, look),
)
