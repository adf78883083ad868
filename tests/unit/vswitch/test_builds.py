"""Finding a build on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotupgrade.errors import UsageError
from hotupgrade.vswitch.builds import find_build


@pytest.fixture
def builds(tmp_path: Path) -> Path:
    for file in ("bin/ovs-vswitchd", "share/vswitch.ovsschema", "lib/libopenvswitch-3.1.so.0", "lib/libsflow-3.1.so.0"):
        path = tmp_path / "fixed" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_found(builds: Path) -> None:
    build = find_build("fixed", builds)
    assert build.name == "fixed"
    assert build.library("libopenvswitch").name == "libopenvswitch-3.1.so.0"
    environment = build.environment(Path("/somewhere"))
    assert environment["LD_LIBRARY_PATH"] == str(build.root / "lib")
    assert environment["OVS_RUNDIR"] == "/somewhere"


def test_missing_build_says_what_to_do(builds: Path) -> None:
    with pytest.raises(UsageError, match="run 'make ovs'"):
        find_build("vulnerable", builds)


def test_missing_and_ambiguous_library(builds: Path) -> None:
    with pytest.raises(UsageError, match="holds 0 files for libofproto"):
        find_build("fixed", builds).library("libofproto")
    (builds / "fixed/lib/libsflow-3.2.so.0").touch()
    with pytest.raises(UsageError, match="holds 2 files for libsflow"):
        find_build("fixed", builds).library("libsflow")
