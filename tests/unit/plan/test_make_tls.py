"""Thread-locals keep their identity, whatever the access model; new ones find room in a reserve."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import pytest

from hotupgrade.errors import Refused
from hotupgrade.plan.options import PlanOptions
from unit.plan.inprocess import World, compile_library, in_child

WHOLE = PlanOptions(whole=True, trust_layout=True)

SOURCE = """
#include <stdio.h>
#include <errno.h>
%(before)s
static __thread int first = 10;
static __thread int second;
__thread long third = 30;
static __thread char name[16] = "thread";
int bump(void) { second += 2; first++; return first * 100 + second; }
long get_third(void) { return third; }
void set_third(long value) { third = value; }
char *get_name(void) { return name; }
int use(int x) { %(extra)s errno = x; return errno + first + %(plus)d; }
int *where(void) { return &second; }
"""

INSERTED = "static __thread int zeroth = 7; int count(void) { return ++zeroth; }"

MODELS = {
    "general-dynamic": ("-ftls-model=global-dynamic",),
    "initial-exec": ("-ftls-model=initial-exec",),
    "local-dynamic": ("-ftls-model=local-dynamic",),
    "local-dynamic-records": ("-ftls-model=local-dynamic", "-Wl,--emit-relocs"),
    "descriptors": ("-mtls-dialect=gnu2",),
    "descriptors-records": ("-mtls-dialect=gnu2", "-Wl,--emit-relocs"),
}


def source(plus: int, *, before: str = "", extra: str = "") -> str:
    return SOURCE % {"plus": plus, "before": before, "extra": extra}


def on_a_new_thread(work: object) -> int:
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(work()))  # type: ignore[operator]
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize("options", [PlanOptions(trust_layout=True), WHOLE], ids=["changed", "whole"])
@pytest.mark.parametrize("model", MODELS)
@in_child
def test_the_same_layout(tmp_path: Path, model: str, options: PlanOptions) -> None:
    flags = MODELS[model]
    world = World(tmp_path, compile_library(tmp_path, source(1), *flags))
    world.call("bump")
    world.call("set_third", 31, result=None)
    where = world.call("where", result=ctypes.c_void_p)
    ctypes.memmove(world.call("get_name", result=ctypes.c_void_p), b"kept", 5)
    world.upgrade(compile_library(tmp_path, source(2).replace("second += 2", "second += 3"), *flags), options)
    assert world.call("bump") == 1205
    assert world.call("get_third", result=ctypes.c_long) == 31
    assert world.text("get_name") == "kept"
    assert world.call("where", result=ctypes.c_void_p) == where
    assert world.call("use", 5) == 5 + 12 + 2
    assert on_a_new_thread(lambda: world.call("bump")) == 1103
    assert world.call("bump") == 1308


@pytest.mark.parametrize("model", MODELS)
@in_child
def test_a_variable_in_front_moves_the_others(tmp_path: Path, model: str) -> None:
    """The new build's offsets all differ; the running block stays as it is."""
    flags = MODELS[model]
    world = World(tmp_path, compile_library(tmp_path, source(1), *flags))
    static = world.tls_block is not None
    world.call("bump")
    where = world.call("where", result=ctypes.c_void_p)
    new = compile_library(tmp_path, source(2, before=INSERTED, extra="first += 5;"), *flags)
    if not static:
        with pytest.raises(Refused) as refusal:
            world.plan(new)
        assert {reason.code for reason in refusal.value.reasons} == {"tls-layout"}
        return
    world.upgrade(new)
    assert world.call("use", 5) == 5 + 16 + 2
    assert world.call("bump") == 1704
    assert world.call("where", result=ctypes.c_void_p) == where
    count = world.new_address("count")
    assert [world.call_at(count) for _ in range(2)] == [8, 9]
    assert world.call("bump") == 1806


