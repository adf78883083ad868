"""The cache makes things faster and never different."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import hotupgrade
from hotupgrade.binary import cache as module
from hotupgrade.binary import code
from hotupgrade.binary.build import Build
from hotupgrade.binary.cache import Cache, cache_key, default_directory, entry, load_build, read_ahead
from unit.binary.samples import EVERYTHING
from unit.conftest import Compiler


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "deep" / "cache")


@pytest.fixture
def data(compiler: Compiler) -> bytes:
    return compiler.file(EVERYTHING, "-Wl,--emit-relocs").read_bytes()


@pytest.fixture
def count_scans(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    calls = []
    scan = code.scan

    def counted(*arguments: object, **options: object) -> object:
        calls.append(1)
        return scan(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(code, "scan", counted)
    return lambda: len(calls)


def files(cache: Cache) -> list[Path]:
    assert cache.directory is not None
    return sorted(cache.directory.iterdir())


def facts_of(build: Build) -> list[object]:
    references = build.references
    columns = [getattr(references, name).tolist() for name in module.REFERENCE_COLUMNS]
    return [columns, build.access.tolist(), build.undecodable, build.jump_tables, build.plain.tolist()]


def test_the_second_time_nothing_is_disassembled(cache: Cache, data: bytes, count_scans: Callable[[], int]) -> None:
    first = facts_of(load_build(data, "first", cache))
    assert count_scans() == 1
    assert facts_of(load_build(data, "second", cache)) == first
    assert count_scans() == 1
    assert facts_of(Build.from_bytes(data, "plain")) == first
    assert count_scans() == 2


def test_types_survive(cache: Cache, data: bytes) -> None:
    first, second = (load_build(data, "x", cache).references for _ in range(2))
    for name in module.REFERENCE_COLUMNS:
        assert getattr(first, name).dtype == getattr(second, name).dtype, name


def test_several_builds_are_read_ahead_by_processes_of_their_own(
    cache: Cache, compiler: Compiler, data: bytes, count_scans: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    other = compiler.file("struct s { int a; } s; int f(void) { return s.a; }", "-g").read_bytes()
    builds = [load_build(content, "it", cache) for content in (data, other, data)]
    read_ahead(builds, cache)
    assert all(cache.has(cache_key("code", build)) for build in builds)
    assert [cache.has(cache_key("debug", build)) for build in builds] == [False, True, False]  # where there is any
    for build in builds:
        assert build.references is not None
        assert "struct s" in build.debug.types or build.build_id != builds[1].build_id
    assert count_scans() == 0, "the children read them"
    read_ahead(builds, cache)  # nothing to do
    read_ahead(builds, Cache(None))  # nowhere to leave it


def test_the_directory_and_its_files_are_for_the_owner_alone(cache: Cache, data: bytes) -> None:
    old = os.umask(0)
    try:
        assert load_build(data, "x", cache).references
    finally:
        os.umask(old)
    assert cache.directory is not None
    assert stat.S_IMODE(cache.directory.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in files(cache)] == [0o600]


def test_a_stripped_twin_has_an_entry_of_its_own(
    cache: Cache, compiler: Compiler, tmp_path: Path, count_scans: Callable[[], int]
) -> None:
    """The build-id is the same, the rows are not."""
    whole = compiler.file(EVERYTHING)
    twin = tmp_path / "twin"
    os.system(f"strip --discard-all -o {twin} {whole}")
    first, second = load_build(whole.read_bytes(), "a", cache), load_build(twin.read_bytes(), "b", cache)
    assert first.build_id == second.build_id
    assert facts_of(first) != facts_of(second)
    assert count_scans() == 2


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x55
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "first byte": lambda path: flip(path, 0),
    "digest": lambda path: flip(path, 20),
    "middle": lambda path: flip(path, path.stat().st_size // 2),
    "last byte": lambda path: flip(path, -1),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "writable by the group": lambda path: path.chmod(0o620),
    "writable by others": lambda path: path.chmod(0o602),
    "symbolic link": lambda path: (path.rename(path.with_suffix(".real")), path.symlink_to(path.with_suffix(".real"))),
    "directory": lambda path: (path.unlink(), path.mkdir()),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_or_not_ours_alone_is_not_there(
    cache: Cache, data: bytes, count_scans: Callable[[], int], name: str
) -> None:
    wanted = facts_of(load_build(data, "x", cache))
    DAMAGE[name](files(cache)[0])
    assert facts_of(load_build(data, "x", cache)) == wanted
    assert count_scans() == 2


def test_a_directory_that_others_may_write_is_not_used(
    cache: Cache, data: bytes, count_scans: Callable[[], int]
) -> None:
    wanted = facts_of(load_build(data, "x", cache))
    assert cache.directory is not None
    cache.directory.chmod(0o777)
    assert facts_of(load_build(data, "x", cache)) == wanted
    assert count_scans() == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_belongs_to_another_user_is_not_used(
    cache: Cache, data: bytes, count_scans: Callable[[], int], what: str
) -> None:
    wanted = facts_of(load_build(data, "x", cache))
    assert cache.directory is not None
    os.chown(files(cache)[0] if what == "file" else cache.directory, 65534, 65534)
    assert facts_of(load_build(data, "x", cache)) == wanted
    assert count_scans() == 2


@pytest.mark.parametrize("place", ["/proc/no-such/cache", "/dev/null/cache", "/dev/null"])
def test_without_a_usable_directory_all_works(data: bytes, place: str) -> None:
    assert load_build(data, "x", Cache(Path(place))).references
    assert load_build(data, "x", Cache(None)).references


def test_well_formed_nonsense_is_not_believed(cache: Cache, data: bytes, count_scans: Callable[[], int]) -> None:
    """An entry that is whole and ours, but does not fit the build."""
    build = load_build(data, "x", cache)
    wanted = facts_of(build)
    good = cache.get(cache_key("code", build))
    assert good is not None
    arrays = {name: good.array(name).copy() for name in good.columns}
    for name, value in (("function", 1 << 20), ("entity", 1 << 20)):
        broken = {**arrays, name: np.full_like(arrays[name], value)}
        cache.put(entry(good.key, broken))
        assert facts_of(load_build(data, "x", cache)) == wanted
    cache.put(entry(good.key, {**arrays, "form": arrays["form"][:-1]}))
    assert facts_of(load_build(data, "x", cache)) == wanted
    cache.put(entry(good.key, {name: array for name, array in arrays.items() if name != "target"}))
    assert facts_of(load_build(data, "x", cache)) == wanted
    assert count_scans() == 5


def test_another_version_of_the_tool_starts_afresh(
    cache: Cache, data: bytes, count_scans: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_build(data, "x", cache).references
    monkeypatch.setattr(hotupgrade, "__version__", "0.0.0-other")
    assert load_build(data, "x", cache).references
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    assert load_build(data, "x", cache).references
    assert count_scans() == 3


def test_an_entry_under_another_name_is_not_taken(cache: Cache) -> None:
    cache.put(entry("one", {}))
    cache.put(entry("two", {}))
    one, two = files(cache)
    one.write_bytes(two.read_bytes())
    found = [cache.get("one"), cache.get("two")]
    assert [f.key if f else None for f in found] in ([None, "two"], ["one", None])


def test_the_directory_stays_bounded(cache: Cache) -> None:
    cache.put(entry("first", {}))
    assert cache.directory is not None
    (cache.directory / ".killed.part").write_bytes(b"left over")
    for path in cache.directory.iterdir():
        os.utime(path, (1, 1))
    for number in range(module.MAX_ENTRIES + 5):
        cache.put(entry(f"key {number}", {}))
    assert len(files(cache)) == module.MAX_ENTRIES
    assert cache.get("first") is None
    assert cache.get(f"key {module.MAX_ENTRIES + 4}") is not None


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert default_directory() == Path("/var/cache/hotupgrade")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_directory() == Path("/elsewhere/hotupgrade")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.setenv("HOME", "/home/someone")
        assert default_directory() == Path("/home/someone/.cache/hotupgrade")
