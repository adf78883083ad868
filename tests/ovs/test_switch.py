"""The private switch itself, before anything is upgraded: it forwards, it is measured, it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hotupgrade.errors import NotNow
from hotupgrade.vswitch import baseline, hugepages, vulnerability
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.switch import BRIDGE, Switch, SwitchOptions

OWNER = """
import sys, time
from pathlib import Path
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.switch import Switch
with Switch(SwitchBuild(Path(sys.argv[1]))) as switch:
    print(switch.pid, switch.directory, flush=True)
    time.sleep(60)
"""


def pool() -> int:
    return hugepages.persistent()


def test_forwards_at_full_speed(switch: Switch) -> None:
    rate = switch.rate(0.5)
    assert rate.per_second > 2e6  # a core of its own does ten times that
    (pmd,) = switch.pmd_statistics()
    assert pmd.simple_match_hits > 0.99 * pmd.packets
    assert pmd.idle_cycles == 0


def test_counters_agree(switch: Switch) -> None:
    time.sleep(1.2)  # flow statistics follow the datapath by up to half a second
    first = {flow.rule: flow.packets for flow in switch.flows()}
    time.sleep(1.2)
    second = {flow.rule: flow.packets for flow in switch.flows()}
    assert first.keys() == second.keys()
    assert len(first) == 2
    assert all(second[rule] > first[rule] > 0 for rule in first)
    ports = {port.port: port for port in switch.port_counters()}
    assert ports["1"].received > 0
    assert ports["2"].sent > 0


def test_dpdk_never_sees_a_device(switch: Switch) -> None:
    assert "--no-pci" in switch.log()
    assert [port.split()[-1] for port in switch.ports() if "null" in port] == ["(dpdk)", "(dpdk)"]


def test_baseline_holds_and_notices(switch: Switch) -> None:
    before = baseline.take(switch)
    time.sleep(1)
    assert all(fact.ok for fact in baseline.compare(before, baseline.take(switch)))
    switch.ofctl("add-flow", BRIDGE, "table=3,priority=5,ip,actions=drop")
    wrong = [fact.name for fact in baseline.compare(before, baseline.take(switch)) if not fact.ok]
    assert wrong == ["OpenFlow flows"]


def test_options(vulnerable: SwitchBuild) -> None:
    rules = (
        "table=0,priority=9,in_port=1,dl_dst=00:00:00:00:00:00,actions=output:3",
        "table=0,priority=1,actions=drop",
    )
    with Switch(vulnerable, SwitchOptions(ports=3, rules=rules)) as switch:
        time.sleep(0.5)
        assert [port for port in switch.ports() if "null" in port] == sorted(
            port for port in switch.ports() if "null" in port
        )
        assert len([port for port in switch.ports() if "null" in port]) == 3
        (pmd,) = switch.pmd_statistics()
        assert pmd.emc_hits > 0  # a match on an address is beyond the simple match


def test_leaves_nothing_behind(vulnerable: SwitchBuild) -> None:
    before = pool()
    with Switch(vulnerable) as switch:
        assert pool() > before
        pid, directory = switch.pid, switch.directory
    assert pool() == before
    assert not directory.exists()
    assert not Path(f"/proc/{pid}").exists()
    switch.stop()  # again, without effect


def test_cleans_up_after_a_failure(vulnerable: SwitchBuild) -> None:
    before = pool()
    with pytest.raises(NotNow, match="ovs-ofctl"), Switch(vulnerable, SwitchOptions(rules=("nonsense",))):
        pytest.fail("it should not have started")
    assert pool() == before


def test_commands_fail_with_what_they_said(switch: Switch) -> None:
    with pytest.raises(NotNow, match="no-such-bridge"):
        switch.ofctl("dump-flows", "no-such-bridge")
    with pytest.raises(NotNow, match='"no/such/command" is not a valid command'):
        switch.appctl("no/such/command")


def test_killed_owner_takes_the_switch_along(vulnerable: SwitchBuild) -> None:
    before = pool()
    command = [sys.executable, "-c", OWNER, str(vulnerable.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, directory = owner.stdout.readline().split()
        owner.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _runs(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(int(pid))
    with Switch(vulnerable):  # the next one tidies up
        assert not Path(directory).exists()
    assert pool() == before


@pytest.mark.parametrize("name", ["vulnerable", "fixed"])
def test_every_probe_tells_the_builds_apart(name: str, request: pytest.FixtureRequest) -> None:
    with Switch(request.getfixturevalue(name)) as switch:
        vulnerability.prepare(switch)
        findings = vulnerability.examine(switch)
    assert len(findings) == len(vulnerability.PROBES)
    assert [finding.vulnerable for finding in findings] == [name == "vulnerable"] * len(findings)
    for finding in findings:
        assert (f"{finding.needed}=" in finding.megaflow) == (name == "fixed")


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z" and os.path.exists(f"/proc/{pid}")  # noqa: PTH110 (a race is no error)