@pytest.mark.parametrize("model", sorted(MODELS))
@in_child
def test_new_thread_locals_in_a_module_with_static_storage(tmp_path: Path, model: str) -> None:
    """One initial-exec access makes the whole block static: then the others' new variables have a place too."""
    anchor = (
        'static __attribute__((tls_model("initial-exec"))) __thread int anchor = 3;\n'
        "int anchored(void) { return anchor++ ? 3 : 0; }\n"
    )
    flags = MODELS[model]
    world = World(tmp_path, compile_library(tmp_path, anchor + source(1), *flags))
    world.call("bump")
    where = world.call("where", result=ctypes.c_void_p)
    new = compile_library(tmp_path, INSERTED + anchor + source(2, extra="first += 5;"), *flags)
    for options in (PlanOptions(trust_layout=True), WHOLE):
        world.upgrade(new, options)
        assert world.call("use", 5) == 5 + 16 + 2
        assert world.call("anchored") == 3
        assert world.call("where", result=ctypes.c_void_p) == where
        count = world.call_at(world.new_address("count"))
        assert count == world.call_at(world.new_address("count")) - 1
        world.upgrade(world.library)
        assert world.call("use", 5) == 5 + 16 + 1
        _set_first(world, where, 11)


def _set_first(world: World, second: int, value: int) -> None:
    """Writes to ``first``, which keeps its distance from ``second``."""
    entities = world.images[0].build.entities
    offsets = dict(zip(entities.names, entities.address.tolist(), strict=True))
    ctypes.c_int.from_address(second + offsets["first"] - offsets["second"]).value = value


@in_child
def test_thread_locals_of_other_modules(tmp_path: Path) -> None:
    provider = compile_library(
        tmp_path, "__thread int theirs = 9; int theirs_get(void) { return theirs; }", soname="libtheirs.so"
    )
    ctypes.CDLL(str(provider))
    user = "extern __thread int theirs; int run(int x) { theirs += x; return theirs * %d; }"
    world = World(tmp_path, compile_library(tmp_path, user % 1, libraries=[str(provider)]))
    assert world.call("run", 1) == 10
    world.upgrade(compile_library(tmp_path, user % 2, libraries=[str(provider)]))
    assert world.call("run", 1) == 22
    assert ctypes.CDLL(str(provider)).theirs_get() == 11


@in_child
def test_a_use_of_another_modules_thread_local_that_is_new_is_refused(tmp_path: Path) -> None:
    provider = compile_library(tmp_path, "__thread int theirs = 9;", soname="libtheirs.so")
    ctypes.CDLL(str(provider))
    world = World(tmp_path, compile_library(tmp_path, "int run(void) { return 1; }", libraries=[str(provider)]))
    new = compile_library(
        tmp_path, "extern __thread int theirs; int run(void) { return theirs; }", libraries=[str(provider)]
    )
    with pytest.raises(Refused) as refusal:
        world.plan(new)
    assert {(reason.code, reason.subject) for reason in refusal.value.reasons} == {("unresolved-symbol", "theirs")}


@in_child
def test_the_first_thread_local_of_a_module_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, compile_library(tmp_path, "int run(void) { return 1; }"))
    with pytest.raises(Refused) as refusal:
        world.plan(compile_library(tmp_path, "static __thread int mine; int run(void) { return ++mine; }"))
    assert {reason.code for reason in refusal.value.reasons} == {"tls-layout"}


@in_child
def test_a_resized_thread_local_is_refused(tmp_path: Path) -> None:
    flags = MODELS["initial-exec"]
    world = World(tmp_path, compile_library(tmp_path, source(1), *flags))
    new = source(1).replace("name[16]", "name[32]").replace("return name", "name[20] = 1; return name")
    refusals, _ = world.judge(compile_library(tmp_path, new, *flags))
    assert [(reason.code, reason.subject) for reason in refusals] == [("object-resized", "name")]
    assert "16" in refusals[0].text
    assert "32" in refusals[0].text
