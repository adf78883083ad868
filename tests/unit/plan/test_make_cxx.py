"""C++: exceptions through new code, type identity, virtual functions, guards of local statics."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from hotupgrade.plan.model import ModulePlan
from hotupgrade.plan.options import PlanOptions
from unit.plan.inprocess import World, compile_library, in_child

WHOLE = PlanOptions(whole=True, trust_layout=True)
BOTH = pytest.mark.parametrize("options", [PlanOptions(trust_layout=True), WHOLE], ids=["changed", "whole"])

EXCEPTIONS = """
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>
namespace { struct Local { int value; }; }
struct Shared : std::runtime_error { using std::runtime_error::runtime_error; };
struct Tracer { int &count; ~Tracer() { count += 1; } };
static int unwound;
extern "C" int count_unwound() { return unwound; }
__attribute__((noinline)) static void thrower(int kind) {
    Tracer tracer{unwound};
    switch (kind) {
    case 0: return;
    case 1: throw Local{%(value)d};
    case 2: throw Shared("shared");
    case 3: throw std::out_of_range("range");
    case 4: throw 42;
    default: throw "text";
    }
}
extern "C" int run(int kind) {
    try {
        thrower(kind);
    } catch (const Local &local) {
        return local.value;
    } catch (const Shared &) {
        return 200 + %(value)d;
    } catch (const std::exception &) {
        return 300 + %(value)d;
    } catch (int number) {
        return 400 + number;
    }
    return %(value)d;
}
extern "C" void escape(int kind) { Tracer tracer{unwound}; thrower(kind + (%(value)d > 0 ? 0 : 1)); }
extern "C" int catcher(void (*function)(int), int kind) {
    try { function(kind); } catch (const Shared &) { return 1; } catch (...) { return 2; }
    return 0;
}
extern "C" void (*get_escape())(int) { return escape; }
"""


def values(value: int) -> list[int]:
    return [value, value, 200 + value, 300 + value, 442]


@BOTH
@pytest.mark.parametrize(
    "flags", [(), ("-Wl,-z,now",), ("-O0",), ("-fuse-ld=gold",)], ids=["plain", "now", "O0", "gold"]
)
@in_child
def test_exceptions(tmp_path: Path, flags: tuple[str, ...], options: PlanOptions) -> None:
    def build(value: int) -> Path:
        return compile_library(tmp_path, EXCEPTIONS % {"value": value}, *flags, language="c++")

    world = World(tmp_path, build(1))
    assert [world.call("run", kind) for kind in range(5)] == values(1)
    for value in (7, 9, 1, 7):
        plan = world.upgrade(build(value), options)
        assert plan.image is None or plan.image.eh_frame is not None
        before = world.call("count_unwound")
        assert [world.call("run", kind) for kind in range(5)] == values(value)
        assert world.call("count_unwound") == before + 5
        escape = ctypes.c_void_p(world.call("get_escape", result=ctypes.c_void_p))
        assert world.call("catcher", escape, 2) == 1
        assert world.call("catcher", escape, 5) == 2
        assert world.call("count_unwound") == before + 9


@in_child
def test_an_exception_crosses_from_new_code_to_old(tmp_path: Path) -> None:
    """Thrown by a changed function, caught by an unchanged one, by a type that both know."""
    source = """
    struct Shared { int value; };
    extern "C" __attribute__((noinline)) void thrower(int value) { throw Shared{value + %d}; }
    extern "C" int run(int value) {
        try { thrower(value); } catch (const Shared &shared) { return shared.value; }
        return 0;
    }
    """
    world = World(tmp_path, compile_library(tmp_path, source % 1, language="c++"))
    plan = world.upgrade(compile_library(tmp_path, source % 5, language="c++"))
    assert {edit.what for edit in plan.edits} == {"thrower"}
    assert world.call("run", 10) == 15


@BOTH
@in_child
def test_virtual_functions_and_type_identity(tmp_path: Path, options: PlanOptions) -> None:
    source = """
    #include <typeinfo>
    struct Base { virtual ~Base() {} virtual int area() const = 0; virtual int twice() const { return 2 * area(); } };
    struct Square : Base {
        int side;
        explicit Square(int s) : side(s) {}
        int area() const override { return side * side%(more)s; }
    };
    %(extra)s
    extern "C" Base *make(int side) { return new Square(side); }
    extern "C" int area(Base *base) { return base->area(); }
    extern "C" int twice(Base *base) { return base->twice()%(plus)s; }
    extern "C" int is_square(Base *base) { return (dynamic_cast<Square *>(base) != nullptr)%(plus)s; }
    """

    def build(more: str = "", plus: str = "", extra: str = "") -> Path:
        return compile_library(tmp_path, source % {"more": more, "plus": plus, "extra": extra}, language="c++")

    round_ = """
    struct Circle : Base { int r; explicit Circle(int x) : r(x) {} int area() const override { return 3 * r * r; } };
    extern "C" Base *make_circle(int r) { return new Circle(r); }
    """
    world = World(tmp_path, build())
    square = ctypes.c_void_p(world.call("make", 3, result=ctypes.c_void_p))
    world.upgrade(build("+ 1", "+ 100", round_), options)
    assert world.call("area", square) == 10
    assert world.call("twice", square) == 120
    assert world.call("is_square", square) == 101
    circle = ctypes.c_void_p(world.call_at(world.new_address("make_circle"), 2, result=ctypes.c_void_p))
    assert world.call("area", circle) == 12
    assert world.call("twice", circle) == 124
    assert world.call("is_square", circle) == 100
    newer = ctypes.c_void_p(world.call("make", 4, result=ctypes.c_void_p))
    assert world.read(newer.value or 0, 8) == world.read(square.value or 0, 8)
    world.upgrade(world.library)
    assert world.call("area", square) == 9
    assert world.call("area", circle) == 12
    assert world.call("is_square", circle) == 0


@BOTH
@in_child
def test_guarded_local_statics_are_initialised_once(tmp_path: Path, options: PlanOptions) -> None:
    source = """
    static int made;
    struct Heavy { int value; Heavy() : value(++made * 10) {} ~Heavy() {} };
    inline int &shared() { static int inline_state = 5; return inline_state; }
    template <typename T> int counter() { static int count; return ++count; }
    extern "C" int run() { static Heavy heavy; shared()++; return heavy.value + counter<char>() + shared() * %d; }
    extern "C" int touch() { return counter<char>() + shared(); }
    """
    world = World(tmp_path, compile_library(tmp_path, source % 100, language="c++"))
    assert world.call("run") == 10 + 1 + 600
    assert world.call("touch") == 2 + 6
    world.upgrade(compile_library(tmp_path, source % 1000, language="c++"), options)
    assert world.call("run") == 10 + 3 + 7000
    assert world.call("touch") == 4 + 7


def test_the_reduced_tables_are_small(tmp_path: Path) -> None:
    @in_child
    def check() -> None:
        many = "".join(f'extern "C" int f{n}(int x) {{ if (x > {n}) throw x; return x; }}\n' for n in range(300))
        world = World(tmp_path, compile_library(tmp_path, many + 'extern "C" int run() { return 1; }', language="c++"))
        plan: ModulePlan = world.plan(
            compile_library(tmp_path, many + 'extern "C" int run() { return 2; }', language="c++")
        )
        assert plan.image is not None
        assert plan.image.eh_frame is not None
        start = plan.image.eh_frame - plan.image.base
        piece = next(p for p in plan.image.pieces if p.offset <= start < p.offset + len(p.content))
        content = piece.content[start - piece.offset :]
        records = 0
        while size := int.from_bytes(content[:4], "little"):
            content, records = content[4 + size :], records + 1
        assert records == 2

    check()


@BOTH
@in_child
def test_exception_specifications(tmp_path: Path, options: PlanOptions) -> None:
    source = """
    #include <exception>
    struct Bad {}; struct Listed { int value; };
    static void replace() { throw Listed(); }
    extern "C" void thrower(int kind) throw(int, Listed) { if (kind == 0) throw %d; if (kind == 1) throw Bad(); }
    extern "C" int run(int kind) {
        std::set_unexpected(replace);
        try { thrower(kind); } catch (int value) { return value; } catch (const Listed &) { return -1; }
        return 0;
    }
    """
    flags = ("-std=gnu++98", "-Wno-deprecated")
    world = World(tmp_path, compile_library(tmp_path, source % 5, *flags, language="c++"))
    assert [world.call("run", kind) for kind in range(3)] == [5, -1, 0]
    world.upgrade(compile_library(tmp_path, source % 6, *flags, language="c++"), options)
    assert [world.call("run", kind) for kind in range(3)] == [6, -1, 0]
