"""The ways, each as an operator goes it, on one switch under traffic."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.demo import LIBRARIES
from hotupgrade.vswitch.switch import Switch

Document = dict[str, Any]
_ATTEMPTS, _LIMIT_S = 5, 60.0
_NOT_NOW = 4  # exit code
CONTROL_S = 2.0


@dataclass(frozen=True)
class Way:
    """``go`` brings the build into the switch while the meter watches, and returns what the tool itself measured;
    ``back`` brings the switch to where it was, unwatched."""

    key: str
    title: str
    go: Callable[[Switch, SwitchBuild], Document]
    back: Callable[[Switch, SwitchBuild], object]


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
    flows = {bridge: _rules(switch, bridge) for bridge in switch.bridges()}
    switch.end_daemon()
    if hold:
        switch.vsctl("--no-wait", "set", "Open_vSwitch", ".", "other_config:flow-restore-wait=true")
    switch.start_daemon(build)
    for bridge, rules in flows.items():
        switch.ofctl("add-flows", bridge, "-", text="\n".join(rules) + "\n")
    if hold:
        switch.vsctl("--if-exists", "remove", "Open_vSwitch", ".", "other_config", "flow-restore-wait=true")
    return {}


def hot(*options: str) -> Callable[[Switch, SwitchBuild], Document]:
    """Ours, by the command as everywhere."""

    def go(switch: Switch, build: SwitchBuild) -> Document:
        files = [str(build.library(name)) for name in LIBRARIES]
        return _patiently(["upgrade", str(switch.pid), *files, *options, "--json"])

    return go


def look(switch: Switch, build: SwitchBuild) -> None:
    """Ask for the verdict first, as an operator does; what was read of both builds is kept for the upgrade."""
    _patiently(["check", str(switch.pid), *(str(build.library(name)) for name in LIBRARIES), "--json"])


def _roll_back(switch: Switch, _: SwitchBuild) -> None:
    _patiently(["rollback", str(switch.pid), "--json"])


def _patiently(words: Sequence[str]) -> Document:
    """The command's document; where it says "not now" it is asked again, since nothing has happened.

    Raises:
        HotUpgradeError: it was refused, or failed.
    """
    said = ""
    for _ in range(_ATTEMPTS):
        command = [sys.executable, "-m", "hotupgrade.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
        if done.returncode == 0:
            document: Document = json.loads(done.stdout)
            return document
        said = done.stdout[-2000:] + done.stderr[-500:]
        if done.returncode != _NOT_NOW:
            break
        time.sleep(0.2)
    raise HotUpgradeError(f"hotupgrade {' '.join(words)}: {said}")


def _rules(switch: Switch, bridge: str) -> list[str]:
    dump = switch.ofctl("--no-stats", "--no-names", "dump-flows", bridge)
    return [line.strip() for line in dump.splitlines() if "actions=" in line]


def nothing(_: Switch, __: SwitchBuild) -> Document:
    """The control: as long as a hot upgrade takes, and what the machine itself does to the traffic meanwhile."""
    time.sleep(CONTROL_S)
    return {}


def _nothing_back(_: Switch, __: SwitchBuild) -> None:
    return


WAYS = (
    Way("nothing", "Nothing (control)", nothing, _nothing_back),
    Way("restart", "Restart, flows saved and restored (ovs-ctl restart)", restart, restart),
    Way("stop-start", "Stop and start, flows from a controller", stop_and_start, restart),
    Way("hot", "Hot upgrade, changed functions only", hot(), _roll_back),
    Way("hot-whole", "Hot upgrade, every function (--whole)", hot("--whole"), _roll_back),
)
