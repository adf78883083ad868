"""Datapaths without DPDK: what the kernel and the switch know goes on through an upgrade, and no frame is lost.

The kernel's datapath runs in a guest with Debian's kernel, in software emulation; the plain ones run here.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.datapaths import cases, moments
from hotupgrade.vswitch.datapaths.cases import Case
from hotupgrade.vswitch.datapaths.demo import run_case, wrong
from hotupgrade.vswitch.datapaths.lab import Lab, Request
from ovs.conftest import BUILDS, ROOT

# A guest boots in seconds, but everything in it takes ten times as long.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PATCHES = Path(__file__).parent / "patches"
FETCH_SECONDS = 300


@pytest.fixture(scope="session")
def kernel() -> Path:
    """What the guest boots from."""
    command = [ROOT / "scripts" / "build-guest"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "build" / "kernel"


def check(case: Case, kernel: Path) -> dict[str, object]:
    result = run_case(case, BUILDS, kernel)
    assert wrong(result) == []
    assert result["ok"]
    assert len(result["steps"]) >= 1
    return result


# In the kernel.


def test_kernel(vulnerable: SwitchBuild, fixed: SwitchBuild, kernel: Path) -> None:
    check(cases.KERNEL, kernel)


@pytest.mark.full
def test_kernel_static(build_static: Callable[..., SwitchBuild], kernel: Path) -> None:
    build_static("vulnerable")
    build_static("fixed")
    check(cases.KERNEL_STATIC, kernel)


@pytest.mark.full
def test_sessions_and_restarted_handlers(build_variant: Callable[[str, str], SwitchBuild], kernel: Path) -> None:
    """VXLAN, BFD, LACP; upcalls are answered by handlers that were led into the new code meanwhile."""
    build_variant("loops", (PATCHES / "loops.patch").read_text())
    check(cases.KERNEL_SESSIONS, kernel)


@pytest.mark.full
def test_offload(vulnerable: SwitchBuild, fixed: SwitchBuild, kernel: Path) -> None:
    check(cases.KERNEL_OFFLOAD, kernel)


# In user space.


@pytest.mark.parametrize(
    "case", [cases.USER, pytest.param(cases.USER_AFXDP, marks=pytest.mark.full)], ids=lambda case: case.name
)
def test_user_space(vulnerable: SwitchBuild, fixed: SwitchBuild, case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


# The comparison itself.


def test_a_flush_is_seen(vulnerable: SwitchBuild) -> None:
    """What must not happen is made to happen: the comparison says so."""
    with Lab(Request(build=str(vulnerable.root), steps=(), datapath="netdev", rate=100.0)) as lab:
        lab.traffic.start()
        before = settled(lab)
        lab.traffic.start()
        lab.switch.appctl("dpctl/del-flows")
        after = settled(lab)
    failed = {fact.name for fact in moments.compare(before, after) if not fact.ok}
    # A flow that was flushed is either gone or, once the switch has noticed, made anew.
    assert failed & {"flows in the datapath, by id", "flows that counted what was sent, to the packet"}, failed


def test_a_frame_that_is_lost_is_seen(vulnerable: SwitchBuild) -> None:
    with Lab(Request(build=str(vulnerable.root), steps=(), datapath="netdev", rate=100.0)) as lab:
        lab.traffic.start()
        before = settled(lab)
        lab.switch.ofctl("--strict", "mod-flows", "br0", "priority=20,udp,in_port=p1,actions=drop")
        lab.traffic.start()
        after = settled(lab)
    failed = {fact.name for fact in moments.compare(before, after) if not fact.ok}
    assert {"plain → (established flows)", "upcalls → (each frame a new flow)"} <= failed
    assert "plain ← (established flows)" not in failed


def settled(lab: Lab) -> moments.Moment:
    time.sleep(2.0)
    return lab.moment()
