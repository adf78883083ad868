"""Files that are linked with --emit-relocs, to be checked: how each is made, from sources that Debian has."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "build" / "crosscheck"
OVS, STATIC = ROOT / "build" / "ovs" / "base", ROOT / "build" / "ovs" / "base-static"
RECORDS = "-Wl,--emit-relocs"


@dataclass(frozen=True)
class Subject:
    name: str
    source: str  # where it comes from, for the table
    make: Callable[[Path], Path]  # builds it in a directory unless it is there


# Open vSwitch, from the objects of "make ovs"


def _library(sources: str) -> Callable[[Path], Path]:
    """A library of the shared build."""

    def make(directory: Path) -> Path:
        objects = sorted(OVS.glob(f"{sources}/**/.libs/*.o"))
        return _linked(directory / f"{sources}.so", ["-shared", RECORDS, *map(str, objects)])

    return make


def _switch(tree: Path, objects: str, name: str) -> Callable[[Path], Path]:
    """ovs-vswitchd with everything of its own linked in."""

    def make(directory: Path) -> Path:
        makefile = (tree / "Makefile").read_text()
        libraries = " ".join(_variable(makefile, key) for key in ("SSL_LIBS", "CAPNG_LDADD", "LIBS"))
        own = [str(path) for path in sorted(tree.glob("vswitchd/*.o"))]
        parts = sorted(path for pattern in objects.split() for path in tree.glob(pattern))
        words = ["-pie", RECORDS, *own, "-Wl,--start-group", *map(str, parts), "-Wl,--end-group", *libraries.split()]
        return _linked(directory / name, words)

    return make


def _variable(makefile: str, name: str) -> str:
    found = re.search(rf"^{name} = (.*)$", makefile, re.MULTILINE)
    return found[1] if found else ""


ARCHIVES = "ofproto/.libs/*.a lib/.libs/*.a ovsdb/.libs/libovsdb.a"
OBJECTS = "ofproto/.libs/*.o lib/**/.libs/*.o ovsdb/.libs/*.o"

SWITCH = (
    Subject("libopenvswitch", "openvswitch-source", _library("lib")),
    Subject("libofproto", "openvswitch-source", _library("ofproto")),
    Subject("ovs-vswitchd", "openvswitch-source, static", _switch(STATIC, ARCHIVES, "ovs-vswitchd")),
    Subject("ovs-vswitchd of PIC objects", "openvswitch-source", _switch(OVS, OBJECTS, "ovs-vswitchd-pic")),
)


# Others, from source packages


def _sqlite(directory: Path) -> Path:
    tree = fetched("sqlite3", directory)
    if not (tree / "sqlite3.c").exists():
        _run(["./configure", "--disable-tcl"], tree)
        _run(["make", "sqlite3.c"], tree)
    options = ["-DSQLITE_ENABLE_COLUMN_METADATA", "-DSQLITE_ENABLE_FTS3", "-DSQLITE_ENABLE_RTREE"]
    return _linked(directory / "libsqlite3.so", ["-O2", "-fPIC", "-shared", RECORDS, *options, f"{tree}/sqlite3.c"])


def _openssl(name: str) -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        tree = fetched("openssl", directory)
        if not (tree / name).exists():
            _run(["./Configure", "linux-x86_64", "shared", "no-tests", "no-legacy", RECORDS], tree)
            _run(["make", f"-j{os.cpu_count()}", "build_generated"], tree)
            _run(["make", f"-j{os.cpu_count()}", "libcrypto.so", "libssl.so"], tree)
        return tree / name

    return make


def _dpdk(name: str) -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        tree = fetched("dpdk", directory)
        path = tree / "built" / "lib" / f"{name}.so.23.0"
        if not (tree / "built").exists():
            options = [f"-Dc_link_args={RECORDS}", "-Ddisable_drivers=*/*", "-Dtests=false"]
            _run(["meson", "setup", "built", *options, "-Dcpu_instruction_set=generic"], tree)
        if not path.exists():
            _run(["ninja", "-C", "built", str(path.relative_to(tree / "built"))], tree)
        return path

    return make


DPDK = ("eal", "ring", "mempool", "mbuf", "net", "ethdev", "hash", "acl", "lpm", "cryptodev", "vhost")

OTHERS = (
    Subject("libcrypto", "openssl", _openssl("libcrypto.so.3")),
    Subject("libssl", "openssl", _openssl("libssl.so.3")),
    Subject("libsqlite3", "sqlite3", _sqlite),
    *(Subject(f"librte_{name}", "dpdk", _dpdk(f"librte_{name}")) for name in DPDK),
)


def fetched(package: str, directory: Path) -> Path:
    """The unpacked tree of a source package."""
    place = directory / package
    if not (place / "version").exists():
        done = _run([str(ROOT / "scripts" / "fetch-debian-tree"), package, str(place)], ROOT)
        (place / "version").write_text(done)
    return place / "tree"


def _linked(path: Path, words: Sequence[str]) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _run(["gcc", *words, "-o", str(path)], path.parent)
    return path


def _run(words: Sequence[str], directory: Path) -> str:
    done = subprocess.run(words, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)[:400]}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout
