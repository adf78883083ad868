"""Many upgrades of one process, and what the command says of them."""

from __future__ import annotations

import shutil
import time

import pytest

from live.conftest import Start
from live.harness import DONE, NOT_NOW, REFUSED, Builder, Driver, HotUpgrade, check_done


def test_chain_with_a_rollback_after_each(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """v1, v2, v3, v1, and every step back; the state counts on all the way."""
    program = start(build.host(build.library("basic", 1)))
    home = program.call("where")
    kept = 7
    current = 1
    for version in (2, 3, 1):
        target = build.library("basic", version)
        for step in ("upgrade", "rollback", "upgrade"):
            document = hu.rolled_back(program) if step == "rollback" else hu.upgraded(program, target)
            now = current if step == "rollback" else version
            kept += now
            assert document["command"] == step
            assert (program.call("version"), program.call("pair")) == (now, now * 1001001)
            assert program.call("keep_more", 1) == kept
            assert program.call("where") == home
        current = version
    assert program.ask("call", "only_two", 1) == "error=no-such-function"


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_hundred_switches_leave_no_trace(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("pointers", 1)))
    program.ask("sleepers")
    program.call("make")
    one, two = build.library("pointers", 1), build.library("pointers", 2)

    def back_and_forth(driver: Driver, turn: int) -> None:
        driver.upgraded(program, two)
        assert program.call("identity") == 2015
        if turn % 2:
            driver.rolled_back(program)
        else:
            driver.upgraded(program, one)
        assert program.call("identity") == 1015

    with Driver(hu) as driver:
        for turn in range(4):
            back_and_forth(driver, turn)
        first = program.size()
        for turn in range(46):
            back_and_forth(driver, turn)
    last = program.size()
    assert last.maps <= first.maps + 2, program.maps()
    assert last.threads == first.threads
    assert last.descriptors == first.descriptors
    assert last.resident_kb <= first.resident_kb + 1024
    assert last.virtual_kb <= first.virtual_kb + 1024
    program.check_sleepers()
    status = hu.status(program.pid).document
    assert len(status["generations"]) >= 1


def test_an_upgrade_to_itself_is_nothing_to_do(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("basic", 1)))
    before = program.fingerprint("libbasic")
    answer = hu.upgrade(program.pid, build.library("basic", 1))
    assert (answer.code, answer.outcome, answer.document["ok"]) == (DONE, "nothing-to-do", True), str(answer)
    assert program.fingerprint("libbasic") == before
    said = hu("upgrade", program.pid, build.library("basic", 1))
    assert said.code == DONE
    assert "nothing" in (said.out + said.err).lower()
    hu.upgraded(program, build.library("basic", 2))
    assert hu.upgrade(program.pid, build.library("basic", 2)).outcome == "nothing-to-do"
    assert program.call("version") == 2


@pytest.mark.parametrize("option", ["--whole", "--imports"])
def test_other_ways_to_redirect(build: Builder, start: Start, hu: HotUpgrade, option: str) -> None:
    names = ("basic", "pointers", "statics", "throws")
    old = [build.library(name, 1) for name in names]
    program = start(build.host(*old, build.library("catcher", uses=old[3:])))
    program.call("make")
    program.call("first", 1)
    assert program.call("catch_outside", 2) == 1
    document = hu.upgraded(program, *(build.library(name, 2) for name in names), option)
    assert (program.call("version"), program.call("pair"), program.call("identity")) == (2, 2002002, 2015)
    assert program.call("through_callback", 1) == 201
    assert program.call("first", 1) == 24
    assert program.call("second", 1) == 21
    assert program.call("catch_outside", 2) == 2, "called through the import slot of a library that stays"
    if option == "--whole":
        assert document["functions"]["placed"] > document["functions"]["changed"]
    hu.rolled_back(program)
    assert (program.call("version"), program.call("pair"), program.call("identity")) == (1, 1001001, 1015)
    assert program.call("first", 1) == 13
    assert program.call("catch_outside", 2) == 1


def test_a_dry_run_touches_nothing(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("basic", 1)))
    program.ask("sleepers")
    time.sleep(0.1)
    before, maps = program.fingerprint("libbasic"), program.maps()
    answer = hu.upgrade(program.pid, build.library("basic", 2), "--dry-run")
    assert (answer.code, answer.outcome) == (DONE, "dry-run"), str(answer)
    assert "version" in answer.document["modules"][0]["functions"]["changed"]
    assert program.fingerprint("libbasic") == before
    assert program.maps() == maps
    assert program.call("version") == 1
    program.check_sleepers()


def test_check_says_what_would_change_and_touches_nothing(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("basic", 1)))
    before, maps = program.fingerprint("libbasic"), program.maps()
    answer = hu.check(program.pid, build.library("basic", 2))
    assert (answer.code, answer.document["verdict"]) == (DONE, "upgradable"), str(answer)
    functions = answer.document["modules"][0]["functions"]
    assert {"version", "left", "right", "pair", "keep_more"} <= set(functions["changed"])
    assert "keep" not in functions["changed"]
    assert "only_two" in functions["added"]
    assert hu.check(program.pid, build.library("basic", 1)).document["verdict"] == "nothing-to-do"
    explained = hu("check", program.pid, build.library("basic", 2), "--explain")
    assert explained.code == DONE
    assert "pair" in explained.out
    assert program.fingerprint("libbasic") == before
    assert program.maps() == maps


