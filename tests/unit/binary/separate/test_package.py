"""Debian packages as files: those of dpkg-deb, those that lie, and the modules whose debug information is in one."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotupgrade.binary.build import Build
from hotupgrade.binary.separate import package
from hotupgrade.binary.separate.find import Search
from hotupgrade.binary.separate.package import Member, find_files
from hotupgrade.binary.separate.places import Package
from hotupgrade.binary.separate.unpack import UnpackError
from hotupgrade.errors import Refused
from unit.binary.separate.stripped import SOURCES, assert_same, by_identity, run, strip
from unit.conftest import Compiler

CONTROL = "Package: x-dbgsym\nVersion: 1\nArchitecture: amd64\nMaintainer: nobody <n@x>\nDescription: x\n"


def never() -> None:
    """The time is never up."""


def everything(archive: bytes) -> dict[str, bytes]:
    return {member.path: content for member, content in find_files(archive, lambda _: True, never)}


def packed(root: Path, target: Path, kind: str = "xz") -> Path:
    """A package of a folder, as dpkg-deb makes it."""
    (root / "DEBIAN").mkdir(exist_ok=True)
    (root / "DEBIAN" / "control").write_text(CONTROL)
    run("dpkg-deb", f"-Z{kind}", "--root-owner-group", "-b", root, target)
    return target


def archived(data: bytes, name: str = "data.tar") -> bytes:
    """A package around a tar, by hand."""
    found = package.MAGIC
    for member, content in (("debian-binary", b"2.0\n"), (name, data)):
        found += f"{member:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        found += content + b"\n" * (len(content) % 2)
    return found


def header(kind: bytes, size: int, name: bytes = b"a") -> bytes:
    """A header of tar with the right checksum; sizes that octal digits cannot say are binary."""
    digits = b"%011o\0" % size if 0 <= size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    found = bytearray(512)
    found[: len(name)] = name
    found[124:136] = digits
    found[156:157] = kind
    found[148:156] = b" " * 8
    found[148:156] = b"%06o\0 " % sum(found)
    return bytes(found)


def tar(dialect: int, *files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=dialect) as archive:
        for name, content in files:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["xz", "zstd", "gzip", "none"])
def test_what_dpkg_packs(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    files = {"/usr/lib/a": b"x" * 1000, "/usr/lib/" + "n" * 150 + "/" + "m" * 90: b"", "/b": bytes(300_000)}
    for name, content in files.items():
        path = root / name[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "link").symlink_to("b")
    (root / "hard").hardlink_to(root / "b")
    found = everything(packed(root, tmp_path / "x.deb", kind).read_bytes())
    assert found.keys() - {"/hard"} <= files.keys()
    assert len(found) == len(files)  # a hard link is one of the two names
    assert found.get("/b", found.get("/hard")) == files["/b"]
    assert found["/usr/lib/a"] == files["/usr/lib/a"]


@pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_format(dialect: int) -> None:
    long = "./" + "/".join(["folder" * 5] * 6) + "/name"
    files = (("./short", b"1"), (long, b"22"), ("./after", b"3" * 513))
    found = everything(archived(tar(dialect, *files)))
    assert found == {"/short": b"1", long[1:]: b"22", "/after": b"3" * 513}


# Modules


@pytest.fixture
def whole(compiler: Compiler) -> Path:
    return compiler.file(SOURCES, "-g")


def in_package(whole: Path, place: Path, kind: str, *, shared: bool = False) -> tuple[Path, Path]:
    """A stripped module and its -dbgsym package; nothing else is left of its debug information."""
    module, debug = strip(whole, place / "lib", link=False)
    root = place / "root"
    target = by_identity(root / "usr/lib/debug", Build.open(whole).build_id)
    debug.rename(target)
    if shared:
        common = root / "usr/lib/debug/.dwz/x.debug"
        common.parent.mkdir()
        shutil.copy(target, place / "twin")
        run("dwz", "-m", common, "-M", "/usr/lib/debug/.dwz/x.debug", target, place / "twin")
        assert common.exists()
    return module, packed(root, place / "x-dbgsym.deb", kind)


def search(path: Path, check_time: Callable[[], None] = never) -> Search:
    return Search((Package(path, path.read_bytes(), check_time),))


@pytest.mark.parametrize("kind", ["xz", "zstd", "gzip", "none"])
def test_debug_information_in_a_package(whole: Path, tmp_path: Path, kind: str) -> None:
    module, file = in_package(whole, tmp_path, kind)
    build = Build.open(module, search(file))
    assert_same(build, Build.open(whole))
    assert build.separate.types is not None
    assert build.separate.types.label.startswith(f"{file}: /usr/lib/debug/.build-id/")


def test_debug_information_that_is_shared_within_a_package(whole: Path, tmp_path: Path) -> None:
    if not shutil.which("dwz"):
        pytest.skip("no dwz")
    module, file = in_package(whole, tmp_path, "xz", shared=True)
    build = Build.open(module, search(file))
    assert build.separate.supplement is not None
    assert_same(build, Build.open(whole))


def test_a_package_of_another_build(compiler: Compiler, whole: Path, tmp_path: Path) -> None:
    module, _ = in_package(whole, tmp_path, "xz")
    _, file = in_package(compiler.file(SOURCES, "-g", "-O1"), tmp_path / "other", "xz")
    places = search(file)
    for _ in range(2):  # the second time its names are known
        with pytest.raises(Refused, match=r"none was found in .*x-dbgsym\.deb"):
            Build.open(module, places)


def test_a_package_that_takes_too_long(whole: Path, tmp_path: Path) -> None:
    def up() -> None:
        raise UnpackError("it takes more than 5 seconds")

    module, file = in_package(whole, tmp_path, "xz")
    with pytest.raises(Refused, match="takes more than 5 seconds") as caught:
        Build.open(module, search(file, up))
    assert [reason.code for reason in caught.value.reasons] == ["bad-package", "no-symbols"]


# What is damaged, or lies


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no Debian package"),
        (b"hello", "no Debian package"),
        (package.MAGIC, "no Debian package"),
        (archived(b"", "data.tar.bz2"), "not known here"),
        (archived(b"", "other"), "no Debian package"),
        (archived(b"x" * 512), "damaged"),
        (archived(header(b"0", 0)[:-1] + b"x"), "wrong checksum"),
        (archived(b""), "cut off"),
        (archived(tar(tarfile.GNU_FORMAT, ("a", b"x" * 5000)))[:5000], "cut off"),
        (archived(b"\x28\xb5\x2f\xfd" + b"\xff" * 50, "data.tar.zst"), "damaged"),
        (archived(b"\xfd7zXZ\0" + b"\xff" * 50, "data.tar.xz"), "damaged"),
        (archived(b"\x1f\x8b" + b"\xff" * 50, "data.tar.gz"), "damaged"),
        (archived(tar(tarfile.GNU_FORMAT, ("a", b"x")))[: 8 + 60 + 4] + b"garbage" * 20, "damaged|no Debian package"),
    ],
)
def test_what_is_no_package(content: bytes, said: str) -> None:
    with pytest.raises(UnpackError, match=said):
        everything(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header(b"0", 1 << 60), "larger than 1 GiB"),
        (header(b"L", 1 << 40), "a name that is too long"),
        (header(b"x", 1 << 40), "a name that is too long"),
        (header(b"K", 1 << 40), "cut off"),
        (header(b"S", 100), "of a kind that is not known"),
        (header(b"0", 2000) + bytes(512), "cut off"),
    ],
)
def test_sizes_that_lie(content: bytes, said: str) -> None:
    with pytest.raises(UnpackError, match=said):
        everything(archived(content + bytes(1024)))


def test_a_package_that_unpacks_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "MAX_UNPACKED", 1 << 20)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "zeros").write_bytes(bytes(1 << 22))
    for kind in ("xz", "zstd", "gzip"):
        archive = packed(tmp_path / "root", tmp_path / "x.deb", kind).read_bytes()
        with pytest.raises(UnpackError, match="more than is read"):
            list(find_files(archive, lambda _: False, never))


def test_more_files_than_anybody_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "MAX_MEMBERS", 3)
    with pytest.raises(UnpackError, match="more than 3 files"):
        everything(archived(header(b"0", 0) * 4))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_spoiled_packages(data: st.DataObject) -> None:
    good = archived(tar(tarfile.GNU_FORMAT, ("./a" * 50, b"x" * 700), ("./b", b"y")))
    spoiled = bytearray(good)
    for _ in range(data.draw(st.integers(1, 8))):
        spoiled[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = everything(bytes(spoiled[: data.draw(st.integers(0, len(good)))]))
    except UnpackError:
        return
    assert all(path.startswith("/") for path in found)


def test_a_member_says_where_it_lies() -> None:
    members: list[Member] = []
    list(find_files(archived(tar(tarfile.GNU_FORMAT, ("./a", b"xy"))), lambda m: bool(members.append(m)), never))
    assert members == [Member("/a", 2)]
