"""State that an upgrade must leave alone, reached by new code."""

from __future__ import annotations

import pytest

from live.conftest import Start
from live.harness import DONE, PLAIN, REFUSED, Builder, HotUpgrade, Options, Program, until

LINKED = [
    pytest.param(Options(), id="lazy"),
    pytest.param(Options(now=True), id="now"),
    pytest.param(Options(emit_relocs=True), id="emit-relocs"),
    pytest.param(Options(emit_relocs=True, now=True), id="emit-relocs-now"),
]


def states(program: Program, *names: str) -> dict[str, str]:
    return {name: program.ask("text", name) for name in names}


@pytest.mark.parametrize("options", LINKED)
def test_list_heads_and_held_mutexes(build: Builder, start: Start, hu: HotUpgrade, options: Options) -> None:
    program = start(build.host(build.library("lists", 1, options), now=options.now))
    for value in (1, 20, 300):
        program.call("add", value)
    program.call("lock")
    program.ask("thread", "enter")
    until(lambda: "enter" in program.threads().values())
    before = states(program, "state")
    assert program.call("try_lock") == 1000 + 16

    hu.upgraded(program, build.library("lists", 2, options))
    assert states(program, "state") == before
    assert program.call("sum") == 321 * 2
    assert program.call("empty_is_empty") == 2
    assert program.call("try_lock") == 2000 + 16, "the mutex that was held is held still"
    assert program.call("unlock") == 0
    until(lambda: "entered=1" in program.ask("text", "state"), what="the waiting thread got the mutex")
    assert program.call("try_lock") == 2000
    assert program.call("add", 4000) == 4
    before = states(program, "state")

    hu.rolled_back(program)
    assert program.call("sum") == 4321
    assert program.call("empty_is_empty") == 1
    assert states(program, "state") == before


@pytest.mark.parametrize("options", [PLAIN, Options(emit_relocs=True)], ids=["plain", "emit-relocs"])
def test_statics_of_the_same_name(build: Builder, start: Start, hu: HotUpgrade, options: Options) -> None:
    program = start(build.host(build.library("statics", 1, options)))
    assert [program.call(name, 1) for name in ("first", "second", "third")] == [11, 21, 31]

    hu.upgraded(program, build.library("statics", 2, options))
    assert [program.call(name, 1) for name in ("first", "second", "third")] == [24, 22, 64]

    hu.upgraded(program, build.library("statics", 3, options))
    assert [program.call(name, 1) for name in ("first", "second", "third")] == [39, 23, 99]
    assert program.ask("text", "name_of_first") == "name_of_first"

    hu.rolled_back(program)
    assert [program.call(name, 0) for name in ("first", "second", "third")] == [26, 23, 66]
    hu.rolled_back(program)
    assert [program.call(name, 0) for name in ("first", "second", "third")] == [13, 23, 33]


def test_statics_of_the_same_name_in_one_function(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """Which is which may be beyond proof; then the answer is a refusal by name, never a guess."""
    program = start(build.host(build.library("scopes", 1)))
    assert [program.call("either", 10), program.call("either", 0), program.call("either", 0)] == [101, 201, 202]
    answer = hu.upgrade(program.pid, build.library("scopes", 2))
    assert answer.code in (DONE, REFUSED), str(answer)
    assert [program.call("either", 10), program.call("either", 0)] == [102, 203]
    if answer.code == REFUSED:
        assert "count" in answer.about()
    else:
        assert program.call("either", 20) == 301


def test_once_is_once(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("once", 1)))
    assert program.call("initialised") == 1001001
    hu.upgraded(program, build.library("once", 2))
    assert program.call("initialised") == 2001001
    hu.rolled_back(program)
    assert program.call("initialised") == 1001001


def test_what_was_not_initialised_yet_is_initialised_by_new_code(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("once", 1)))
    hu.upgraded(program, build.library("once", 2))
    assert program.call("initialised") == 2101101


@pytest.mark.parametrize("options", LINKED)
def test_function_pointers_and_tables(build: Builder, start: Start, hu: HotUpgrade, options: Options) -> None:
    program = start(build.host(build.library("pointers", 1, options), now=options.now))
    program.call("make")
    calls = ("through_callback", "through_exported", "through_first")
    addresses = {name: program.address(name) for name in ("through_callback", "exported_class", "exported_constants")}

    def check(version: int) -> None:
        assert program.call("identity") == 15 + version * 1000, "addresses compare equal"
        assert [program.call(name, 1) for name in calls] == [1 + version * 100] * 3
        assert program.call("through_second", 1) == (33334 if version == 3 else 2)
        assert program.call("weight_of_exported") == version * 7, "a table keeps its address and has the new contents"
        assert program.call("weight_of_first") == version * 11
        assert program.call("constant", 1) == version * 2
        assert {name: program.address(name) for name in addresses} == addresses

    check(1)
    document = hu.upgraded(program, build.library("pointers", 2, options))
    assert document["objects"]["constants_updated"] >= 2
    check(2)
    hu.upgraded(program, build.library("pointers", 3, options))
    check(3)
    hu.rolled_back(program)
    check(2)
    hu.rolled_back(program)
    check(1)


