"""Fuzzing of what lies beside a module: debug files, what they share, packages."""

from __future__ import annotations

import contextlib
import functools
import gzip
import lzma
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import zstandard

from fuzz import corpus
from hotupgrade.binary.build import Build
from hotupgrade.binary.debug.mentions import read_mentions
from hotupgrade.binary.debug.model import checked
from hotupgrade.binary.debug.read import read_debug
from hotupgrade.binary.elf import ElfTables
from hotupgrade.binary.separate.find import Search, separate_files
from hotupgrade.binary.separate.links import debug_link, supplement_identity, supplement_link
from hotupgrade.binary.separate.package import MAGIC, find_files
from hotupgrade.binary.separate.places import Candidate, Package, Wanted
from hotupgrade.binary.separate.unpack import UnpackError
from hotupgrade.errors import Refused

MAX_SECONDS = 10.0


@functools.cache
def folder() -> Path:
    """Of modules with their debug files: NAME, NAME.stripped, NAME.debug, and two that share "common"."""
    place = Path(tempfile.mkdtemp(prefix="hotupgrade-fuzz-"))
    for flavour in ("types", "types-4", "types-cxx"):
        whole = corpus.compiled(place, flavour, 6)
        _run("objcopy", "--only-keep-debug", whole, place / f"{flavour}.debug")
        _run("strip", "-o", place / f"{flavour}.stripped", whole)
    for name in ("one", "two"):
        shutil.copy(place / "types.debug", place / name)
    # What is in there must be worth a reference to it, so nothing is too small.
    _run("dwz", "-m", place / "common", "-M", "common", place / "one", place / "two")
    return place


def _run(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True)


class Given:
    """A place that has one file, whatever is wanted."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def candidates(self, _wanted: Wanted) -> Iterator[Candidate]:
        yield Candidate("mutated", False, partial(bytes, self._content))

    def described(self, _wanted: Wanted) -> list[str]:
        return ["mutated"]


def companion(data: bytes) -> None:
    """The debug file of a module is spoiled."""
    with contextlib.suppress(Refused):
        build = Build((folder() / "types.stripped").read_bytes(), "it", None, Search((Given(data),)))
        assert build.plain.size == len(build.entities)
        assert build.fingerprint
        assert build.debug.missing or build.debug.files
        assert separate_files(build.separate)


def shared(data: bytes) -> None:
    """Of a debug file and the one that it shares a part with, one is spoiled."""
    with contextlib.suppress(Refused):
        spoiled = ElfTables(data, "mutated")
        debug_link(spoiled)
        supplement_link(spoiled)
        supplement_identity(spoiled)
        for main, common in ((_good("one"), spoiled), (spoiled, _good("common"))):
            found = read_debug(main.data, main.sections, (common.data, common.sections))
            assert checked(found) is found
            assert found.missing or found.files
            read_mentions(main.data, main.sections, {"struct node"}, (common.data, common.sections))


@functools.cache
def _good(name: str) -> ElfTables:
    return ElfTables((folder() / name).read_bytes(), name)


def package(data: bytes) -> None:
    """Read to its end, and searched for a module's debug file."""
    deadline = time.monotonic() + MAX_SECONDS

    def check_time() -> None:
        if time.monotonic() > deadline:
            raise UnpackError("late")

    with contextlib.suppress(UnpackError):
        for member, content in find_files(data, lambda member: member.size < 1 << 20, check_time):
            assert len(content) == member.size
            assert member.path.startswith("/")
    with contextlib.suppress(Refused):
        list(Package(Path("x.deb"), data, check_time).candidates(Wanted("abcdef", "x.debug", Path("/usr/lib/x"), None)))


def companion_seeds() -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder().glob("types*.debug"))]


def shared_seeds() -> list[bytes]:
    return [(folder() / name).read_bytes() for name in ("one", "common")]


def package_seeds() -> list[bytes]:
    tar = _file("./usr/lib/debug/.build-id/ab/cdef.debug", b"\x7fELF" * 200) + _file("./" + "n" * 60, b"") + bytes(1024)
    packed = {
        "data.tar": tar,
        "data.tar.xz": lzma.compress(tar),
        "data.tar.zst": zstandard.compress(tar),
        "data.tar.gz": gzip.compress(tar),
    }
    return [MAGIC + _member("debian-binary", b"2.0\n") + _member(name, content) for name, content in packed.items()]


def _member(name: str, content: bytes) -> bytes:
    head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
    return head + content + b"\n" * (len(content) % 2)


def _file(name: str, content: bytes) -> bytes:
    header = bytearray(512)
    header[: len(name)] = name.encode()
    header[124:136] = b"%011o\0" % len(content)
    header[148:157] = b" " * 8 + b"0"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content + bytes(-len(content) % 512)
