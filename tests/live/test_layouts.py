"""Types and prototypes of a process that runs."""

from __future__ import annotations

import json
from pathlib import Path

from live.conftest import Start
from live.harness import REFUSED, Builder, HotUpgrade, Options

CLOCK = Options(flags=("-DHAVE_CLOCK",))
BARE = Options(flags=("-g0",))


def test_the_same_version_with_other_flags(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """Nothing but a configure flag differs; the objects on the heap are the old ones."""
    program = start(build.host(build.library("configured", 1)))
    for number in (1, 2):
        program.call("add_device", number)
    before = program.fingerprint("libconfigured")
    answer = hu.upgrade(program.pid, build.library("configured", 1, CLOCK))
    assert answer.code == REFUSED, str(answer)
    assert answer.codes() == {"type-changed"}
    assert "struct device: 16 → 24 bytes, +clock at 8" in answer.about()
    assert program.fingerprint("libconfigured") == before
    assert program.call("sum_of_devices") == 3


def test_without_debug_information(build: Builder, start: Start, hu: HotUpgrade, workshop: Path) -> None:
    """Refused; on the operator's word done, and the journal says on whose."""
    program = start(build.host(build.library("layout", 1, BARE)))
    program.call("add_item", 3)
    new = build.library("layout", 2, BARE)
    for command in (hu.check, hu.upgrade):
        answer = command(program.pid, new)
        assert answer.code == REFUSED, str(answer)
        assert answer.codes() == {"no-debug-information"}
        assert "--trust-layout" in answer.about()
    assert hu.check(program.pid, new, "--trust-layout").document["verdict"] == "upgradable"
    document = hu.upgraded(program, new, "--trust-layout")
    assert "layout-trusted" in {note["code"] for note in document["notes"]}
    assert program.call("sum_of_items") == 101006003
    entries = json.loads(hu("history", "--json").out)["entries"]
    (entry,) = [entry for entry in entries[-50:] if entry["pid"] == program.pid]
    assert str(new) in entry["layout_trusted"]


def test_trust_excuses_no_difference(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("configured", 1)))
    answer = hu.upgrade(program.pid, build.library("configured", 1, CLOCK), "--trust-layout")
    assert (answer.code, answer.codes()) == (REFUSED, {"type-changed"})


def test_a_prototype_that_others_rely_on(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """Refused alone, by the caller's name; done together with the caller."""
    converter = build.library("converter", 1)
    program = start(build.host(build.library("converts", 1, uses=[converter]), converter))
    assert program.call("converted", 7) == 70
    new = build.library("converter", 2)
    answer = hu.upgrade(program.pid, new)
    assert answer.code == REFUSED, str(answer)
    assert answer.codes() == {"prototype-changed"}
    for word in ("convert:", "(int64) -> int64 becomes (int64, int64) -> int64", "libconverts.so.1"):
        assert word in answer.about()
    caller = build.library("converts", 2, uses=[converter])
    document = hu.upgraded(program, new, caller)
    assert "prototype-changed" in {note["code"] for note in document["notes"]}
    assert program.call("converted", 7) == 700
    hu.rolled_back(program)
    assert program.call("converted", 7) == 70


def test_what_was_compared_is_explained(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("layout", 1)))
    explained = hu.check(program.pid, build.library("layout", 2), "--explain").document["explained"]
    assert any("2 of 2 types" in line and "prototypes of 2 functions" in line for line in explained["proved"])
    bare = hu.check(program.pid, build.library("layout", 2, BARE), "--explain").document["explained"]
    assert any("no debug information" in line for line in bare["not_proved"])