def test_two_libraries_in_one_stop(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("basic", 1), build.library("statics", 1)))
    document = hu.upgraded(program, build.library("basic", 2), build.library("statics", 2))
    assert {module["name"] for module in document["modules"]} == {"libbasic.so.1", "libstatics.so.1"}
    assert document["generation"] == 1
    assert (program.call("version"), program.call("first", 1)) == (2, 22)
    hu.upgraded(program, build.library("basic", 3))
    hu.rolled_back(program)
    assert (program.call("version"), program.call("first", 1)) == (2, 24)
    hu.rolled_back(program)
    assert (program.call("version"), program.call("first", 1)) == (1, 13)


def test_which_module_can_be_said(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("basic", 1)))
    odd = shutil.copy2(build.library("basic", 2), build.directory / "some-other-name.so")
    hu.upgraded(program, "--module", f"libbasic.so.1={odd}")
    assert program.call("version") == 2


def test_status_inspect_and_history(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("basic", 1)))
    inspected = hu("inspect", program.pid, "--json")
    assert inspected.code == DONE, str(inspected)
    module = next(m for m in inspected.document["modules"] if m["name"] == "libbasic.so.1")
    assert module["upgradable"] is True
    assert module["generation"] == 0
    assert hu.status(program.pid).document["generation"] == 0

    upgraded = hu.upgraded(program, build.library("basic", 2))
    status = hu.status(program.pid).document
    assert status["generation"] == 1
    assert [g["number"] for g in status["generations"] if g["active"]] == [1]
    assert status["memory_bytes"] > 0
    new = upgraded["modules"][0]["new"]["build_id"]
    assert new in str(status["generations"])
    inspected = hu("inspect", program.pid, "--json").document
    module = next(m for m in inspected["modules"] if m["name"] == "libbasic.so.1")
    assert (module["generation"], module["build_id"]) == (1, new)

    hu.rolled_back(program)
    assert hu.status(program.pid).document["generation"] == 0
    answer = hu.rollback(program.pid)
    assert answer.code in (DONE, REFUSED, NOT_NOW), "nothing to roll back"
    assert answer.outcome in ("nothing-to-do", "refused", "not-now")
    history = hu("history", "--json")
    mine = [entry for entry in history.document["entries"] if entry["pid"] == program.pid]
    assert {"upgrade", "rollback"} <= {entry["command"] for entry in mine}
    for words in (("inspect", program.pid), ("status", program.pid), ("history",)):
        said = hu(*words)
        assert said.code == DONE, str(said)
        assert said.out.strip()


def test_the_file_on_disk_was_replaced_already(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """The build that is mapped counts, not what lies at its path now."""
    mapped = build.copy(build.library("basic", 1), "replaced")
    program = start(build.host(), mapped)
    fresh = mapped.with_suffix(".new")
    shutil.copy2(build.library("basic", 2), fresh)
    fresh.replace(mapped)
    assert any("(deleted)" in line for line in program.maps())
    hu.upgraded(program, mapped)
    assert (program.call("version"), program.call("pair")) == (2, 2002002)
    hu.rolled_back(program)
    assert (program.call("version"), program.call("pair")) == (1, 1001001)


def test_two_upgrades_at_once(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """The second waits or is refused; the process is wholly one build."""
    program = start(build.host(build.library("basic", 1)))
    program.ask("work", "busy", 1, "pair", 0, -300)
    hu.upgraded(program, build.library("basic", 2))
    hu.rolled_back(program)
    for _ in range(2):
        wanted = [("upgrade", program.pid, build.library("basic", v), "--json") for v in (2, 3)]
        started = [hu.start(*words) for words in wanted]
        answers = [hu.finish(process, *words) for process, words in zip(started, wanted, strict=True)]
        assert all(answer.code in (DONE, REFUSED, NOT_NOW) for answer in answers), "\n".join(map(str, answers))
        assert any(answer.code == DONE for answer in answers), "\n".join(map(str, answers))
        version = program.call("version")
        assert version in (2, 3)
        assert program.call("pair") == 1001001 * version
        assert program.call("keep_more") == 7
    assert program.workers().values <= {1001001, 2002002, 3003003}


def test_the_record_is_in_the_process_not_on_disk(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """Another operator, without our cache and journal, can roll back."""
    program = start(build.host(build.library("pointers", 1)))
    program.call("make")
    hu.upgraded(program, build.library("pointers", 2))
    home = build.directory / "another-home"
    home.mkdir(exist_ok=True)
    other = HotUpgrade(home)
    assert other.status(program.pid).document["generation"] == 1
    check_done(other.rollback(program.pid), program)
    assert program.call("identity") == 1015
    check_done(other.upgrade(program.pid, build.library("pointers", 3)), program)
    assert program.call("identity") == 3015


def test_memory_is_said_and_small(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("basic", 1)))
    before = program.status("VmRSS")
    document = hu.upgraded(program, build.library("basic", 2))
    assert 0 < document["memory_bytes"] < 4_000_000
    assert program.status("VmRSS") - before < 4_000