@pytest.mark.parametrize("options", [PLAIN, Options(emit_relocs=True)], ids=["plain", "emit-relocs"])
def test_constructors(build: Builder, start: Start, hu: HotUpgrade, options: Options) -> None:
    """Old ones never again, new ones once; a second coming of the same build finds them done."""
    one, two, three = (build.library("constructors", version, options) for version in (1, 2, 3))
    program = start(build.host(one))
    assert program.ask("text", "state") == "version=1 first=1 second=0 third=0"
    document = hu.upgraded(program, two)
    assert program.ask("text", "state") == "version=2 first=1 second=1 third=0"
    assert "construct_second" in str(document["modules"][0]["constructors"])
    hu.upgraded(program, three)
    assert program.ask("text", "state") == "version=3 first=1 second=1 third=1"
    hu.rolled_back(program)
    hu.rolled_back(program)
    assert program.ask("text", "state") == "version=1 first=1 second=0 third=0"
    hu.upgraded(program, two)
    assert program.ask("text", "state") == "version=2 first=1 second=1 third=0"
    assert program.quit() == "destroyed=2", "the destructor ran once, in the code that was current"


@pytest.mark.parametrize("flags", [("-fno-pie", "-no-pie"), ("-fPIE", "-pie")], ids=["no-pie", "pie"])
def test_data_that_the_executable_copied(build: Builder, start: Start, hu: HotUpgrade, flags: tuple[str, ...]) -> None:
    program = start(build.host(build.library("copied", 1), extra="copied_host", flags=flags))
    home = program.call("host_where")
    assert program.call("where") == home
    assert program.call("count", 1) == 6
    assert program.call("host_counter", 10) == 16

    hu.upgraded(program, build.library("copied", 2))
    assert program.call("where") == home
    assert program.call("count", 1) == 18
    assert program.call("host_counter", 10) == 28
    assert program.call("host_table", 0) == 11
    assert program.call("sum_of_table") == 20 * 2

    hu.rolled_back(program)
    assert program.call("where") == home
    assert program.call("count", 1) == 29
    assert program.call("sum_of_table") == 20


@pytest.mark.parametrize("options", LINKED)
def test_a_changed_local_function(build: Builder, start: Start, hu: HotUpgrade, options: Options) -> None:
    program = start(build.host(build.library("local", 1, options), now=options.now))

    def check(version: int) -> None:
        expected = sum((3 * x + version) * 1000 + 3 * (x + 1) + version for x in (5, 6, 7))
        assert program.call("outer", 5) == expected + 3
        assert program.call("other", 5) == 15 + version + 3
        assert program.call("unrelated", 5) == 8

    for version in (2, 3):
        document = hu.upgraded(program, build.library("local", version, options))
        functions = document["modules"][0]["functions"]
        assert "helper" in functions["changed"]
        assert "unrelated" not in functions["changed"] + functions["dragged"]
        check(version)
    hu.rolled_back(program)
    check(2)
    hu.rolled_back(program)
    check(1)


def test_callbacks_and_pointers_that_others_hold(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("callbacks", 1)))
    assert program.call("install") == 0
    callback = program.call("get_callback")
    program.ask("save", "raise_it", 0)
    program.ask("thread", "wait_with_key")
    until(lambda: "wait_with_key" in program.threads().values())
    assert program.call("raise_it") == 1
    assert program.call("head_of_sorted") == 2

    hu.upgraded(program, build.library("callbacks", 2))
    assert program.call("get_callback") == callback, "the address of a function is its home for ever"
    assert program.call("head_of_sorted") == 9, "qsort calls the new comparator"
    assert int(program.facts("saved", 0)["value"]) == 3, "the signal handler is the new one"
    program.call("release")
    until(lambda: "wait_with_key" not in program.threads().values())
    until(lambda: program.call("count_ended") == 2, what="the key's destructor is the new one")

    hu.rolled_back(program)
    assert program.call("head_of_sorted") == 2
    assert program.call("raise_it") == 4
    hu.upgraded(program, build.library("callbacks", 2))
    assert program.quit() == "atexit=2"


def test_dlsym_finds_old_and_new_functions(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("basic", 1)))
    address = program.address("version")
    program.ask("save", "version", 3)
    hu.upgraded(program, build.library("basic", 2))
    assert program.address("version") == address
    assert program.call("version") == 2
    assert program.facts("saved", 3)["value"] == "2"


