"""Debug files in all the places where they may lie: the module is then as if it had never been stripped."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.binary.separate.find import Search
from hotupgrade.errors import Refused
from unit.binary.separate.stripped import (
    SOURCES,
    assert_same,
    beside,
    by_identity,
    debug_root,
    named,
    run,
    strip,
)
from unit.conftest import Compiler

FLAVOURS = {
    "dwarf 5": ("-g",),
    "dwarf 4": ("-g", "-gdwarf-4"),
    "type units": ("-g", "-fdebug-types-section"),
    "zlib": ("-g", "-gz=zlib"),
    "zstd": ("-g", "-Wl,--compress-debug-sections=zstd"),
    "old zlib": ("-g", "-gdwarf-4", "-gz=zlib-gnu"),
    "64-bit": ("-g", "-gdwarf64"),
    "lto": ("-g", "-flto"),
    "now": ("-g", "-Wl,-z,now", "-Wl,-z,pack-relative-relocs"),
    "one segment": ("-g", "-Wl,-z,noseparate-code"),
}


@pytest.fixture
def whole(compiler: Compiler) -> Path:
    return compiler.file(SOURCES, "-g")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_as_if_it_had_never_been_stripped(compiler: Compiler, tmp_path: Path, flavour: str) -> None:
    whole = compiler.file(SOURCES, *FLAVOURS[flavour])
    module, _ = strip(whole, tmp_path)
    assert_same(Build.open(module, beside()), Build.open(whole))


@pytest.mark.parametrize("kind", ["zlib", "zstd", "zlib-gnu"])
def test_debug_files_are_packed_later(whole: Path, tmp_path: Path, kind: str) -> None:
    module, debug = strip(whole, tmp_path, link=False)
    target = by_identity(tmp_path, Build.open(whole).build_id)
    run("objcopy", f"--compress-debug-sections={kind}", debug, target)
    debug.unlink()
    assert_same(Build.open(module, debug_root(tmp_path)), Build.open(whole))


def test_a_program(compiler: Compiler, tmp_path: Path) -> None:
    whole = compiler.file({**SOURCES, "main.c": "int main(void) { return 0; }"}, "-g", executable=True)
    module, _ = strip(whole, tmp_path)
    assert_same(Build.open(module, beside()), Build.open(whole))


def test_cxx(compiler: Compiler, tmp_path: Path) -> None:
    text = """
    #include <string>
    #include <vector>
    namespace { struct hidden { virtual ~hidden() = default; std::vector<int> all; }; thread_local hidden each; }
    int size(const std::string &s) { static hidden one; return int(s.size() + one.all.size() + each.all.size()); }
    """
    whole = compiler.file({"module.cc": text}, "-g")
    module, _ = strip(whole, tmp_path)
    assert_same(Build.open(module, beside()), Build.open(whole))


def test_clang_and_lld(tmp_path: Path) -> None:
    if not shutil.which("clang"):
        pytest.skip("no clang")
    for name, text in SOURCES.items():
        (tmp_path / name).write_text(text)
    run("clang", "-O2", "-g", "-fPIC", "-shared", "-Wl,--build-id", *SOURCES, "-o", "whole", cwd=tmp_path)
    module, _ = strip(tmp_path / "whole", tmp_path / "aside")
    assert_same(Build.open(module, beside()), Build.open(tmp_path / "whole"))


@pytest.mark.parametrize("options", [(), ("--reloc-debug-sections",), ("-g",)])
def test_elfutils(whole: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    if not shutil.which("eu-strip"):
        pytest.skip("no eu-strip")
    run("eu-strip", *options, "-f", "libx.so.debug", "-o", "libx.so", whole, cwd=tmp_path)
    assert_same(Build.open(tmp_path / "libx.so", beside()), Build.open(whole))


# Places


def test_beside_the_module_and_in_a_folder_of_its_own(whole: Path, tmp_path: Path) -> None:
    module, debug = strip(whole, tmp_path / "lib")
    expected = Build.open(whole)
    assert_same(Build.open(module, beside()), expected)
    (module.parent / ".debug").mkdir()
    debug.rename(module.parent / ".debug" / debug.name)
    assert_same(Build.open(module, beside()), expected)


def test_below_the_folder_for_debug_information(whole: Path, tmp_path: Path) -> None:
    module, debug = strip(whole, tmp_path / "lib")
    root, expected = tmp_path / "debug", Build.open(whole)
    target = root / module.parent.relative_to("/") / debug.name
    target.parent.mkdir(parents=True)
    debug.rename(target)
    assert_same(Build.open(module, debug_root(root)), expected)
    target.rename(by_identity(root, expected.build_id))
    assert_same(Build.open(module, debug_root(root)), expected)


def test_packages_that_know_lib_as_a_folder_of_its_own(whole: Path, tmp_path: Path) -> None:
    module, debug = strip(whole, tmp_path / "lib")
    root, data = tmp_path / "debug", module.read_bytes()
    for told, kept in (("/usr/lib/x/libx.so", "lib/x"), ("/lib/x/libx.so", "usr/lib/x"), ("/lib/x/libx.so", "lib/x")):
        target = root / kept / debug.name
        target.parent.mkdir(parents=True)
        shutil.copy(debug, target)
        assert_same(Build(data, "it", Path(told), debug_root(root)), Build.open(whole))
        shutil.rmtree(root)


@pytest.mark.parametrize("layout", ["unpacked", "flat", "identity", "tree", "copy"])
def test_folders_that_the_operator_names(whole: Path, tmp_path: Path, layout: str) -> None:
    module, debug = strip(whole, tmp_path / "lib")
    root, expected = tmp_path / "named", Build.open(whole)
    target = {
        "unpacked": by_identity(root / "usr/lib/debug", expected.build_id),
        "identity": by_identity(root, expected.build_id),
        "flat": root / debug.name,
        "tree": root / module.parent.relative_to("/") / debug.name,
        "copy": root / module.name,
    }[layout]
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(whole if layout == "copy" else debug, target)
    debug.unlink()
    assert_same(Build.open(module, named(root)), expected)


def test_a_module_that_lost_only_its_debug_information(whole: Path, tmp_path: Path) -> None:
    strip(whole, tmp_path)
    run("strip", "-g", "-o", "half", whole, cwd=tmp_path)
    run("objcopy", "--add-gnu-debuglink=libx.so.debug", "half", cwd=tmp_path)
    assert_same(Build.open(tmp_path / "half", beside()), Build.open(whole))


def test_a_module_that_lost_its_local_symbols(whole: Path, tmp_path: Path) -> None:
    strip(whole, tmp_path)
    run("strip", "-x", "-g", "-o", "half", whole, cwd=tmp_path)
    run("objcopy", "--add-gnu-debuglink=libx.so.debug", "half", cwd=tmp_path)
    assert_same(Build.open(tmp_path / "half", beside()), Build.open(whole))


def test_what_is_in_the_file_is_not_looked_for(whole: Path) -> None:
    class Forbidden:
        def candidates(self, wanted: object) -> list[object]:
            raise AssertionError(wanted)

        described = candidates

    assert not Build.open(whole, Search((Forbidden(),))).debug.missing  # type: ignore[arg-type]


# What does not belong


def test_of_another_build(compiler: Compiler, whole: Path, tmp_path: Path) -> None:
    """Hazard 26."""
    module, debug = strip(whole, tmp_path / "lib")
    other = compiler.file({**SOURCES, "one.c": SOURCES["one.c"].replace("text[12]", "text[24]")}, "-g")
    strip(other, tmp_path / "other")
    shutil.copy(tmp_path / "other" / debug.name, debug)
    with pytest.raises(Refused) as caught:
        Build.open(module, beside())
    mismatch, stripped = caught.value.reasons
    assert (mismatch.code, mismatch.subject) == ("debug-mismatch", str(debug))
    assert Build.open(whole).build_id in mismatch.text
    assert Build.open(other).build_id in mismatch.text
    assert stripped.code == "no-symbols"


def test_of_another_build_where_only_types_are_missing(compiler: Compiler, whole: Path, tmp_path: Path) -> None:
    other = compiler.file({**SOURCES, "one.c": SOURCES["one.c"].replace("text[12]", "text[24]")}, "-g")
    _, debug = strip(other, tmp_path)
    run("strip", "-g", "-o", "half", whole, cwd=tmp_path)
    run("objcopy", f"--add-gnu-debuglink={debug.name}", "half", cwd=tmp_path)
    build = Build.open(tmp_path / "half", beside())
    assert "no debug information, and none was found in" in build.debug.missing
    assert str(debug) in build.debug.missing
    assert [problem.code for problem in build.separate.problems] == ["debug-mismatch"]


def test_the_right_one_is_found_behind_a_wrong_one(compiler: Compiler, whole: Path, tmp_path: Path) -> None:
    module, debug = strip(whole, tmp_path / "lib")
    expected = Build.open(whole)
    debug.rename(by_identity(tmp_path, expected.build_id))
    strip(compiler.file(SOURCES, "-g", "-O1"), tmp_path / "other")
    shutil.copy(tmp_path / "other" / debug.name, debug)
    build = Build.open(module, debug_root(tmp_path))
    assert_same(build, expected)
    assert [problem.code for problem in build.separate.problems] == ["debug-mismatch"]


def test_a_linked_file_that_was_changed(whole: Path, tmp_path: Path) -> None:
    module, debug = strip(whole, tmp_path)
    debug.write_bytes(debug.read_bytes() + b"\0")
    with pytest.raises(Refused, match=r"its CRC is .* asks for"):
        Build.open(module, beside())


def test_a_module_without_a_build_id(compiler: Compiler, tmp_path: Path) -> None:
    whole = compiler.file(SOURCES, "-g", "-Wl,--build-id=none")
    module, debug = strip(whole, tmp_path)
    assert_same_but_for_the_id = Build.open(module, beside())
    assert assert_same_but_for_the_id.debug == Build.open(whole).debug
    module.write_bytes(module.read_bytes().replace(debug.name.encode(), b"libz.so.debug"))
    shutil.copy(debug, tmp_path / "module")
    with pytest.raises(Refused, match=r"\[no-symbols\]"):
        Build.open(module, named(tmp_path))


def test_sections_in_other_places(compiler: Compiler, whole: Path, tmp_path: Path) -> None:
    """The build-id says that it is the same, the rest of the file that it is not."""
    module, _ = strip(whole, tmp_path)
    identity = bytes.fromhex(Build.open(whole).build_id)
    other = compiler.file({**SOURCES, "three.c": "int big[99] = {1};"}, "-g")
    _, debug = strip(other, tmp_path / "other", link=False)
    forged = debug.read_bytes().replace(bytes.fromhex(Build.open(other).build_id), identity)
    by_identity(tmp_path, identity.hex()).write_bytes(forged)
    (tmp_path / "libx.so.debug").unlink()
    with pytest.raises(Refused, match=r"it has a section .* has not, though both have build-id"):
        Build.open(module, debug_root(tmp_path))


def test_it_is_said_where_was_looked(whole: Path, tmp_path: Path) -> None:
    module, debug = strip(whole, tmp_path / "lib")
    debug.unlink()
    with pytest.raises(Refused) as caught:
        Build.open(module, debug_root(tmp_path / "debug"))
    text = caught.value.reasons[0].text
    assert str(debug) in text
    assert str(by_identity(tmp_path / "debug", Build.open(whole).build_id)) in text
    assert "--debug-dir" in text
    assert "dbgsym" in text


@pytest.mark.parametrize("kind", ["cut off", "text", "empty", "folder", "pipe"])
def test_files_of_no_use(whole: Path, tmp_path: Path, kind: str) -> None:
    module, debug = strip(whole, tmp_path)
    content = debug.read_bytes()
    debug.unlink()
    if kind == "folder":
        debug.mkdir()
    elif kind == "pipe":
        run("mkfifo", debug)
    else:
        debug.write_bytes({"cut off": content[:-100], "text": b"hello", "empty": b""}[kind])
    with pytest.raises(Refused) as caught:
        Build.open(module, beside())
    assert caught.value.reasons[-1].code == "no-symbols"
    assert len(caught.value.reasons) == (1 if kind in ("folder", "pipe") else 2)


def test_the_companion_counts_in_the_fingerprint(whole: Path, tmp_path: Path) -> None:
    """What was found out with other debug information must not be believed."""
    module, debug = strip(whole, tmp_path, link=False)
    target = by_identity(tmp_path, Build.open(whole).build_id)
    run("strip", "-g", "-o", target, debug)
    first = Build.open(module, debug_root(tmp_path))
    assert first.debug.missing
    shutil.copy(debug, target)
    second = Build.open(module, debug_root(tmp_path))
    assert not second.debug.missing
    assert first.fingerprint != second.fingerprint
