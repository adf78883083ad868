"""The program itself is upgraded like any module."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from live.conftest import Start
from live.harness import DONE, PIE, REFUSED, Builder, Driver, HotUpgrade, Options, until
from live.test_after import attached, order, released, waiting
from live.test_exceptions import check as check_exceptions
from live.test_flavours import NAMES, check
from live.test_tls import asked, begin, expected

EXPORTING = ("-fPIE", "-pie", "-rdynamic")

# What differs between programs; the compilers' own ways are those of libraries (test_flavours.py).
FLAVOURS = {
    "lazy": Options(flags=EXPORTING),
    "hardened": Options(
        flags=(*EXPORTING, "-Wl,-z,relro", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2"), now=True
    ),
    "emit-relocs": Options(emit_relocs=True, flags=EXPORTING),
    "O0": Options(flags=(*EXPORTING, "-O0")),
    "lto": Options(flags=(*EXPORTING, "-flto", "-O3")),
    "no-plt": Options(flags=(*EXPORTING, "-fno-plt")),
    "sections": Options(flags=(*EXPORTING, "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections")),
    "relr": Options(flags=(*EXPORTING, "-Wl,-z,pack-relative-relocs")),
    "no-relro": Options(flags=(*EXPORTING, "-Wl,-z,norelro", "-Wl,-z,noseparate-code")),
    "ibt": Options(flags=(*EXPORTING, "-fcf-protection=full", "-Wl,-z,ibtplt")),
    "gold": Options(flags=(*EXPORTING, "-fuse-ld=gold")),
    "fpic": Options(flags=("-fPIC", "-pie", "-rdynamic")),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_flavour(build: Builder, start: Start, driver: Driver, flavour: str) -> None:
    one, two = (build.executable(NAMES, version, FLAVOURS[flavour]) for version in (1, 2))
    program = start(one)
    program.call("make")
    program.call("add", 1)
    program.call("add", 20)
    check(program, 1, 1)
    driver.upgraded(program, two)
    check(program, 2, 2)
    driver.rolled_back(program)
    check(program, 1, 3)
    driver.upgraded(program, two, "--whole")
    check(program, 2, 4)
    assert program.quit() == ""


@pytest.mark.timeout(120)
def test_threads_at_full_speed(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """Each call runs wholly old or wholly new code, sleepers notice nothing, and nothing piles up."""
    builds = {version: build.executable(["basic"], version) for version in (1, 2)}
    program = start(builds[1])
    program.ask("sleepers")
    program.ask("work", "busy", 1, "version")
    versions = [2, 1, 2, 1]
    for turn, version in enumerate(versions):
        if turn == 2:
            before = program.size()
        hu.upgraded(program, builds[version])
        until(lambda version=version: program.workers().last == {version})
    workers = program.workers()
    assert (workers.values, workers.changes) == ({1, 2}, len(versions))
    program.ask("stop")
    program.check_sleepers()
    after = program.size()
    assert (after.maps, after.threads, after.descriptors) == (before.maps, before.threads - 1, before.descriptors)


def test_what_others_hold_of_it(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """Callbacks, a signal handler, a key's destructor, an exit handler, a comparator."""
    program = start(build.executable(["callbacks"], 1))
    program.call("install")
    callback = program.call("get_callback")
    program.ask("thread", "wait_with_key")
    until(lambda: "wait_with_key" in program.threads().values())
    assert (program.call("raise_it"), program.call("head_of_sorted")) == (1, 2)
    hu.upgraded(program, build.executable(["callbacks"], 2))
    assert program.call("get_callback") == callback
    assert (program.call("raise_it"), program.call("head_of_sorted")) == (3, 9)
    program.call("release")
    until(lambda: program.call("count_ended") == 2)
    assert program.quit() == "atexit=2"


def test_constructors_and_destructors(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.executable(["constructors"], 1))
    assert program.ask("text", "state") == "version=1 first=1 second=0 third=0"
    hu.upgraded(program, build.executable(["constructors"], 2))
    assert program.ask("text", "state") == "version=2 first=1 second=1 third=0"
    hu.rolled_back(program)
    hu.upgraded(program, build.executable(["constructors"], 3))
    assert program.ask("text", "state") == "version=3 first=1 second=1 third=1"
    assert program.quit() == "destroyed=3"


# Unwinding.


@pytest.mark.parametrize("whole", [(), ("--whole",)], ids=["changed", "whole"])
def test_exceptions(build: Builder, start: Start, hu: HotUpgrade, whole: tuple[str, ...]) -> None:
    builds = {version: build.executable(["throws", "catcher"], version) for version in (1, 2, 3)}
    program = start(builds[1])
    destroyed = check_exceptions(program, 1, 0)
    for version in (2, 3):
        hu.upgraded(program, builds[version], *whole)
        destroyed = check_exceptions(program, version, destroyed)
    for version in (2, 1):
        hu.rolled_back(program)
        destroyed = check_exceptions(program, version, destroyed)
    assert program.quit() == ""


