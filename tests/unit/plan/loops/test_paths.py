"""Paths, and where compilers put what they lead to."""

from __future__ import annotations

import pytest

from hotupgrade.plan.loops.paths import Step, Types, WrongPath, parse
from unit.conftest import Compiler

TEXT = """
#include <stdatomic.h>
#include <stddef.h>
struct latch { int fds[2]; };
struct pool { char name[12]; struct latch exit; struct worker *workers; };
typedef struct { long first; short second; } pair_t;
enum colour { RED, GREEN };
struct worker {
    struct pool *pool;
    struct worker *next[3];
    struct latch latches[4];
    int table[2][5];
    struct { union { int either; char or; }; };
    pair_t pair;
    _Atomic _Bool stop;
    unsigned wide : 3;
    enum colour colour;
    struct secret *secret;
    double weight;
    void *opaque;
};
typedef struct worker worker_t;
worker_t keep;
pair_t keep_pair;
#define AT(path) sizeof(((struct worker *)0)->path), offsetof(struct worker, path)
const size_t OFFSETS[] = {
    AT(pool), AT(next[2]), AT(latches[3].fds[1]), AT(table[1]), AT(table[1][4]), AT(either), AT(or), AT(pair.second),
    AT(stop), AT(colour), AT(weight),
};
const size_t POOL[] = {offsetof(struct pool, exit), offsetof(struct pool, workers)};
"""
DIRECT = ["pool", "next[2]", "latches[3].fds[1]", "table[1]", "table[1][4]", "either", "or", "pair.second"]
DIRECT += ["stop", "colour", "weight"]
GOOD = {
    "exit": (Step("exit"),),
    "a->b": (Step("a"), Step("b", follow=True)),
    "a.b[2]->c_1": (Step("a"), Step("b"), Step(index=2), Step("c_1", follow=True)),
    "a[1][2]": (Step("a"), Step(index=1), Step(index=2)),
}
BAD = [
    "",
    " ",
    "a b",
    "->a",
    ".a",
    "[1]",
    "a..b",
    "a->",
    "a.",
    "a[",
    "a[x]",
    "a[-1]",
    "1a",
    "a-b",
    "a[1]b",
    "a->[1]",
    "*a",
]


@pytest.mark.parametrize("path", GOOD)
def test_paths(path: str) -> None:
    assert parse(path) == GOOD[path]


@pytest.mark.parametrize("path", BAD)
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(WrongPath):
        parse(path)


@pytest.fixture(scope="module", params=["-gdwarf-4", "-gdwarf-5"])
def types(request: pytest.FixtureRequest, compiler: Compiler) -> Types:
    build = compiler.build(TEXT, request.param)
    return Types(build.debug, "module.c")


def test_offsets_are_those_of_the_compiler(compiler: Compiler, types: Types) -> None:
    build = compiler.build(TEXT, "-gdwarf-5")

    def numbers(name: str) -> list[int]:
        row = build.by_name[name]
        content = build.read(int(build.entities.address[row]), int(build.entities.size[row]))
        return [int.from_bytes(content[at : at + 8], "little") for at in range(0, len(content), 8)]

    expected = numbers("OFFSETS")
    for number, path in enumerate(DIRECT):
        place = types.locate("struct worker", path).place
        assert (place.size, place.offsets, place.path) == (expected[2 * number], (expected[2 * number + 1],), path)
    exit_at, workers_at = numbers("POOL")
    assert types.locate("struct worker", "pool->exit").place.offsets == (0, exit_at)
    assert types.locate("struct worker", "pool->exit.fds[1]").place.offsets == (0, exit_at + 4)
    stop = types.locate("struct worker", "stop").place.offsets[0]
    assert types.locate("struct worker", "pool->workers->next[1]->stop").place.offsets == (0, workers_at, 16, stop)


def test_types_of_what_is_there(types: Types) -> None:
    assert types.locate("struct worker", "pool->exit").text == "`struct latch`"
    assert types.locate("struct worker", "pool->exit.fds").text == "int32 [2]"
    assert types.locate("struct worker", "stop").text == "bool8"
    assert types.locate("struct worker", "table[1]").text == "int32 [5]"


@pytest.mark.parametrize("argument", ["worker_t", "struct worker"])
def test_a_typedef_is_as_good(types: Types, argument: str) -> None:
    assert types.locate(argument, "next").place.offsets == (8,)


def test_a_typedef_of_a_structure_without_a_tag(types: Types) -> None:
    assert types.locate("pair_t", "second").place.offsets == (8,)


WRONG = {
    "nothing": "has no member 'nothing'",
    "pool->nothing": "struct pool has no member 'nothing'",
    "pool.exit": "is not known, so it has no 'exit'",
    "stop->x": "before '->x' there is no pointer but bool8",
    "wide": "bit-field",
    "next[3]": "there are 3 elements, so none has the number 3",
    "stop[0]": "has no elements",
    "pool[0]": "has no elements",
    "secret->x": "what struct secret is made of is not known",
    "opaque->x": "what void is made of is not known",
}


@pytest.mark.parametrize("path", WRONG)
def test_paths_that_lead_nowhere(types: Types, path: str) -> None:
    with pytest.raises(WrongPath, match=WRONG[path].replace("[", r"\[")):
        types.locate("struct worker", path)


def test_a_type_that_is_not_there(types: Types) -> None:
    with pytest.raises(WrongPath, match="there is no type 'struct nobody'"):
        types.locate("struct nobody", "x")


def test_what_a_type_holds_by_value(types: Types) -> None:
    assert types.held("struct pool") == {"struct pool", "struct latch"}
    assert types.held("struct worker") >= {"struct worker", "struct latch", "enum colour"}
    assert "struct pool" not in types.held("struct worker")


def test_files_may_have_types_of_their_own(compiler: Compiler) -> None:
    build = compiler.build(
        {
            "one.c": "struct own { char pad[4]; int stop; }; struct own one;",
            "two.c": "struct own { char pad[64]; int stop; }; struct own two;",
        },
        "-g",
    )
    assert Types(build.debug, "one.c").locate("struct own", "stop").place.offsets == (4,)
    assert Types(build.debug, "somewhere/two.c").locate("struct own", "stop").place.offsets == (64,)
    with pytest.raises(WrongPath, match="or more than one"):
        Types(build.debug, "three.c").locate("struct own", "stop")
