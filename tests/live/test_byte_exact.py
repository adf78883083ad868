"""After a rollback, and after an upgrade that did not come about, code, constants and GOTs are what they were, byte for
byte, in every module of the process."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from live.conftest import Start
from live.harness import DONE, NOT_NOW, REFUSED, Builder, Driver, HotUpgrade, Options, Program, until

Snapshot = dict[tuple[str, str], bytes]


@pytest.fixture(autouse=True)
def bound_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the program itself fills import slots while it runs."""
    monkeypatch.setenv("LD_BIND_NOW", "1")


@functools.cache
def gots(path: str) -> tuple[tuple[int, int], ...]:
    """(vaddr, size) of the GOTs of a file."""
    with Path(path).open("rb") as file:
        found = [s for s in ELFFile(file).iter_sections() if s.name in (".got", ".got.plt")]
        return tuple((s["sh_addr"], s["sh_size"]) for s in found)


def snapshot(program: Program) -> Snapshot:
    """Everything that is not writable, and every GOT, of the executable and all libraries, with its protection."""
    found: Snapshot = {}
    bases: dict[str, int] = {}
    with Path(f"/proc/{program.pid}/mem").open("rb", buffering=0) as memory:
        for line in program.maps():
            span, permissions, _, _, inode, *rest = line.split(maxsplit=5)
            if (not int(inode) and rest != ["[vdso]"]) or rest[0].startswith("/memfd:"):
                continue
            low, high = (int(part, 16) for part in span.split("-"))
            bases.setdefault(rest[0], low)
            if "w" in permissions:
                found[span, permissions] = b""
                continue
            memory.seek(low)
            found[span, permissions] = memory.read(high - low)
        for path, base in bases.items():
            for vaddr, size in gots(path) if path != "[vdso]" else ():
                memory.seek(base + vaddr)
                found[path, f"GOT at {vaddr:#x}"] = memory.read(size)
    return found


def assert_equal(now: Snapshot, before: Snapshot) -> None:
    assert now.keys() == before.keys(), "protections or mappings differ"
    for key, content in before.items():
        if now[key] != content:
            at = next(i for i, (a, b) in enumerate(zip(now[key], content, strict=True)) if a != b)
            raise AssertionError(
                f"{key} differs at {at:#x}: {content[at : at + 16].hex()} → {now[key][at:][:16].hex()}"
            )


def opened(build: Builder, start: Start, options: Options) -> Program:
    names = ("basic", "pointers", "statics", "throws")
    old = [build.library(name, 1, options) for name in names]
    program = start(build.host(*old, build.library("catcher", uses=old[3:]), now=options.now))
    program.ask("sleepers")
    program.call("make")
    program.call("first", 1)
    assert program.call("catch_outside", 2) == 1
    return program


@pytest.mark.parametrize("options", [Options(), Options(now=True)], ids=["lazy", "now"])
@pytest.mark.parametrize("way", ["", "--whole", "--imports"])
def test_a_rollback_restores_every_byte(
    build: Builder, start: Start, hu: HotUpgrade, options: Options, way: str
) -> None:
    program = opened(build, start, options)
    new = [build.library(name, 2, options) for name in ("basic", "pointers", "statics", "throws")]
    before = snapshot(program)
    assert sum(map(len, before.values())) > 1 << 20
    assert any(key[1].startswith("GOT") and content for key, content in before.items())
    hu.upgraded(program, *new, *([way] if way else []))
    assert program.call("version") == 2
    after = snapshot(program)
    assert after.keys() == before.keys(), "the pages that were written are protected as before"
    changed = {key[1][:4] for key, content in before.items() if after[key] != content}
    assert "r-xp" in changed, "the comparison sees an upgrade"
    assert ("GOT " in changed) == (way == "--imports")
    hu.rolled_back(program)
    assert_equal(snapshot(program), before)
    assert (program.call("version"), program.call("catch_outside", 2)) == (1, 1)
    program.check_sleepers()


@pytest.mark.timeout(120)
def test_twenty_switches_to_and_fro_restore_every_byte(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = opened(build, start, Options())
    two, three = ([build.library(name, v) for name in ("basic", "pointers", "statics")] for v in (2, 3))
    before = snapshot(program)
    with Driver(hu) as driver:
        for turn in range(10):
            driver.upgraded(program, *two)
            second = snapshot(program)
            driver.upgraded(program, *three[: turn % 3 + 1])
            driver.rolled_back(program)
            assert_equal(snapshot(program), second)
            driver.rolled_back(program)
            assert_equal(snapshot(program), before)
    assert program.call("version") == 1


def test_what_did_not_come_about_changed_nothing(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """Refused, and given up because a thread stands in the way."""
    program = start(build.host(build.library("afterwards", 1), build.library("resized", 1)))
    program.ask("backtrace")  # the C library loads its unwinder
    before = snapshot(program)
    assert hu.upgrade(program.pid, build.library("resized", 2)).code == REFUSED
    assert_equal(snapshot(program), before)
    program.ask("thread", "outer", -1)
    until(lambda: "outer" in program.threads().values())
    answer = hu.upgrade(program.pid, build.library("afterwards", 2), "--timeout", 1)
    assert answer.code == NOT_NOW, str(answer)
    assert_equal(snapshot(program), before)
    assert not any(re.search(r"hotupgrade:lib", line) for line in program.maps()), "and no image is left"
    program.call("release")
    assert hu.upgrade(program.pid, build.library("afterwards", 2)).code == DONE
    hu.rolled_back(program)
    assert_equal(snapshot(program), before)
