"""Types that may change because no old object of them can be alive."""

from __future__ import annotations

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.plan.compare import compare
from unit.conftest import Compiler
from unit.plan.test_layouts import codes, judge

TEXT = """
#include <stdlib.h>
#include <string.h>
struct work {{ int a; {more} int b; }};
void use(void *p);
static int kept;
{extra}
__attribute__((noinline)) static void fill(struct work *w, int x) {{ w->a = x; w->b = {factor} * x; use(&w->a); }}
int run(int x) {{ struct work w; fill(&w, x); return w.a + w.b + kept; }}
int other(int x) {{ return x + 1; }}
"""


def builds(compiler: Compiler, extra: str = "", changed: str | None = None, *flags: str) -> tuple[Build, Build]:
    old = compiler.build(TEXT.format(more="", extra=extra, factor=2), "-g", *flags)
    new = TEXT.format(more="int inserted;", extra=extra if changed is None else changed, factor=3)
    return old, compiler.build(new, "-g", *flags)


@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_an_automatic_object_of_a_replaced_function(compiler: Compiler, level: str) -> None:
    refusals, notes = judge(*builds(compiler, "", None, level))
    assert refusals == {}
    assert codes(notes) == {"struct work": "type-changed-unused"}
    assert "+inserted at 4" in notes["struct work"].text


def test_an_inlined_function_is_where_it_was_inlined(compiler: Compiler) -> None:
    extra = (
        "static inline int sum(int x) { struct work v = { x }; use(&v); return v.b; }"
        "int outer(int x) { return sum(x); }"
    )
    refusals, notes = judge(*builds(compiler, extra))
    assert refusals == {}
    assert codes(notes) == {"struct work": "type-changed-unused"}


ALIVE = {
    "a static object": "static struct work still; void *a(void) { return &still; }",
    "a static object of a function": "void *a(void) { static struct work still; return &still; }",
    "a pointer in a variable": "int a(void *p) { struct work *w = p; return w->a; }",
    "a pointer in a static variable": "struct work *last; int a(void) { return last->b; }",
    "a member of another type": "struct outer { struct work w; }; int a(struct outer *o) { return o->w.b; }",
    "a pointer in another type": "struct outer { struct work *w; }; int a(struct outer *o) { return o->w->b; }",
    "an unnamed member": "struct { struct work w[2]; } *o; int a(void) { return o->w[1].b; }",
    "a result": "struct work *a(void) { return calloc(1, 100); }",
    "a callback": "static int cb(struct work *w) { return w->b; } void a(void) { use((void *) cb); }",
    "an exported function": "int a(struct work *w) { return w->b; }",
    "a function of another module": "int elsewhere(struct work *w); int a(void *p) { return elsewhere(p); }",
    "a type of functions": "int (*call)(struct work *); int a(void *p) { return call(p); }",
    "a pointer to a pointer": "__attribute__((noinline)) static int get(struct work **w) { return (*w)->b; }"
    " int a(void *p) { return get(p); }",
    "thread-local": "__thread struct work mine; void *a(void) { return &mine; }",
}


@pytest.mark.parametrize("how", ALIVE)
def test_what_may_be_alive(compiler: Compiler, how: str) -> None:
    refusals, _ = judge(*builds(compiler, ALIVE[how]))
    assert codes(refusals).get("struct work") == "type-changed", how


def test_an_unchanged_function_keeps_its_objects(compiler: Compiler) -> None:
    """Its code is the same for both layouts, so it stays, and may be on a stack, holding one for others."""
    old, new = builds(compiler, "int holds(int x) { _Alignas(64) struct work w; use(&w); return x; }")
    row = new.entities.names.index("holds")
    assert compare(old, new).same[row]
    assert codes(judge(old, new)[0])["struct work"] == "type-changed"


def test_casts_alone_prove_nothing(compiler: Compiler) -> None:
    text = "struct work {{ int a; {} int b; }}; int get(void *p) {{ return ((struct work *) p)->b; }}"
    old, new = (compiler.build(text.format(more), "-g") for more in ("", "int inserted;"))
    assert "struct work" in old.debug.types
    assert codes(judge(old, new)[0])["struct work"] == "type-changed"
