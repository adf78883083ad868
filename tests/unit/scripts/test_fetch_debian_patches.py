"""The private apt configuration: which entries of a machine are Debian's own."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "fetch-debian-patches"
DEB822 = """\
# the release itself
Types: deb deb-src
URIs: http://archive.example/debian
Suites: NAME NAME-updates NAME-backports
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
URIs: http://other.example/tools
Suites: nodistro
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: NAME
Components: main
"""
ONE_LINE = """\
deb [arch=amd64 signed-by=/k.gpg] http://archive.example/debian NAME main contrib # words
# deb http://commented.example/debian NAME main
deb cdrom:[Debian]/ NAME main
deb-src http://archive.example/debian-security NAME-security main
deb http://third.example/debian NAME stable
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loader = SourceFileLoader("fetch_debian_patches", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    loader.exec_module(module)
    monkeypatch.setattr(module, "SOURCES", tmp_path)
    monkeypatch.setattr(module, "codename", lambda: "NAME")
    (tmp_path / "sources.list.d").mkdir()
    return module


def test_deb822(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "sources.list.d" / "all.sources").write_text(DEB822)
    (entry,) = script.deb822_entries()
    assert entry.splitlines() == [
        "types: deb-src",
        "uris: http://archive.example/debian",
        "suites: NAME NAME-updates",
        "components: main contrib",
        "signed-by: ",
        " -----BEGIN PGP PUBLIC KEY BLOCK-----",
        " .",
        " abc",
    ]


def test_one_line(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(ONE_LINE)
    assert list(script.one_line_entries()) == [
        "deb-src [arch=amd64 signed-by=/k.gpg] http://archive.example/debian NAME main contrib",
        "deb-src http://archive.example/debian-security NAME-security main",
    ]


def test_the_machine_is_not_touched(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(ONE_LINE)
    home = tmp_path / "private"
    environment = script.private_apt(home)
    configuration = Path(environment["APT_CONFIG"]).read_text()
    assert Path(environment["APT_CONFIG"]).is_relative_to(home)
    for setting in ("Dir::Etc::SourceParts", "Dir::State::Lists", "Dir::Cache"):
        assert f'{setting} "{home}' in configuration
    assert 'Dir::Etc::SourceList "/dev/null"' in configuration


def test_only_patches_are_unpacked(script: ModuleType, tmp_path: Path) -> None:
    archive = tmp_path / "x.debian.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        for name in ("debian/rules", "debian/patches/one.patch", "debian/patches/../../../evil.patch"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    script.unpack_patches(archive, tmp_path / "out")
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.patch"))
    assert written == ["out/patches/evil.patch", "out/patches/one.patch"]
