"""MiniDebugInfo, made as Fedora's find-debuginfo makes it."""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Kind
from hotupgrade.binary.separate import mini
from hotupgrade.errors import Refused
from unit.binary.separate.stripped import SOURCES, beside, run, strip
from unit.conftest import Compiler


def names_of(path: Path, *options: str) -> set[str]:
    text = subprocess.run(["nm", *options, "--format=posix", "--defined-only", path], capture_output=True, text=True)
    return {line.split()[0] for line in text.stdout.splitlines() if line.split()[1] in "TtWwi"}


def with_mini(whole: Path, place: Path) -> Path:
    """A stripped module that keeps the names of its local functions."""
    kept = names_of(whole) - {name.split("@")[0] for name in names_of(whole, "-D")}
    (place / "keep").write_text("".join(f"{name}\n" for name in sorted(kept)))
    module, debug = strip(whole, place, link=False)
    run("objcopy", "-S", "--remove-section=.comment", "--keep-symbols=keep", debug, "mini", cwd=place)
    run("xz", "mini", cwd=place)
    run("objcopy", "--add-section=.gnu_debugdata=mini.xz", module, cwd=place)
    debug.unlink()
    return module


@pytest.fixture
def whole(compiler: Compiler) -> Path:
    return compiler.file(SOURCES, "-g")


def functions(build: Build) -> dict[str, tuple[int, int, bool]]:
    entities = build.entities
    rows = zip(entities.names, entities.kind, entities.address, entities.size, entities.exported, strict=True)
    return {f"{n}@{a}": (int(a), int(s), bool(e)) for n, k, a, s, e in rows if k == Kind.FUNCTION}


def test_it_names_every_function(whole: Path, tmp_path: Path) -> None:
    build, expected = Build.open(with_mini(whole, tmp_path)), Build.open(whole)
    assert functions(build) == functions(expected)
    assert any(name.startswith("helper") for name in build.entities.names)  # it is a local function
    assert "work" in build.by_name
    assert "head" not in build.entities.names  # a local variable
    assert build.debug.missing == "it has no debug information"
    assert build.references.position.size == expected.references.position.size


def test_versions_of_exported_functions(compiler: Compiler, tmp_path: Path) -> None:
    script = tmp_path / "versions"
    script.write_text("V1 { global: f; };\nV2 { global: f; g; local: *; } V1;\n")
    text = """
    __asm__(".symver old_f, f@V1"); __asm__(".symver new_f, f@@V2");
    static __attribute__((noinline)) int local(int x) { return x * 3; }
    int old_f(int x) { return local(x); } int new_f(void) { return 2; } int g(void) { return 3; }
    """
    whole = compiler.file(text, f"-Wl,--version-script={script}", "-g")
    build = Build.open(with_mini(whole, tmp_path))
    expected = Build.open(whole)
    for name in ("f", "f@V1", "g"):
        row, other = build.by_name[name], expected.by_name[name]
        assert build.entities.address[row] == expected.entities.address[other]
    assert "local" in build.entities.names


def test_a_debug_file_says_more(whole: Path, tmp_path: Path) -> None:
    module = with_mini(whole, tmp_path)
    _, debug = strip(whole, tmp_path / "again")
    debug.rename(tmp_path / debug.name)
    run("objcopy", f"--add-gnu-debuglink={debug.name}", module, cwd=tmp_path)
    assert "head" in Build.open(module, beside()).entities.names


@pytest.mark.parametrize("kind", ["garbage", "cut off", "bomb", "other", "text"])
def test_what_is_of_no_use_counts_as_absent(
    compiler: Compiler, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(mini, "MAX_UNPACKED", 1 << 20)
    module = with_mini(whole, tmp_path)
    if kind == "other":
        (tmp_path / "x").mkdir()
        with_mini(compiler.file({**SOURCES, "three.c": "int large[1000] = {1};"}), tmp_path / "x")
        content = (tmp_path / "x" / "mini.xz").read_bytes()
    else:
        good = (tmp_path / "mini.xz").read_bytes()
        contents = {"garbage": b"\xff" * 100, "cut off": good[:-20], "bomb": lzma.compress(bytes(1 << 22))}
        content = {**contents, "text": lzma.compress(b"hello")}[kind]
    (tmp_path / "spoiled").write_bytes(content)
    run("objcopy", "--update-section=.gnu_debugdata=spoiled", module, cwd=tmp_path)
    with pytest.raises(Refused, match=r"\[no-symbols\]"):
        Build.open(module)
