"""Stripped builds, as distributions ship them: what they lack is found elsewhere, or it is said where it is not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from live.conftest import Start
from live.harness import NOBODY, REFUSED, Builder, HotUpgrade, Options


def run(*words: str | Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def unique(*flags: str) -> Options:
    """A build with an id that no other has: what processes hold is kept, and would be found."""
    return Options(flags=(*flags, f"-Wl,--build-id=0x{uuid4().hex}"))


def stripped(of: Path, link: bool = True) -> tuple[Path, Path]:
    """A library that was built for the test alone, stripped where it lies, and its debug file beside it."""
    debug = of.with_name(of.name + ".debug")
    run("objcopy", "--only-keep-debug", of, debug)
    run("strip", of)
    if link:
        run("objcopy", f"--add-gnu-debuglink={debug}", of)
    return of, debug


def package(debug: Path, place: Path, name: str) -> Path:
    """What debhelper makes of a debug file."""
    identity = subprocess.run(["readelf", "-n", debug], capture_output=True, text=True).stdout.split("Build ID: ")[1]
    identity = identity.split()[0]
    target = place / name / "usr/lib/debug/.build-id" / identity[:2] / f"{identity[2:]}.debug"
    target.parent.mkdir(parents=True)
    debug.rename(target)
    (place / name / "DEBIAN").mkdir()
    (place / name / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: n <n@x>\nDescription: x\n"
    )
    run("dpkg-deb", "--root-owner-group", "-b", place / name, place / f"{name}.deb")
    return place / f"{name}.deb"


@pytest.fixture
def place(workshop: Path, request: pytest.FixtureRequest) -> Path:
    """A folder that others cannot write, unlike tmp_path of who knows."""
    folder = workshop / f"separate-{request.node.name}"
    folder.mkdir()
    return folder


def test_debug_files_beside_the_libraries(build: Builder, start: Start, hu: HotUpgrade) -> None:
    old, _ = stripped(build.library("layout", 1, unique()))
    new, _ = stripped(build.library("layout", 2, unique()))
    program = start(build.host(old))
    program.call("add_item", 3)
    hu.upgraded(program, new)
    assert program.call("sum_of_items") == 101006003
    hu.rolled_back(program)
    assert program.call("sum_of_items") != 101006003


def test_what_differs_is_refused_as_ever(build: Builder, start: Start, hu: HotUpgrade) -> None:
    old, _ = stripped(build.library("configured", 1, unique()))
    new, _ = stripped(build.library("configured", 1, unique("-DHAVE_CLOCK")))
    program = start(build.host(old))
    answer = hu.upgrade(program.pid, new)
    assert (answer.code, answer.codes()) == (REFUSED, {"type-changed"})
    assert "struct device: 16 → 24 bytes, +clock at 8" in answer.about()


def test_packages_that_are_named(build: Builder, start: Start, hu: HotUpgrade, place: Path) -> None:
    old, old_debug = stripped(build.library("layout", 1, unique()), link=False)
    new, new_debug = stripped(build.library("layout", 2, unique()), link=False)
    packages = [package(old_debug, place, "old"), package(new_debug, place, "new")]
    program = start(build.host(old))
    before = program.fingerprint("liblayout")
    answer = hu.upgrade(program.pid, new)
    assert (answer.code, answer.codes()) == (REFUSED, {"no-debug-information"})
    for word in ("/usr/lib/debug/.build-id/", "-dbgsym", "--debug-dir"):
        assert word in answer.about()
    assert program.fingerprint("liblayout") == before
    words = [word for path in packages for word in ("--debug-dir", path)]
    explained = hu.check(program.pid, new, *words, "--explain").document["explained"]
    assert any("2 of 2 types" in line for line in explained["proved"])
    assert any(str(packages[0]) in line for line in explained["proved"])
    hu.upgraded(program, new, *words)


def test_what_a_process_holds_is_kept(build: Builder, start: Start, hu: HotUpgrade, place: Path) -> None:
    """The usual order: the new package takes the place of the old one, and so do those with debug information."""
    old, old_debug = stripped(build.library("layout", 1, unique()))
    new, new_debug = stripped(build.library("layout", 2, unique()))
    last = build.library("layout", 3, unique())
    program = start(build.host(old))
    hu.upgraded(program, new)
    for gone in (old_debug, new_debug):
        gone.unlink()
    assert hu.check(program.pid, last).document["verdict"] == "upgradable"
    hu.upgraded(program, last)


def test_the_order_of_package_managers(build: Builder, start: Start, hu: HotUpgrade, place: Path) -> None:
    """A stripped program of its own is replaced on disk; what runs has its debug information only in a package that is
    installed no more."""
    flags = ("-fPIE", "-pie", "-rdynamic")
    builds = [build.executable(["layout"], version, unique(*flags)) for version in (1, 2)]
    installed = Path(shutil.copy2(builds[0], place / "program"))
    old, old_debug = stripped(installed, link=False)
    package_of_old = package(old_debug, place, "old-dbgsym")
    program = start(old)
    program.call("add_item", 3)

    fresh = Path(shutil.copy2(builds[1], place / "fresh"))
    new, new_debug = stripped(fresh, link=False)
    package_of_new = package(new_debug, place, "new-dbgsym")
    new.rename(installed)
    run("dpkg-deb", "-x", package_of_new, place / "root")
    refused = hu.upgrade(program.pid)
    assert (refused.code, refused.codes()) == (REFUSED, {"no-debug-information"})
    hu.upgraded(program, "--debug-dir", package_of_old, "--debug-dir", place / "root")
    assert program.call("sum_of_items") == 101006003
    hu.rolled_back(program)
    assert program.call("sum_of_items") == 1006003


def test_of_another_build(build: Builder, start: Start, hu: HotUpgrade) -> None:
    old, old_debug = stripped(build.library("layout", 1, unique()))
    new, new_debug = stripped(build.library("layout", 2, unique()))
    program = start(build.host(old))
    shutil.copy(old_debug, new_debug)
    answer = hu.upgrade(program.pid, new)
    assert (answer.code, answer.codes()) == (REFUSED, {"debug-mismatch", "no-symbols"})
    assert str(new_debug) in answer.about()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else; run as root")
@pytest.mark.parametrize("spoil", ["writable", "owned", "folder"])
def test_what_others_could_have_written(build: Builder, start: Start, hu: HotUpgrade, place: Path, spoil: str) -> None:
    """Types that are not those of the process would let an upgrade through that ruins it."""
    old, _ = stripped(build.library("layout", 1, unique()))
    new, debug = stripped(build.library("layout", 2, unique()))
    program = start(build.host(old))
    target = place / debug.name
    debug.rename(target)
    if spoil == "writable":
        target.chmod(0o666)
    else:
        os.chown(target if spoil == "owned" else place, NOBODY, NOBODY)
    answer = hu.upgrade(program.pid, new, "--debug-dir", place)
    assert (answer.code, answer.codes()) == (REFUSED, {"writable-by-others", "no-symbols"})
    assert str(place) in answer.about()


def test_a_link_to_where_others_may_write(build: Builder, start: Start, hu: HotUpgrade, place: Path) -> None:
    old, _ = stripped(build.library("layout", 1, unique()))
    new, debug = stripped(build.library("layout", 2, unique()))
    program = start(build.host(old))
    (place / "open").mkdir(mode=0o777)
    (place / "open").chmod(0o777)
    target = place / "open" / debug.name
    debug.rename(target)
    debug.symlink_to(target)
    answer = hu.upgrade(program.pid, new)
    assert (answer.code, answer.codes()) == (REFUSED, {"writable-by-others", "no-symbols"})


@pytest.mark.parametrize("kind", ["missing", "text", "pipe"])
def test_what_is_named_must_be_of_use(build: Builder, start: Start, hu: HotUpgrade, place: Path, kind: str) -> None:
    program = start(build.host(build.library("layout", 1)))
    path = place / "it"
    if kind == "text":
        path.write_text("hello")
    elif kind == "pipe":
        os.mkfifo(path)
    answer = hu.check(program.pid, build.library("layout", 2), "--debug-dir", path)
    expected = {"missing": "unreadable", "text": "bad-debug-dir", "pipe": "not-a-file"}[kind]
    assert (answer.code, answer.codes()) == (REFUSED, {expected})


def test_an_address_that_is_none(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("layout", 1)))
    for url in ("nonsense", "file:///etc", "http://", "http://x:y/"):
        answer = hu.check(program.pid, build.library("layout", 2), "--debuginfod", url)
        assert (answer.code, answer.codes()) == (REFUSED, {"bad-debuginfod"})


def test_a_server_that_is_not_there(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """Where everything is in the files nobody asks it; else it is one more reason."""
    program = start(build.host(build.library("layout", 1)))
    nobody = ("--debuginfod", "http://127.0.0.1:1")
    assert hu.check(program.pid, build.library("layout", 2), *nobody).document["verdict"] == "upgradable"
    bare = build.library("layout", 2, Options(flags=("-g0",)))
    answer = hu.check(program.pid, bare, *nobody)
    assert (answer.code, answer.codes()) == (REFUSED, {"no-debug-information", "debuginfod"})
