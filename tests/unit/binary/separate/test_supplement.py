"""What dwz makes of debug information: partial units in the file, and a file that several share.  It says the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.binary.debug import units
from hotupgrade.binary.debug.mentions import read_mentions
from hotupgrade.binary.separate.find import Search
from hotupgrade.binary.separate.places import DebugRoot
from hotupgrade.errors import Refused
from unit.binary.separate.stripped import (
    SOURCES,
    assert_same,
    beside,
    by_identity,
    debug_root,
    named,
    run,
    said,
    strip,
    trusted,
)
from unit.conftest import Compiler

pytestmark = pytest.mark.skipif(not shutil.which("dwz"), reason="no dwz")

# Enough that is the same in several files for dwz to find it worth its while.
COMMON = """
#include <stdio.h>
#include <stdlib.h>
#include <pthread.h>
#include <netinet/in.h>
#include <sys/socket.h>
struct shared { struct shared *next; pthread_mutex_t lock; struct sockaddr_in6 from; FILE *file; };
typedef struct { long low, high; } pair_t;
enum { LARGE = 1 << 20, SMALL = 1 };
static inline int inlined(struct shared *s, pair_t p) { static int count; return s->next != 0 + p.low + count++; }
"""
PARTS = {
    name: f"{COMMON}{text}\nint by_{name[:3]}(struct shared *s) {{ pair_t p = {{rand()}}; return inlined(s, p); }}"
    for name, text in SOURCES.items()
}


@pytest.fixture(params=["-gdwarf-5", "-gdwarf-4"])
def whole(request: pytest.FixtureRequest, compiler: Compiler) -> Path:
    return compiler.file(PARTS, "-g", request.param)


def squeezed(whole: Path, place: Path, *options: str) -> tuple[Path, Path]:
    """A stripped module with its debug file and another such pair, that share ``place``/common, as dwz leaves them."""
    module, debug = strip(whole, place / "one", link=False)
    _, other = strip(whole, place / "two", link=False)
    run("dwz", *options, "-m", place / "common", "-M", str(place / "common"), debug, other)
    return module, debug


def found_by_identity(debug: Path, root: Path, build_id: str) -> Search:
    debug.rename(by_identity(root, build_id))
    return debug_root(root)


def test_units_that_others_import(whole: Path, tmp_path: Path) -> None:
    module, debug = strip(whole, tmp_path, link=False)
    size = debug.stat().st_size
    run("dwz", debug)
    assert debug.stat().st_size < size
    expected = Build.open(whole)
    assert_same(Build.open(module, found_by_identity(debug, tmp_path, expected.build_id)), expected)


def test_squeezed_within_the_module(whole: Path, tmp_path: Path) -> None:
    run("dwz", "-o", "squeezed", whole, cwd=tmp_path)
    assert_same(Build.open(tmp_path / "squeezed"), Build.open(whole))


@pytest.mark.parametrize("dialect", [(), ("--dwarf-5",)])
def test_a_file_that_several_share(whole: Path, tmp_path: Path, dialect: tuple[str, ...]) -> None:
    """.gnu_debugaltlink, and .debug_sup as DWARF 5 has it."""
    module, debug = squeezed(whole, tmp_path, *dialect)
    expected = Build.open(whole)
    search = found_by_identity(debug, tmp_path / "debug", expected.build_id)
    build = Build.open(module, search)
    assert build.separate.supplement is not None
    assert_same(build, expected)
    names = {"struct shared", "pair_t", "struct mine"}
    file, supplement = build.separate.types, build.separate.supplement
    assert file is not None
    found = read_mentions(file.data, file.sections, names, (supplement.data, supplement.sections))
    assert found == read_mentions(expected.data, expected.sections, names)
    assert found == build.spoken_of(names)


def test_where_the_shared_file_may_lie(whole: Path, tmp_path: Path) -> None:
    module, debug = strip(whole, tmp_path / "one", link=False)
    _, other = strip(whole, tmp_path / "two", link=False)
    run("dwz", "-m", "common", "-M", "../.dwz/common.debug", debug, other, cwd=tmp_path)
    common, expected, root = tmp_path / "common", Build.open(whole), tmp_path / "debug"
    target = by_identity(root, expected.build_id)
    shutil.copy(debug, target)
    beside_it = target.parent.parent / ".dwz" / "common.debug"
    below, flat = root / ".dwz" / "common.debug", root / "common.debug"
    for place, search in ((beside_it, debug_root(root)), (below, debug_root(root)), (flat, named(root))):
        place.parent.mkdir(exist_ok=True)
        shutil.copy(common, place)
        assert_same(Build.open(module, search), expected)
        place.unlink()
    alone = Build.open(module, debug_root(root))
    assert "part of its debug information is in ../.dwz/common.debug" in alone.debug.missing
    assert str(below) in alone.debug.missing


def test_a_link_by_the_build_id(whole: Path, tmp_path: Path) -> None:
    """As Fedora has it: the file itself lies elsewhere, and names in it start from there."""
    module, debug = strip(whole, tmp_path / "one", link=False)
    _, other = strip(whole, tmp_path / "two", link=False)
    place, root = tmp_path / "debug" / "usr" / "lib64", tmp_path / "debug"
    run("dwz", "-m", "common", "-M", "../../.dwz/common", debug, other, cwd=tmp_path)
    place.mkdir(parents=True)
    (root / ".dwz").mkdir()
    (tmp_path / "common").rename(root / ".dwz" / "common")
    debug.rename(place / "libx.so.debug")
    expected = Build.open(whole)
    by_identity(root, expected.build_id).symlink_to("../../usr/lib64/libx.so.debug")
    build = Build.open(module, Search((DebugRoot(root, trusted),)))
    assert_same(build, expected)


def test_the_shared_file_by_its_build_id(whole: Path, tmp_path: Path) -> None:
    module, debug = squeezed(whole, tmp_path)
    expected, root = Build.open(whole), tmp_path / "debug"
    search = found_by_identity(debug, root, expected.build_id)
    link = Build.open(module, search).separate.supplement
    assert link is not None
    identity = link.build_id()
    assert identity
    (tmp_path / "common").rename(by_identity(root, identity))
    assert_same(Build.open(module, search), expected)


@pytest.mark.parametrize("dialect", [(), ("--dwarf-5",)])
def test_a_shared_file_of_others(compiler: Compiler, whole: Path, tmp_path: Path, dialect: tuple[str, ...]) -> None:
    module, debug = squeezed(whole, tmp_path, *dialect)
    squeezed(compiler.file({**PARTS, "three.c": COMMON}, "-g"), tmp_path / "others", *dialect)
    shutil.copy(tmp_path / "others" / "common", tmp_path / "common")
    build = Build.open(module, found_by_identity(debug, tmp_path / "debug", Build.open(whole).build_id))
    assert "part of its debug information is in" in build.debug.missing
    (problem,) = build.separate.problems
    assert (problem.code, problem.subject) == ("debug-mismatch", str(tmp_path / "common"))
    assert "is asked for" in problem.text


def test_in_the_module_itself(whole: Path, tmp_path: Path) -> None:
    """Nothing is stripped, but the module names a shared file."""
    shutil.copy(whole, tmp_path / "one")
    shutil.copy(whole, tmp_path / "two")
    run("dwz", "-m", "common", "-M", "common", "one", "two", cwd=tmp_path)
    assert "which was not looked for" in Build.open(tmp_path / "one").debug.missing
    assert_same(Build.open(tmp_path / "one", beside()), Build.open(whole))


def test_without_symbols_the_shared_file_is_no_matter(whole: Path, tmp_path: Path) -> None:
    module, debug = squeezed(whole, tmp_path)
    (tmp_path / "common").unlink()
    run("strip", "-g", debug)
    with pytest.raises(Refused, match="no symbols"):
        Build.open(module, beside())


def test_the_same_types_are_private_to_files(compiler: Compiler, tmp_path: Path) -> None:
    """A type in a unit that two files import is that of these two, not of a third."""
    text = COMMON + "struct own { long %s; }; struct own object_%s; int f_%s(struct shared *s) { return s->next != 0; }"
    fields = {"a": "x", "b": "x", "c": "y"}
    sources = {f"{name}.c": text % (field, name, name) for name, field in fields.items()}
    whole = compiler.file(sources, "-g")
    run("dwz", "-o", "squeezed", whole, cwd=tmp_path)
    found, expected = Build.open(tmp_path / "squeezed").debug, Build.open(whole).debug
    assert len(expected.types["struct own"]) == 2
    assert said(found) == said(expected)


@pytest.mark.parametrize("room", [0, 3])
def test_more_is_shared_than_anybody_needs(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """A few bytes could say of every file what is said once."""
    run("dwz", "-o", "squeezed", whole, cwd=tmp_path)
    monkeypatch.setattr(units, "SHARED_ANYHOW", room)
    monkeypatch.setattr(units, "SHARED_BYTES", 1 << 40)
    assert "shares more between its units" in Build.open(tmp_path / "squeezed").debug.missing
    assert not Build.open(whole).debug.missing
