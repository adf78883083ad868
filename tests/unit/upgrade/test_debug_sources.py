"""Where debug information is looked for, and that copies of it are kept."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.binary.cache import Cache, Downloads
from hotupgrade.binary.separate.places import Beside, DebugRoot, NamedFolder, Package
from hotupgrade.binary.separate.server import Server
from hotupgrade.binary.separate.unpack import UnpackError
from hotupgrade.errors import Refused
from hotupgrade.upgrade import debug_sources, source
from hotupgrade.upgrade.debug_sources import debug_search
from unit.binary.separate.stripped import SOURCES, assert_same, by_identity, named, run, strip
from unit.conftest import Compiler


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in ("debug_sources", "kept", "source"):
        monkeypatch.setattr(f"hotupgrade.upgrade.{module}.state_folder", lambda: tmp_path / "state")
    monkeypatch.delenv("DEBUGINFOD_URLS", raising=False)
    return tmp_path / "state"


def kinds(*named_paths: Path, servers: tuple[str, ...] = ()) -> list[type]:
    return [type(place) for place in debug_search(named_paths, servers, Cache(None)).places]


def test_nobody_is_asked_unless_somebody_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    system = [Beside, DebugRoot, DebugRoot]
    assert kinds() == system
    assert kinds(servers=("http://x",)) == [*system, Server]
    monkeypatch.setenv("DEBUGINFOD_URLS", " http://a  ima:enforcing https://b/c ")
    assert kinds() == [*system, Server, Server]
    assert kinds(servers=("http://x",)) == [*system, Server]
    monkeypatch.setenv("DEBUGINFOD_URLS", "")
    assert kinds() == system


@pytest.mark.parametrize("url", ["", "x", "ftp://x/", "http://", "http://x:y", "http://[", "file:///etc/passwd"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(Refused, match="no address of a debuginfod server"):
        kinds(servers=(url,))


def test_what_is_named_comes_first(tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_bytes(b"!<arch>\n")
    assert kinds(tmp_path / "x.deb", tmp_path)[:2] == [Package, NamedFolder]


def test_what_others_may_write_is_not_a_package(tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_bytes(b"!<arch>\n")
    (tmp_path / "x.deb").chmod(0o666)
    with pytest.raises(Refused, match="written by other users"):
        kinds(tmp_path / "x.deb")


def test_time_is_bounded() -> None:
    check = debug_sources._limit(-1.0)
    with pytest.raises(UnpackError, match="more than -1 seconds"):
        check()


# Copies


@pytest.mark.parametrize("umask", [0, 0o077])
def test_what_a_build_has_elsewhere_is_kept(compiler: Compiler, tmp_path: Path, state: Path, umask: int) -> None:
    whole = compiler.file(SOURCES, "-g")
    module, debug = strip(whole, tmp_path / "lib")
    identity = Build.open(whole).build_id
    before = os.umask(umask)
    try:
        source.keep(Build.open(module, named(tmp_path / "lib")))
    finally:
        os.umask(before)
    debug.unlink()
    assert_same(Build.open(module, debug_search((), (), Cache(None))), Build.open(whole))
    kept = by_identity(state / "debug", identity)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    for folder in (state, state / "debug", state / "debug" / ".build-id", kept.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (state / "builds" / identity).read_bytes() == module.read_bytes()


def test_a_shared_file_is_kept_too(compiler: Compiler, tmp_path: Path) -> None:
    text = "#include <stdio.h>\n#include <pthread.h>\n" + SOURCES["one.c"]
    whole = compiler.file(text, "-g")
    module, debug = strip(whole, tmp_path / "lib")
    _, twin = strip(whole, tmp_path / "twin")
    run("dwz", "-m", tmp_path / "common", "-M", str(tmp_path / "common"), debug, twin)
    debug.rename(by_identity(tmp_path / "lib", Build.open(whole).build_id))
    build = Build.open(module, debug_search((tmp_path / "lib",), (), Cache(None)))
    assert build.separate.supplement is not None
    source.keep_debug(build)
    (tmp_path / "common").unlink()
    by_identity(tmp_path / "lib", build.build_id).unlink()
    assert_same(Build.open(module, debug_search((), (), Cache(None))), Build.open(whole))


def test_nothing_is_kept_of_what_is_in_the_file(compiler: Compiler, state: Path) -> None:
    source.keep(Build.open(compiler.file(SOURCES, "-g")))
    assert not (state / "debug").exists()


def test_downloads_are_kept_by_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Downloads(Cache(tmp_path / "cache"))
    store.save("http://a/1", b"one")
    assert store.load("http://a/1") == b"one"
    assert store.load("http://b/1") is None
    assert Downloads(Cache(None)).load("http://a/1") is None
    monkeypatch.setattr("hotupgrade.binary.cache.MAX_DOWNLOAD", 2)
    store.save("http://a/2", b"two")
    assert store.load("http://a/2") is None
