"""The same upgrade for builds that were compiled and linked in all the ways that distributions use.

``python -m live.flavours`` tries them all and writes docs/compilers.md; tests/live/test_flavours.py compares QUICK.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from live.harness import NOT_NOW, REFUSED, SOURCES, Answer, Builder, HotUpgrade, Options, Program, check_done

PAGE = Path(__file__).parents[2] / "docs" / "compilers.md"
LIMIT_S = 300
NAMES = ("lists", "statics", "once", "pointers", "local", "initial", "tls", "binding")


@dataclass(frozen=True)
class Flavour:
    language: str
    compiler: str
    flags: tuple[str, ...]
    without: str = ""  # of NAMES: a source that this compiler cannot translate
    why: str = ""

    @property
    def key(self) -> str:
        return " ".join([self.language, self.compiler, *(self.flags or ("-O2",))])

    @property
    def tools(self) -> tuple[str, ...]:
        """Programs without which it cannot be tried."""
        return (self.compiler, *(["ld.lld"] if LLD in self.flags else []))


LLD = "-fuse-ld=lld"
ICF = (LLD, "-ffunction-sections", "-fdata-sections", "-Wl,--icf=all")
EACH = (
    ("-O0",),
    ("-O2",),
    ("-O3",),
    ("-Os",),
    ("-fno-plt",),
    ("-fcf-protection=full",),
    ("-fstack-protector-strong", "-D_FORTIFY_SOURCE=2"),
    ("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"),
    (LLD,),
    ICF,
)
# Where the languages, or the compilers, do not differ one is enough.
GCC = (
    ("-flto", "-ffat-lto-objects"),
    ("-fcf-protection=full", "-Wl,-z,ibtplt"),
    ("-Wl,-Bsymbolic", "-fno-semantic-interposition"),
    ("-fvisibility=hidden",),
    ("-Wl,-z,pack-relative-relocs",),
    ("-Wl,-z,norelro", "-Wl,-z,noseparate-code"),
    ("-fno-omit-frame-pointer",),
    ("-gz", "-Wl,--hash-style=sysv"),
    ("-fno-asynchronous-unwind-tables", "-fno-exceptions"),
    ("-mtls-dialect=gnu2",),
    ("-gdwarf-4",),
    ("-gsplit-dwarf",),
    ("-g0",),
)
CLANG = (
    ("-flto", LLD),
    ("-Wl,-z,pack-relative-relocs",),
    (LLD, "-Wl,--pack-dyn-relocs=relr"),
)
CXX = (
    ("-O0",),
    ("-O2",),
    ("-O3",),
    ("-Os",),
    ("-fno-plt",),
    ("-fcf-protection=full",),
    ("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"),
    ICF,
)
FLAVOURS = (
    *(Flavour("C", "gcc", flags) for flags in (*EACH, *GCC)),
    *(Flavour("C", "clang", flags) for flags in (*EACH, *CLANG)),
    Flavour("C", "clang", ("-flto=thin", LLD), "binding", "clang 14 loses a static IFUNC and its resolver"),
    *(Flavour("C, folded.c", "clang", flags) for flags in ((), ICF, (*ICF[:-1], "-Wl,--icf=safe"))),
    *(Flavour("C++", "g++", flags) for flags in (*CXX, ("-flto", "-ffat-lto-objects"))),
    *(Flavour("C++", "clang++", flags) for flags in (*CXX, ("-flto", LLD))),
    *(Flavour("Rust", "rustc", ("-C", f"opt-level={level}")) for level in (0, 2)),
)


# Each language and compiler once, and what differs most: these are compared in "make test", a minute and a half.
QUICK = (
    *(Flavour("C", "gcc", flags) for flags in (("-O2",), ("-Os",), ("-flto", "-ffat-lto-objects"), ICF)),
    *(Flavour("C", "gcc", (flag,)) for flag in ("-fcf-protection=full", "-Wl,-z,pack-relative-relocs")),
    *(Flavour("C", "clang", flags) for flags in (("-O2",), ("-flto", LLD))),
    Flavour("C, folded.c", "clang", ICF),
    *(Flavour("C++", compiler, ("-O2",)) for compiler in ("g++", "clang++")),
    Flavour("C++", "clang++", ("-O0",)),
)
assert set(QUICK) <= set(FLAVOURS)


# What is upgraded.


@dataclass(frozen=True)
class Subject:
    """A library that comes in versions, and what its functions must answer."""

    library: Callable[[Builder, Flavour, int], Path]
    begin: tuple[tuple[str, int], ...]  # calls at the start
    check: Callable[[Program, int, int], None]  # (program, version, how often it has been checked with this)


def check(program: Program, version: int, calls: int) -> None:
    check_all_but_binding(program, version, calls)
    assert program.call("everything", 1) == 4 + 2110 * version


def check_all_but_binding(program: Program, version: int, calls: int) -> None:
    assert program.call("sum") == 21 * version
    assert program.call("empty_is_empty") == version
    assert program.call("initialised") == version * 1000000 + 1001
    assert program.call("identity") == 15 + version * 1000
    assert program.call("through_callback", 1) == 1 + version * 100
    assert program.call("weight_of_exported") == version * 7
    assert program.call("weight_of_first") == version * 11
    assert program.call("other", 5) == 15 + version + 3
    assert program.call("unrelated", 5) == 8
    assert program.call("get_limit", 0) == 100
    assert program.call("first", 1) == (10 + calls) * version
    assert program.call("second", 1) == 20 + calls
    assert program.call("answer", 0) == version * 1000000 - 10000 + 4000 + calls


def check_cxx(program: Program, version: int, calls: int) -> None:
    assert program.call("areas") == 9 * version + 27 + 1000 * version, "virtual functions of objects that live on"
    assert program.call("kinds") == 1000 * version + 111, "run-time types"
    assert program.call("guarded") == 100000 * version + 1002, "constructed once, by the first build"
    assert program.call("caught", 9) == 1090 + version
    assert program.call("caught", 1) == -version
    assert program.call("templates", 1) == (1 + calls) * version * 1000 + (8 + calls) * version
    assert program.call("of_this_thread", 1) == 100 + calls + 10000 * version
    assert program.call("inline_variable", 1) == (7 + calls) * version
    assert program.call("call_back", 2) == (6 + version) * 10 + 100000 * version


def check_rust(program: Program, version: int, calls: int) -> None:
    assert program.call("rust_areas") == 9 * version + 27 + 1000 * version
    assert program.call("rust_calls", 1) == calls * version
    assert program.call("rust_once") == 10000 + version
    assert program.call("rust_own", 1) == 100 + calls + 10000 * version
    assert program.call("rust_caught", 9) == 90 + version
    assert program.call("rust_caught", 1) == -version


def check_folded(program: Program, version: int, calls: int) -> None:
    assert program.call("folded_first", 5) == 22
    assert program.call("folded_second", 5) == 21 + version
    assert program.call("folded_both", 5) == 22000 + 21 + version


def _c(*parts: str) -> Callable[[Builder, Flavour, int], Path]:
    def made(build: Builder, flavour: Flavour, version: int) -> Path:
        # clang 14 calls a static resolver of an IFUNC unused.
        quiet = ("-Wno-unused-function",) if flavour.compiler == "clang" else ()
        options = Options(compiler=flavour.compiler, flags=(*quiet, *flavour.flags))
        return build.bundle("subjects", [part for part in parts if part != flavour.without], version, options)

    return made


def _cxx(build: Builder, flavour: Flavour, version: int) -> Path:
    options = Options(compiler=flavour.compiler, flags=("-std=c++17", *flavour.flags))
    return build.library("features", version, options)


def _rust(build: Builder, flavour: Flavour, version: int) -> Path:
    words = ["env", f"VERSION={version}", flavour.compiler, "--crate-type", "cdylib", "-g", *flavour.flags]
    soname = "librust.so.1"
    return build.built(f"rust-v{version}", soname, [*words, "-C", f"link-arg=-Wl,-soname,{soname}", str(RUST)])


RUST = SOURCES / "features.rs"
SUBJECTS: Mapping[str, Subject] = {
    "C": Subject(_c(*NAMES), (("make", 0), ("add", 1), ("add", 20)), check),
    "C, folded.c": Subject(_c("folded"), (), check_folded),
    "C++": Subject(_cxx, (("make_shapes", 3),), check_cxx),
    "Rust": Subject(_rust, (("rust_make", 3),), check_rust),
}


# What comes of it.


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    flavour: Flavour
    outcome: str

    def __str__(self) -> str:
        flags = f"`{' '.join(self.flavour.flags) or '-O2'}`"
        return f"| {self.flavour.language} | {self.flavour.compiler} | {flags} | {self.outcome} |"


def patiently(command: Callable[[], Answer]) -> Answer:
    """A thread that does not get a processor in time is no property of a compiler."""
    answer = command()
    for _ in range(4):
        if answer.code != NOT_NOW:
            break
        answer = command()
    return answer


def refused_by_loader(host: Path) -> str:
    """What the C library's loader has against a library, before anything of ours comes in; "" for nothing."""
    said = subprocess.run([host], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S).stderr
    found = re.search(r"error while loading shared libraries: \S+: (.*)", said)
    return found[1] if found else ""


