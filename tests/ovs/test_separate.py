"""Open vSwitch as distributions ship it: stripped, its debug information aside.  The outcome is that of the whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hotupgrade.binary.elf import ElfFile
from hotupgrade.binary.separate.places import by_identity
from hotupgrade.upgrade.debug_sources import DEBUG
from hotupgrade.upgrade.journal import state_folder
from hotupgrade.vswitch import vulnerability
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.demo import LIBRARIES
from hotupgrade.vswitch.switch import Switch
from ovs.harness import ALL, NONE, check_forwards, files, holes, rollback, upgrade

SERVE = Path(__file__).resolve().parents[1] / "unit" / "binary" / "separate" / "serve.py"


def stripped(build: SwitchBuild, place: Path, debug: Path) -> SwitchBuild:
    """A copy without symbols and debug information; what was taken from its libraries is in a flat folder."""
    shutil.copytree(build.root, place, symlinks=True)
    debug.mkdir(parents=True, exist_ok=True)
    copy = SwitchBuild(place)
    for name in LIBRARIES:
        library = copy.library(name)
        for words in (
            ["objcopy", "--only-keep-debug", library, debug / f"{library.name}.debug"],
            ["strip", library],
            ["objcopy", f"--add-gnu-debuglink={debug / f'{library.name}.debug'}", library],
        ):
            subprocess.run(words, check=True, capture_output=True)
    return copy


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stripped")


@pytest.fixture(scope="module")
def old(vulnerable: SwitchBuild, place: Path) -> SwitchBuild:
    return stripped(vulnerable, place / "vulnerable", place / "debug" / "old")


@pytest.fixture(scope="module")
def new(fixed: SwitchBuild, place: Path) -> SwitchBuild:
    return stripped(fixed, place / "fixed", place / "debug" / "new")


@pytest.fixture
def stripped_switch(old: SwitchBuild, new: SwitchBuild) -> Iterator[Switch]:
    """A switch of the vulnerable build.  What upgrades keep of the debug information is taken away."""
    with Switch(old) as running:
        vulnerability.prepare(running)
        yield running
    for build in (old, new):
        for name in LIBRARIES:
            identity = ElfFile(build.library(name).read_bytes(), name).build_id()
            assert identity
            (state_folder() / DEBUG / by_identity(identity)).unlink(missing_ok=True)


def checked(switch: Switch, cache: Path, *words: str | Path, served: Path | None = None) -> dict[str, Any]:
    """What ``check`` says, with nothing known from before; ``served``: with a debuginfod server for this folder."""
    command = [sys.executable, "-m", "hotupgrade.cli", "check", str(switch.pid), *map(str, words), "--json"]
    if served is not None:
        command = ["unshare", "-n", sys.executable, str(SERVE), str(served), *command]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, env=environment, cwd=cache)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def said(document: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on where the files lie."""
    modules = [{key: module[key] for key in ("name", "functions", "objects")} for module in document["modules"]]
    codes = sorted(note["code"] for note in document["notes"])
    return {"verdict": document["verdict"], "modules": modules, "notes": codes, "reasons": document["reasons"]}


def test_it_is_checked_as_the_whole_one(
    stripped_switch: Switch, new: SwitchBuild, fixed: SwitchBuild, place: Path
) -> None:
    words = [word for name in ("old", "new") for word in ("--debug-dir", place / "debug" / name)]
    found = checked(stripped_switch, place, *files(new), *words)
    assert found["verdict"] == "upgradable", found["reasons"]
    whole = checked(stripped_switch, place, *files(fixed), *words)
    assert said(found) == said(whole)
    library = next(module for module in found["modules"] if module["name"].startswith("libopenvswitch"))
    assert set(library["functions"]["changed"]) == {"classifier_lookup__", "netdev_tc_flow_put"}


def test_it_is_refused_where_nothing_is_found(stripped_switch: Switch, new: SwitchBuild, place: Path) -> None:
    found = checked(stripped_switch, place, *files(new))
    untyped = [reason["text"] for reason in found["reasons"] if reason["code"] == "no-debug-information"]
    assert untyped
    assert all("--debug-dir" in text for text in untyped)


def test_a_server_has_it(stripped_switch: Switch, new: SwitchBuild, place: Path) -> None:
    """Debian's debuginfod, in a network of its own."""
    if not shutil.which("debuginfod"):
        pytest.skip("no debuginfod")
    found = checked(stripped_switch, place, *files(new), "--explain", served=place / "debug")
    assert found["verdict"] == "upgradable", found["reasons"]
    assert any("http://127.0.0.1" in line for line in found["explained"]["proved"])


def test_upgrade_and_back(stripped_switch: Switch, new: SwitchBuild, place: Path) -> None:
    words = [str(word) for name in ("old", "new") for word in ("--debug-dir", place / "debug" / name)]
    assert holes(stripped_switch) == ALL
    upgrade(stripped_switch, *files(new), *words)
    assert holes(stripped_switch) == NONE
    check_forwards(stripped_switch)
    rollback(stripped_switch)
    assert holes(stripped_switch) == ALL
    check_forwards(stripped_switch)
