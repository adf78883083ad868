"""Open vSwitch stripped of its symbols, and none anywhere: what structure proves is upgraded under traffic, the rest is
refused by name and the switch goes on.  (With debug files: test_separate.py.)"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hotupgrade.vswitch import baseline, vulnerability
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.switch import Switch
from ovs.harness import (
    ALL,
    NONE,
    Document,
    attempt,
    check_forwards,
    check_goes_on,
    check_log,
    files,
    holes,
    mappings,
)

pytestmark = pytest.mark.timeout(600)

TRUST = "--trust-layout"
REFUSED = 3


def bare(build: SwitchBuild, place: Path, *chosen: Path) -> SwitchBuild:
    """A copy in which the chosen files have neither symbols nor a link to any."""
    copy = SwitchBuild(Path(shutil.copytree(build.root, place, symlinks=True)))
    for file in chosen:
        target = place / file.relative_to(build.root)
        subprocess.run(["strip", target], check=True)
        symbols = subprocess.run(["nm", target], capture_output=True, text=True)
        assert "no symbols" in symbols.stderr
    return copy


@contextmanager
def running(build: SwitchBuild) -> Iterator[Switch]:
    with Switch(build) as switch:
        vulnerability.prepare(switch)
        yield switch
        check_forwards(switch)
        check_log(switch.log())


def done(command: str, switch: Switch, *words: str) -> Document:
    """What the command did; it has time enough for a crowded machine."""
    code, document = attempt(command, switch, *words, "--timeout", "60")
    assert code == 0, document["reasons"]
    return document


def test_the_library_that_is_proven(vulnerable: SwitchBuild, fixed: SwitchBuild, tmp_path: Path) -> None:
    """libofproto is stripped, libopenvswitch is not: both in one stop, there and back and there again."""
    old, new = (bare(build, tmp_path / build.name, build.library("libofproto")) for build in (vulnerable, fixed))
    with running(old) as switch:
        before = baseline.take(switch)
        assert holes(switch) == ALL
        document = done("upgrade", switch, *files(new), TRUST)
        changed = {module["name"].split("-")[0]: module["functions"] for module in document["modules"]}
        assert set(changed["libopenvswitch"]["changed"]) == {"classifier_lookup__", "netdev_tc_flow_put"}
        (patched,) = changed["libofproto"]["changed"]  # do_xlate_actions(), whose name nobody knows
        assert patched.startswith("sub_")
        assert holes(switch) == NONE
        check_goes_on(before, switch)
        done("rollback", switch)
        assert holes(switch) == ALL
        done("upgrade", switch, *files(new), TRUST)
        assert holes(switch) == NONE
        check_goes_on(before, switch)


@pytest.fixture
def static_builds(build_static: Callable[..., SwitchBuild], tmp_path: Path) -> tuple[SwitchBuild, SwitchBuild]:
    """The program as Debian links it, stripped, without and with the patches."""
    program = "ovs-vswitchd"
    builds = [build_static(name) for name in ("vulnerable", "fixed")]
    old, new = (bare(build, tmp_path / build.name, build.program(program)) for build in builds)
    return old, new


@pytest.mark.full
def test_the_program_that_is_not(static_builds: tuple[SwitchBuild, SwitchBuild]) -> None:
    """netdev_tc_flow_put() has variables of its own, which no other code names: refused, and nothing was touched."""
    old, new = static_builds
    with running(old) as switch:
        before, places = baseline.take(switch), mappings(switch)
        code, document = attempt("upgrade", switch, str(new.program("ovs-vswitchd")), TRUST)
        assert (code, document["outcome"]) == (REFUSED, "refused")
        assert {reason["code"] for reason in document["reasons"]} == {"ambiguous-static"}
        assert all("unnamed object of ." in reason["text"] for reason in document["reasons"])
        assert holes(switch) == ALL
        assert mappings(switch) == places
        check_goes_on(before, switch)
