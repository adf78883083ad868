"""Real switches for the tests: the builds of ``make ovs``, started with DPDK and loaded at full speed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotupgrade.vswitch import vulnerability
from hotupgrade.vswitch.builds import SwitchBuild, find_build
from hotupgrade.vswitch.switch import Switch

ROOT = Path(__file__).resolve().parents[2]
BUILDS = ROOT / "build" / "ovs"
BUILD_SECONDS = 300
STATIC_BUILD_SECONDS = 900  # everything is compiled anew for the first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this directory needs the builds and a machine of its own for a moment."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ovs)


@pytest.fixture(scope="session", autouse=True)
def _root_only() -> None:
    if os.geteuid() != 0:
        pytest.skip("hugepages, taps and tracing need root")


@pytest.fixture(scope="session")
def vulnerable() -> SwitchBuild:
    """Open vSwitch without Debian's security patches."""
    return find_build("vulnerable", BUILDS)


@pytest.fixture(scope="session")
def fixed() -> SwitchBuild:
    """Open vSwitch as Debian ships it."""
    return find_build("fixed", BUILDS)


@pytest.fixture(scope="session")
def build_variant(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], SwitchBuild]:
    """Build ``name`` from the fixed sources with a patch (its text) on top; built once, then found again."""

    def build(name: str, patch: str, base: str = "fixed") -> SwitchBuild:
        file = tmp_path_factory.mktemp("patches") / f"{name}.patch"
        file.write_text(patch)
        command = [str(ROOT / "scripts" / "build-ovs"), name, "--from", base, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS)
        assert done.returncode == 0, done.stdout + done.stderr
        return find_build(name, BUILDS)

    return build


@pytest.fixture(scope="session")
def build_static() -> Callable[..., SwitchBuild]:
    """Build ``name``, linked as Debian links it: one program with everything in it; with patches on top, if any are
    given.  Built once (the first one takes minutes), then found again."""

    def build(name: str, *patches: Path) -> SwitchBuild:
        command = [str(ROOT / "scripts" / "build-ovs"), "--static", name, *map(str, patches)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=STATIC_BUILD_SECONDS)
        assert done.returncode == 0, done.stdout + done.stderr
        return find_build(f"{name}-static", BUILDS)

    return build


@pytest.fixture
def switch(vulnerable: SwitchBuild) -> Iterator[Switch]:
    """A fresh vulnerable switch under full load, with the probes of :mod:`hotupgrade.vswitch.vulnerability`."""
    with Switch(vulnerable) as running:
        vulnerability.prepare(running)
        yield running