def missing_tools(flavour: Flavour) -> str:
    return ", ".join(tool for tool in flavour.tools if not shutil.which(tool))


def outcome(flavour: Flavour, build: Builder, hu: HotUpgrade) -> str:
    """Upgrades, rolls back and upgrades again while the state lives on; raises if what runs then is not right."""
    subject = SUBJECTS[flavour.language]
    judge = check_all_but_binding if flavour.without == "binding" else subject.check
    one, two = (subject.library(build, flavour, version) for version in (1, 2))
    host = build.host(one)
    if refused := refused_by_loader(host):
        return f"no program: the loader refuses the library, `{refused}`"
    program = Program(host)
    try:
        for name, argument in subject.begin:
            program.call(name, argument)
        judge(program, 1, 1)
        words: list[object] = [two]
        before = program.fingerprint(one.name)
        answer = patiently(lambda: hu.upgrade(program.pid, *words, limit=LIMIT_S))
        found = "works" + (f"; without `{flavour.without}.c`, as {flavour.why}" if flavour.why else "")
        if answer.codes() == {"no-debug-information"}:
            words.append("--trust-layout")
            answer = patiently(lambda: hu.upgrade(program.pid, *words, limit=LIMIT_S))
            found = "refused, `no-debug-information`; works with `--trust-layout`"
        if answer.code == REFUSED:
            assert program.fingerprint(one.name) == before, "touched, though it was refused"
            judge(program, 1, 2)
            return f"refused, {', '.join(sorted(f'`{code}`' for code in answer.codes()))}"
        check_done(answer, program)
        judge(program, 2, 2)
        back = patiently(lambda: hu("rollback", program.pid, "--json", limit=LIMIT_S))
        check_done(back, program)
        judge(program, 1, 3)
        check_done(patiently(lambda: hu.upgrade(program.pid, *words, limit=LIMIT_S)), program)
        judge(program, 2, 4)
        assert program.quit() == ""
        return found
    finally:
        program.kill()


