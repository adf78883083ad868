"""Debian's own libraries, with the debug information that Debian ships apart: eu-unstrip puts the two together, and the
result says the same."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.upgrade.debug_sources import SYSTEM
from unit.binary.separate.stripped import assert_same, by_identity, debug_root, named, run

LIBRARIES = {
    "libm.so.6": "libc6-dbg",
    "libopcodes-*-system.so": "libbinutils-dbg",
    "libbfd-*-system.so": "libbinutils-dbg",
}


def library(pattern: str) -> Path:
    found = sorted(Path("/usr/lib/x86_64-linux-gnu").glob(pattern))
    if not found:
        pytest.skip(f"there is no {pattern}")
    return found[0].resolve()


def debug_file(module: Path) -> Path:
    text = subprocess.run(["readelf", "-n", module], capture_output=True, text=True, check=True).stdout
    path = by_identity(SYSTEM, text.split("Build ID: ")[1].split()[0], make=False)
    if not path.exists() or not shutil.which("eu-unstrip"):
        pytest.skip(f"no debug information of {module}, or no eu-unstrip")
    return path


@pytest.mark.parametrize("pattern", LIBRARIES)
def test_a_library_of_debian(tmp_path: Path, pattern: str) -> None:
    """In libbinutils-dbg a part of it is in a file that the two libraries share (dwz -m)."""
    module = library(pattern)
    debug = debug_file(module)
    build = Build.open(module, debug_root(SYSTEM))
    assert build.separate.types is not None
    assert build.separate.types.label == str(debug)
    assert (build.separate.supplement is not None) == (LIBRARIES[pattern] == "libbinutils-dbg")
    assert len(build.debug.types) > 20
    run("eu-unstrip", "-o", tmp_path / "whole", module, debug)
    assert_same(build, Build.open(tmp_path / "whole", debug_root(SYSTEM)))


def test_a_package_of_debian(tmp_path: Path) -> None:
    """As an operator gets it: one file, which need not be installed."""
    module = library("libopcodes-*-system.so")
    debug_file(module)
    done = subprocess.run(
        ["apt-get", "-q", "download", "libbinutils-dbg"], cwd=tmp_path, capture_output=True, text=True
    )
    packages = sorted(tmp_path.glob("*.deb"))
    if done.returncode or not packages:
        pytest.skip(f"the archive does not serve it: {done.stderr.strip()[-200:]}")
    from unit.binary.separate.test_package import search

    build = Build.open(module, search(packages[0]))
    assert_same(build, Build.open(module, debug_root(SYSTEM)))
    run("dpkg-deb", "-x", packages[0], tmp_path / "unpacked")
    assert_same(Build.open(module, named(tmp_path / "unpacked")), build)
