"""Which replaced functions a thread can be started with, and which of them never end."""

from __future__ import annotations

import pytest

from hotupgrade.plan.compare import compare
from hotupgrade.plan.loops.endless import StartFunction, start_functions
from hotupgrade.plan.model import Image
from unit.conftest import Compiler

BASE = 0x7F0000000000
HEAD = "extern int rest(int); extern void stop(void) __attribute__((noreturn)); void *other(void *);\n"
BODIES = {
    "for (;;) rest(N);": True,
    "for (;;) if (rest(N)) stop();": True,
    "while (rest(N)) { }  return a;": False,
    "for (;;) if (rest(N)) return other(a);": False,
    "return other((char *)a + N);": False,
    "rest(N); stop();": True,
    # A part that is never expected, and is another piece of the same function.
    "for (;;) if (__builtin_expect(rest(N), 0)) { rest(1); rest(2); rest(3); rest(4); }": True,
    "for (;;) if (__builtin_expect(rest(N), 0)) { rest(1); rest(2); rest(3); return a; }": False,
    # Computed jumps may lead anywhere.
    "for (;;) switch (rest(N)) { case 1: rest(2); break; case 2: rest(5); break; case 3: rest(4); break;"
    " case 4: rest(1); break; case 5: rest(6); break; case 6: rest(8); break; }": False,
}


def found(compiler: Compiler, body: str, led: bool = False) -> list[StartFunction]:
    text = HEAD + f"void *run(void *a) {{ (void) a; {body} }}\nvoid *started = (void *) run;\n"
    old, new = (compiler.build(f"#define N {n}\n{text}", "-freorder-blocks-and-partition") for n in (1, 2))
    vaddr = int(old.entities.address[old.entities.names.index("run")])
    return list(start_functions([Image(old, BASE)], [compare(old, new)], {(0, vaddr)} if led else ()))


@pytest.mark.parametrize("body", BODIES)
def test_what_never_returns(compiler: Compiler, body: str) -> None:
    (function,) = found(compiler, body)
    assert (function.function, function.endless) == ("run", BODIES[body])
    low, high = function.ranges[0]
    assert low == function.home < high


def test_what_threads_are_led_out_of_is_left_out(compiler: Compiler) -> None:
    assert found(compiler, next(iter(BODIES)), led=True) == []


def test_what_is_the_same_and_what_cannot_be_started(compiler: Compiler) -> None:
    text = HEAD + (
        "static __attribute__((noinline)) void inner(int n) { for (;;) rest(n + N); }\n"
        "void *same(void *a) { for (;;) rest(7); return a; }\n"
        "void *run(void *a) { inner(3); return a; }\n"
    )
    old, new = (compiler.build(f"#define N {n}\n{text}", "-fno-ipa-cp") for n in (1, 2))
    names = {f.function for f in start_functions([Image(old, BASE)], [compare(old, new)], ())}
    assert names <= {"run"}


def test_the_home_is_where_the_loaders_image_has_it(compiler: Compiler) -> None:
    """Also for the code that an upgrade has brought since."""
    text = HEAD + "void *run(void *a) { (void) a; for (;;) rest(N); }\n"
    one, two, three = (compiler.build(f"#define N {n}\n{text}") for n in (1, 2, 3))
    images = [Image(one, BASE), Image(two, BASE + (1 << 24), frozenset({two.entities.names.index("run")}))]
    functions = list(start_functions(images, [compare(one, three), compare(two, three)], ()))
    assert [f.function for f in functions] == ["run", "run"]
    assert functions[0].home == functions[1].home
    assert functions[1].ranges[0][0] >= BASE + (1 << 24)


def test_the_build_itself(compiler: Compiler) -> None:
    build = compiler.build(HEAD + "void *run(void *a) { (void) a; for (;;) rest(3); }\n")
    assert list(start_functions([Image(build, BASE)], [compare(build, build)], ())) == []