@pytest.mark.parametrize("options", [PLAIN, Options(now=True)], ids=["lazy", "now"])
def test_a_library_opened_with_dlopen(build: Builder, start: Start, hu: HotUpgrade, options: Options) -> None:
    program = start(build.host(), build.library("pointers", 1, options), build.library("lists", 1, options))
    program.call("make")
    program.call("add", 5)
    before = states(program, "state")
    hu.upgraded(program, build.library("pointers", 2, options), build.library("lists", 2, options))
    assert program.call("identity") == 15 + 2000
    assert program.call("through_first", 1) == 201
    assert program.call("sum") == 10
    assert states(program, "state") == before
    hu.rolled_back(program)
    assert program.call("identity") == 15 + 1000
    assert program.call("sum") == 5


def test_new_objects_start_as_written_and_old_ones_stay(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("initial", 1)))
    assert program.call("get_limit", 5) == 105
    document = hu.upgraded(program, build.library("initial", 2))
    module = document["modules"][0]
    assert "limit" in module["objects"]["initial_changed"]
    assert any("new_one" in name for name in module["objects"]["new"])
    assert program.call("get_limit", 3) == 108, "kept, not set again to the new initial value"
    assert program.call("get_new", 1) == 78 * 1000000 + 1 * 10000 + 108
    hu.rolled_back(program)
    assert program.call("get_new", 0) == 108
    hu.upgraded(program, build.library("initial", 2))
    assert program.call("get_new", 1) == 79 * 1000000 + 1 * 10000 + 108, "new objects live on over a rollback"


def test_a_resized_object_is_refused_by_name(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("resized", 1)))
    program.call("put", 6)
    before = program.fingerprint("libresized")
    answer = hu.upgrade(program.pid, build.library("resized", 2))
    assert answer.code == REFUSED, str(answer)
    assert answer.outcome == "refused"
    assert "growing_table" in answer.about()
    assert program.fingerprint("libresized") == before
    assert program.call("get", 6) == 6


@pytest.mark.parametrize(
    "flags",
    [("-Os",), ("-O2",), ("-O1", "-fcf-protection=full"), ("-Os", "-fno-align-functions")],
    ids=["small", "normal", "endbr", "packed"],
)
def test_functions_that_are_awkward_to_redirect(
    build: Builder, start: Start, hu: HotUpgrade, flags: tuple[str, ...]
) -> None:
    """Handled, or refused by name: never half."""

    def expected(version: int, counter: int) -> int:
        identity = 1 + (version > 1) * version * 100
        return version * 1000000 + identity * 1000 + version * 100 - 2 + counter

    program = start(build.host(build.library("shapes", 1, Options(flags=flags))))
    assert program.call("all", 1) == expected(1, 0)
    before = program.fingerprint("libshapes")
    answer = hu.upgrade(program.pid, build.library("shapes", 2, Options(flags=flags)))
    if answer.code == REFUSED:
        assert any(name in answer.about() for name in ("nothing", "constant", "identity", "loop_at_head"))
        assert program.fingerprint("libshapes") == before
        assert program.call("all", 1) == expected(1, 0)
        return
    assert answer.code == DONE, str(answer)
    assert program.call("all", 1) == expected(2, 2)
    assert program.call("all", 1) == expected(2, 4)
    hu.rolled_back(program)
    assert program.call("all", 1) == expected(1, 4)


def test_ifunc_weak_and_alias(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("binding", 1)))
    assert program.call("everything", 1) == 4 + 2110
    before = program.address("alias")
    hu.upgraded(program, build.library("binding", 2))
    assert program.call("everything", 1) == 4 + 2 * 2110
    assert program.call("chosen", 1) == 21
    assert program.call("alias", 1) == 2001
    assert program.call("weak_one", 1) == 201
    assert program.address("alias") == before == program.address("strong")
    hu.rolled_back(program)
    assert program.call("everything", 1) == 4 + 2110


@pytest.mark.parametrize(("change", "culprit"), [("-DFIELD", "item"), ("-DRENUMBER", "COLOUR_BLUE")])
def test_a_changed_type_of_live_objects_is_refused_by_name(
    build: Builder, start: Start, hu: HotUpgrade, change: str, culprit: str
) -> None:
    program = start(build.host(build.library("layout", 1)))
    program.call("add_item", 3)
    assert program.call("sum_of_items") == 1006003
    answer = hu.upgrade(program.pid, build.library("layout", 2, Options(flags=(change,))))
    assert answer.code == REFUSED, str(answer)
    assert culprit in answer.about()
    assert program.call("sum_of_items") == 1006003


def test_the_same_type_of_live_objects(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("layout", 1)))
    program.call("add_item", 3)
    hu.upgraded(program, build.library("layout", 2))
    assert program.call("sum_of_items") == 101006003