HEAD = """\
# Compilers and linkers: what works

Written by `make compilers`, which upgrades a small program in each of these flavours while it runs, rolls it back and
upgrades it again; `make test` compares some of the rows. The programs are in `tests/live/programs`: for C a library of
{count} sources (lists, statics, thread-locals, callbacks, tables), for C++ `features.cpp` (virtual functions, run-time
types, exceptions, guarded statics, templates, unnamed namespaces, inline variables, objects of each thread), for Rust
`features.rs`; `folded.c` has two functions of which a linker may make one, and which differ in the next build.

Where no level of optimisation is said it is `-O2`; everything is compiled with `-g` and `-fPIC` but where the table
says otherwise. What is refused is refused by name before anything is touched. With {versions}.

- `no-debug-information`: types cannot be compared; `--trust-layout` takes it upon the operator that they are the same.
- `alias-split`: one function of the running build is two in the new one. Who kept its address may mean either.

| language | compiler | options | outcome |
|---|---|---|---|
"""


def versions(flavours: Sequence[Flavour]) -> str:
    found = []
    for compiler in dict.fromkeys(flavour.compiler for flavour in flavours):
        said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
        found.append(said.splitlines()[0])
    return ", ".join(found)


def recorded() -> dict[str, str]:
    """Outcome by the key of its flavour, as the page has it."""
    rows = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[2].startswith("`"):
            rows[" ".join([cells[0], cells[1], cells[2].strip("`")])] = cells[3]
    return rows


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="flavours", description=__doc__)
    parser.add_argument(
        "only", nargs="*", help="words that the flavours to try have in common; the page stays as it is"
    )
    only = parser.parse_args(words).only
    os.environ["PATH"] = f"/usr/bin:{os.environ['PATH']}"  # Debian's own, whatever else there is
    with tempfile.TemporaryDirectory(prefix="hotupgrade-flavours-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "home").mkdir()
        build, hu = Builder(directory), HotUpgrade(directory / "home")
        rows, failures = [], 0
        for flavour in FLAVOURS:
            if not all(word in flavour.key.split() for word in only):
                continue
            try:
                rows.append(Row(flavour, outcome(flavour, build, hu)))
                print(rows[-1], flush=True)
            except (AssertionError, OSError) as error:
                failures += 1
                print(f"{flavour.key}: {error!r}", file=sys.stderr, flush=True)
    if not only and not failures:
        head = HEAD.format(count=len(NAMES), versions=versions(FLAVOURS))
        PAGE.write_text(head + "".join(f"{row}\n" for row in rows))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