def test_backtraces(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.executable(["unwind"], 1))
    before = program.call("depth", 5)
    hu.upgraded(program, build.executable(["unwind"], 2))
    assert program.call("depth", 5) == before + 1
    hu.rolled_back(program)
    assert program.call("depth", 5) == before


def test_gdb_names_and_unwinds(build: Builder, start: Start, hu: HotUpgrade) -> None:
    gdb = shutil.which("gdb") or pytest.skip("gdb is not installed (scripts/install-packages base)")
    framed = Options(flags=(*EXPORTING, "-fno-omit-frame-pointer"))
    program = start(build.executable(["afterwards"], 1, framed))
    for version in (2, 3):
        hu.upgraded(program, build.executable(["afterwards"], version, framed))
        waiting(program)
        text = attached(gdb, program, "thread apply all bt", "print limit", "print 'afterwards.c'::releases")
        order(text, f"in work_of_build_{version} (x=", "in inner (", "in middle (", "in outer (", "start_thread")
        order(text, " main (", "$1 = 10\n", f"$2 = {version - 2}\n")
        released(program)
        assert program.call("outer", 1) == 111 * version


# With its libraries.


def test_the_program_and_its_library_in_one_stop(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """The new program needs what only the new library has."""
    old, new = (build.library("basic", version) for version in (1, 2))
    one = build.executable(["uses"], 1, uses=[old])
    two = build.executable(["uses"], 2, uses=[new])
    program = start(one)
    assert program.call("use", 7) == 100007
    answer = hu.upgrade(program.pid, two)
    assert (answer.code, answer.codes()) == (REFUSED, {"unresolved-symbol"}), str(answer)
    document = hu.upgraded(program, two, new)
    assert len(document["modules"]) == 2
    assert program.call("use", 7) == 202007
    hu.rolled_back(program)
    assert program.call("use", 7) == 100007
    hu.upgraded(program, new)
    assert program.call("use", 7) == 200007
    hu.upgraded(program, two)
    assert program.call("use", 7) == 202007


@pytest.mark.parametrize("together", [False, True], ids=["program", "both"])
def test_copied_data_stay_one(build: Builder, start: Start, hu: HotUpgrade, together: bool) -> None:
    """The program holds what its library defines (COPY): new code of either uses the one that is there."""
    old, new = (build.library("copied", version) for version in (1, 2))
    one, two = (build.executable(["copied_host", "interposes"], v, uses=[old]) for v in (1, 2))
    relocations = subprocess.run(["readelf", "-rW", str(two)], capture_output=True, text=True, check=True).stdout
    assert re.search(r"R_X86_64_COPY.*shared_counter", relocations)
    program = start(one)
    assert program.call("host_counter", 1) == 6
    where = program.call("where")
    hu.upgraded(program, two, *([new] if together else []))
    assert program.call("my_version") == 2
    assert program.call("host_where") == program.call("where") == where
    assert program.call("host_counter", 1) == 7
    assert program.call("count", 10) == 17 + 10 * together
    assert program.call("host_table", 2) == 13
    hu.rolled_back(program)
    assert program.call("host_counter", 1) == 18 + 10 * together
    assert program.call("host_where") == program.call("where") == where


@pytest.mark.parametrize("access", ["direct", "by-table"])
def test_data_of_a_library_that_were_not_copied(build: Builder, start: Start, hu: HotUpgrade, access: str) -> None:
    """Only a start copies them, and the library's own are out of reach of direct references; by the table they work."""
    library = build.library("asks", 1)
    flags = ("-fPIE" if access == "direct" else "-fPIC", "-pie", "-rdynamic")
    program = start(build.executable(["interposes"], 1, Options(flags=flags), uses=[library]))
    program.call("ask_for_opinion", 5)
    peeking = Options(flags=(*flags, "-DPEEK"))
    answer = hu.upgrade(program.pid, build.executable(["interposes"], 2, peeking, uses=[library]))
    if access == "direct":
        assert (answer.code, answer.codes()) == (REFUSED, {"copy-new"}), str(answer)
        assert "asked" in answer.about()
        assert program.call("my_version") == 1
        return
    assert answer.code == DONE, str(answer)
    program.call("ask_for_opinion", 5)
    assert program.call("my_version") == 2


@pytest.mark.parametrize("emit_relocs", [True, False], ids=["emit-relocs", "plain"])
def test_a_new_thread_local(build: Builder, start: Start, hu: HotUpgrade, emit_relocs: bool) -> None:
    """Local-exec: every other one is at another distance from the thread pointer in the new build."""
    flags = (*EXPORTING, "-fno-ipa-ra")  # else gcc makes use of what it sees in answer(), also where it is called
    plain = Options(emit_relocs=emit_relocs, flags=flags)
    more = Options(emit_relocs=emit_relocs, flags=(*flags, "-DNEW_TLS"))
    program = start(build.executable(["tls"], 1, plain))
    begin(program)
    _, addresses = asked(program)
    hu.upgraded(program, build.executable(["tls"], 2, more))
    assert asked(program) == (expected(2, 2, inserted=6), addresses)
    program.ask("thread", "answer", 1)  # a thread that is born in the new code
    assert asked(program) == (expected(2, 3, inserted=7), addresses)
    hu.rolled_back(program)
    assert asked(program) == (expected(1, 4), addresses)


def test_a_library_goes_on_using_what_the_program_interposes(build: Builder, start: Start, hu: HotUpgrade) -> None:
    library = build.library("asks", 1)
    program = start(build.executable(["interposes"], 1, uses=[library]))
    assert (program.call("ask_for_opinion", 5), program.call("ask_for_hint", 5)) == (51, -1)
    hu.upgraded(program, build.executable(["interposes"], 2, uses=[library]))
    assert program.call("ask_for_opinion", 5) == 52


@pytest.mark.parametrize(("flag", "name"), [("-DHINT", "hint"), ("-DNO_OPINION", "opinion")])
def test_another_set_of_interposed_names_is_refused(
    build: Builder, start: Start, hu: HotUpgrade, flag: str, name: str
) -> None:
    """A fresh start of the new build would bind the library's slots otherwise."""
    library = build.library("asks", 1)
    program = start(build.executable(["interposes"], 1, uses=[library]))
    two = build.executable(["interposes"], 2, Options(flags=(*EXPORTING, flag)), uses=[library])
    answer = hu.upgrade(program.pid, two)
    assert (answer.code, answer.codes()) == (REFUSED, {"interposition"}), str(answer)
    assert name in answer.about()
    assert "libasks.so.1" in answer.about()
    assert program.call("my_version") == 1


# Which program, and what cannot be.


def test_main_itself_is_refused_by_name(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.executable(["basic"], 1))
    answer = hu.upgrade(program.pid, build.executable(["basic"], 2, Options(flags=(*EXPORTING, "-DLINE=300"))))
    assert answer.code == REFUSED, str(answer)
    assert "main" in [reason["subject"] for reason in answer.document["reasons"]]
    assert program.call("version") == 1


def test_a_file_of_another_name_must_be_meant(build: Builder, start: Start, hu: HotUpgrade, tmp_path: Path) -> None:
    program = start(build.executable(["basic"], 1))
    two = shutil.copy2(build.executable(["basic"], 2), tmp_path / "other-program")
    answer = hu.upgrade(program.pid, two)
    assert (answer.code, answer.codes()) == (REFUSED, {"no-such-module"}), str(answer)
    assert "--module program=FILE" in answer.about()
    hu.upgraded(program, "--module", f"program={two}")
    assert program.call("version") == 2


def test_kinds_are_not_mixed(build: Builder, start: Start, hu: HotUpgrade) -> None:
    library = build.library("lists", 1)
    program = start(build.executable(["basic"], 1, uses=[library]))
    for name, path in (("liblists.so.1", build.executable(["basic"], 2)), ("program", build.library("lists", 2))):
        answer = hu.upgrade(program.pid, "--module", f"{name}={path}")
        assert (answer.code, answer.codes()) == (REFUSED, {"no-such-module"}), str(answer)


def test_a_fixed_address_is_refused(build: Builder, start: Start, hu: HotUpgrade) -> None:
    fixed = Options(flags=("-fno-pie", "-no-pie", "-rdynamic"))
    program = start(build.executable(["basic"], 1, fixed))
    for options in (fixed, PIE):
        answer = hu.upgrade(program.pid, build.executable(["basic"], 2, options))
        assert (answer.code, answer.codes()) == (REFUSED, {"fixed-address"}), str(answer)
    module = hu("inspect", program.pid, "--json").document["modules"][0]
    assert (module["name"], module["upgradable"]) == ("program", False)
    assert "-pie" in module["why"]


def test_the_heap_can_grow_afterwards(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """New code lies below the heap: where ``brk`` never gets to."""

    def lowest(what: str) -> list[int]:
        return sorted(int(line.split("-")[0], 16) for line in program.maps() if what in line)

    program = start(build.executable(["grown", "basic"], 1))
    for version in (2, 3):
        hu.upgraded(program, build.executable(["grown", "basic"], version))
    (heap,) = lowest("[heap]")
    images = lowest("/memfd:hotupgrade:program")
    assert images
    assert images[-1] < heap
    assert program.call("grow", 900) == 900
    assert program.call("version") == 3


def test_inspect_says_that_it_can_be(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.executable(["basic"], 1))
    module = hu("inspect", program.pid, "--json").document["modules"][0]
    assert (module["name"], module["upgradable"], module["why"]) == ("program", True, "")


def test_an_idle_program_is_left_as_it_was(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.executable(["lists"], 1))
    time.sleep(0.1)
    before = program.fingerprint("/program")
    two = build.executable(["lists"], 2)
    assert hu.check(program.pid, two).code == DONE
    assert hu.upgrade(program.pid, two, "--dry-run").outcome == "dry-run"
    assert program.fingerprint("/program") == before
    hu.upgraded(program, two)
    hu.rolled_back(program)
    assert program.fingerprint("/program").contents == before.contents
