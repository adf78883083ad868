"""The programs alone, each build from its own start: the control of every other test here."""

from __future__ import annotations

import subprocess
import time

import pytest

from live.conftest import Start
from live.harness import PLAIN, Builder, Options

VERSIONS = (1, 2, 3)


@pytest.mark.parametrize("version", VERSIONS)
def test_each_build_says_which_it_is(build: Builder, start: Start, version: int) -> None:
    program = start(build.host(build.library("basic", version)))
    assert program.call("version") == version
    assert program.call("pair") == 1001001 * version
    assert program.call("keep", 3) == 10
    assert program.call("keep_more", 1) == 10 + version
    assert program.ask("call", "only_two", 1) == ("value=2001" if version == 2 else "error=no-such-function")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_state_programs_start_as_written(build: Builder, start: Start, version: int) -> None:
    names = ("lists", "statics", "once", "local", "callbacks", "initial", "binding")
    program = start(build.host(*(build.library(name, version) for name in names)))
    assert program.call("add", 4) == 1
    assert program.call("sum") == 4 * version
    assert program.call("empty_is_empty") == version
    assert program.call("try_lock") == version * 1000
    assert program.call("first") == 10 * version
    assert program.call("second") == 20
    assert program.call("third") == 30 * version
    assert program.call("initialised") == version * 1000000 + (1 + (version - 1) * 100) * 1001
    assert program.call("everything", 0) == version * (10 + 100 + 2000)
    assert program.call("head_of_sorted") == (9 if version == 2 else 2)
    assert program.call("get_limit", 3) == version * 100 + 3

    program = start(build.host(build.library("pointers", version)))
    assert program.call("make") == 1
    assert program.call("identity") == 15 + version * 1000
    assert program.call("through_callback", 1) == 1 + version * 100
    assert program.call("through_second", 1) == (33334 if version == 3 else 2)
    assert program.call("weight_of_exported") == version * 7
    assert program.call("weight_of_first") == version * 11
    assert program.call("constant", 1) == version * 2

    program = start(build.host(build.library("shapes", version, Options(flags=("-Os",)))))
    assert program.call("all", 1) == version * 1000000 + (
        1 + (version > 1) * version * 100
    ) * 1000 + version * 100 - 2 + (version if version > 1 else 0)


@pytest.mark.parametrize("version", VERSIONS)
def test_local_functions_compute_the_same_with_another_shape(build: Builder, start: Start, version: int) -> None:
    program = start(build.host(build.library("local", version)))
    expected = [(3 * x + version) * 1000 + 3 * (x + 1) + version for x in (5, 6, 7)]
    assert program.call("outer", 5) == sum(expected) + 3
    assert program.call("other", 5) == 15 + version + 3
    assert program.call("unrelated", 5) == 8


@pytest.mark.parametrize("version", VERSIONS)
def test_exceptions(build: Builder, start: Start, version: int) -> None:
    throws = build.library("throws", version)
    program = start(build.host(throws, build.library("catcher", uses=[throws])))
    assert program.call("catch_outside", 2) == version
    assert program.call("catch_outside", 3) == 1000
    assert program.call("catch_inside", 3) == 30 + version + version * 1000
    assert program.call("catch_inside", 2) == version + version * 100000
    assert program.call("throw_through", 77) == 77
    assert program.call("count_destroyed") == 9 * version


@pytest.mark.parametrize("model", ["global-dynamic", "local-dynamic", "initial-exec"])
def test_thread_locals(build: Builder, start: Start, model: str) -> None:
    program = start(build.host(build.library("tls", 1, Options(flags=(f"-ftls-model={model}",)))))
    assert program.call("answer", 2) == 1000000 - 10000 + 4200 + 1
    assert program.call("answer", 0) == 1000000 - 10000 + 4200 + 2


def test_every_worker_and_every_sleeper_runs(build: Builder, start: Start) -> None:
    program = start(build.host(build.library("basic", 1)))
    program.ask("sleepers")
    for way in ("busy", "churn", "fork", "altstack"):
        program.ask("work", way, 1, "version")
    for way in ("small", "blocked"):
        program.ask("work", way, 1, "version", 0, 1)
    time.sleep(0.8)
    workers = program.workers()
    assert workers.least > 5
    assert workers.last == {1}
    assert workers.values == {1}
    assert (workers.changes, workers.failures) == (0, 0)
    assert program.check_sleepers() > 20
    assert program.facts("fork", "version") == {"value": "1", "status": "0"}
    program.ask("stop")
    assert program.workers().calls == 0


@pytest.mark.parametrize("flags", [("-fno-pie", "-no-pie"), ("-fPIE", "-pie")], ids=["no-pie", "pie"])
def test_the_executable_really_holds_a_copy(build: Builder, start: Start, flags: tuple[str, ...]) -> None:
    host = build.host(build.library("copied", 1), extra="copied_host", flags=flags)
    relocations = subprocess.run(["readelf", "-rW", str(host)], capture_output=True, text=True, check=True).stdout
    assert "R_X86_64_COPY" in relocations
    program = start(host)
    assert program.call("where") == program.call("host_where")
    assert program.call("count", 2) == 7
    assert program.call("host_counter", 1) == 8


def test_a_clean_end(build: Builder, start: Start) -> None:
    program = start(build.host(build.library("constructors", 2), build.library("callbacks", 2)))
    assert program.ask("text", "state") == "version=2 first=2 second=1 third=0"
    program.call("install")
    assert program.quit().splitlines() == ["atexit=2", "destroyed=2"]


def test_the_same_source_gives_the_same_build(build: Builder) -> None:
    assert build.library("basic", 1) == build.library("basic", 1, PLAIN)
