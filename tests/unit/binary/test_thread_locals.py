"""Offsets of thread-locals without records: data flow finds what the linker wrote, or says that it is left open."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from crosscheck.check import Tally, check
from hotupgrade.binary.build import Build
from hotupgrade.binary.code import CodeFacts, read_code
from hotupgrade.binary.model import THREAD_LOCAL_FORMS, Form
from hotupgrade.binary.thread_locals import below_thread_pointer
from unit.conftest import Compiler

RECORDS = "-Wl,--emit-relocs"

# The block is larger than what one byte reaches, so that a field's length seldom tells what it is.
EVERYTHING = r"""
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct pair { long left, right; char text[200]; };
__thread struct pair pairs[20];
static __thread int small = 1;
static __thread long table[40] = {1, 2, 3};
static __thread char name[300] = "thread";
static __thread struct pair one;
static __thread unsigned char bytes[64];
__thread int visible = 3;
extern void take(void *), *give(int), work(void);
extern int ask(int);
void fail(const char *) __attribute__((noreturn, noinline, cold));
void fail(const char *why) { puts(why); abort(); }

int *address(void) { return &small; }
int sum(void) { return small + visible + name[0] + (int) one.right; }
long index_of(long i) { return table[i - 3] + table[i + 7] + pairs[i].right + bytes[i]; }
long loop(void) { long t = 0; for (long *p = table; p < table + 40; p++) { t += *p + small; } return t; }
long back(void) { long t = 0; for (int i = 39; i >= 0; i--) { t = t * 3 + table[i] + bytes[i]; } return t; }
void store(int i, long value) { table[i] = value; pairs[i].left = value; strcpy(name + i, "x"); small++; }
void *choose(int x) { return x ? (void *) &small : x > 5 ? (void *) &visible : give(x); }
long sometimes(int x, struct pair *p)
{
    if (x > 3) { p = &one; }
    take(p);
    if (x > 3) { one.left++; take(&small); }
    return p->right + p->text[100];
}
int checked(int x)
{
    if (x > 10) { small++; take(&one); if (!ask(x)) { fail("ten"); } x += small; }
    for (int i = 0; i < x; i++) {
        if (ask(i)) { visible += i; continue; }
        if (i == 7) { fail("seven"); }
        take(name + i);
    }
    return x + small;
}
long pressure(long a, long b, long c, long d, long e, long f)
{
    long g = a * b, h = c * d, i = e * f, j = a ^ c, k = b ^ d, l = e + a, m = f - b;
    for (int n = 0; n < 10; n++) {
        long old = table[n & 31];
        table[n & 31] = g + h * i - j + k;
        one.left += l * m + small;
        g += ask(n) + old; h ^= a + g; i -= b; j += c; k ^= d; l += e; m -= f; pairs[n].right += g + h;
        a += visible; b ^= a; c += b; d ^= c; e += d; f -= e;
    }
    return a + b + c + d + e + f + g + h + i + j + k + l + m + small;
}
int in_switch(int x)
{
    take(&one);
    switch (x) {
    case 0: return small;
    case 1: one.left = 3; return ask(1);
    case 2: take(name); break;
    case 3: return (int) table[ask(2) & 7];
    case 4: visible = 7; work(); return visible;
    case 5: return one.text[x + 20];
    case 6: work(); small--; break;
    case 7: fail("switch");
    default: one.right++;
    }
    return visible + small;
}
static __attribute__((noinline)) int leaf(int x) { return x * small; }
int callers(int x) { int a = small; int b = leaf(x); int c = visible + leaf(b); return a + b + c + (int) table[x & 3]; }
int computed(int x)
{
    static const void *const labels[] = {&&first, &&second, &&third};
    int t = small;
    goto *labels[x % 3];
first: t += one.text[150]; if (ask(t)) { goto third; } return t;
second: table[5]++; work(); return (int) table[6] + t;
third: visible += t; return visible;
}
jmp_buf place;
int jumps(int x) { if (setjmp(place)) { return small; } one.left = x; work(); return (int) one.left + visible; }
void room(int x) { char *p = __builtin_alloca(x + 20); strcpy(p, name); take(p); one.left += p[3]; take(&visible); }
"""
MAIN = {"main.c": "int main(int argc, char **argv) { (void) argv; return argc; }\n"}
HELP = {
    "help.c": "void take(void *p) { (void) p; } void *give(int x) { (void) x; return 0; } void work(void) { }\n"
    "int ask(int x) { return x; }\n"
}
MODELS = {
    "general-dynamic": ("-fPIC", "-ftls-model=global-dynamic"),
    "local-dynamic": ("-fPIC", "-ftls-model=local-dynamic"),
    "initial-exec": ("-fPIC", "-ftls-model=initial-exec"),
    "descriptors": ("-fPIC", "-mtls-dialect=gnu2"),
    "local-exec": (),  # what compilers take by themselves for an executable
}
LEVELS = {"gcc": ("-O0", "-O2", "-O3", "-Os"), "clang": ("-O0", "-O2")}
LIBRARIES = [
    (driver, level, model)
    for driver, levels in LEVELS.items()
    for level in levels
    for model in ("general-dynamic", "local-dynamic", "descriptors")
    if (driver, model) != ("clang", "descriptors")  # clang 14 knows none
]
PROGRAMS = [
    (driver, level, model, linker)
    for driver, levels in LEVELS.items()
    for level in levels
    for model in MODELS
    for linker in ("bfd", "lld")
    if (driver, model) != ("clang", "descriptors") and (level == "-O2" or (linker == "bfd" and model == "local-exec"))
]


def checked(compiler: Compiler, *flags: str, executable: bool, driver: str) -> Tally:
    sources = {"module.c": EVERYTHING, **HELP, **(MAIN if executable else {})}
    tally = check(compiler.file(sources, "-w", RECORDS, *flags, executable=executable, driver=driver))
    assert tally.faults() == []
    assert tally.records > 40
    return tally


@pytest.mark.parametrize(("driver", "level", "model"), LIBRARIES)
def test_libraries(compiler: Compiler, driver: str, level: str, model: str) -> None:
    tally = checked(compiler, level, *MODELS[model], executable=False, driver=driver)
    # Without optimisation compilers ask for each variable by itself, unless told otherwise.
    least = 40 if model == "local-dynamic" else 0 if level == "-O0" else 10
    assert tally.found == tally.thread_locals >= least


@pytest.mark.parametrize(("driver", "level", "model", "linker"), PROGRAMS)
def test_programs(compiler: Compiler, driver: str, level: str, model: str, linker: str) -> None:
    if linker == "lld" and not shutil.which("ld.lld"):
        pytest.skip("lld is not installed")
    tally = checked(compiler, level, *MODELS[model], f"-fuse-ld={linker}", executable=True, driver=driver)
    assert tally.found == tally.thread_locals > 40


CXX = """
#include <stdexcept>
struct Held { int *place; ~Held(); };
int ask(int);
static thread_local int numbers[100] = {1};
static thread_local int depth;
thread_local std::runtime_error *last;
Held::~Held() { *place += depth; }
int run(int x)
{
    Held held{&numbers[x & 7]};
    depth++;
    try {
        if (ask(x) > 3) { throw std::runtime_error("three"); }
        depth += ask(x + 1);
    } catch (const std::runtime_error &error) {
        depth--;
        last = nullptr;
        return numbers[depth & 31] + error.what()[0];
    } catch (...) {
        numbers[99] = depth;
        throw;
    }
    return depth + numbers[x & 63];
}
"""


@pytest.mark.parametrize("level", ["-O0", "-O2", "-O2 -fno-plt"])
@pytest.mark.parametrize("executable", [False, True], ids=["library", "program"])
def test_exceptions(compiler: Compiler, level: str, executable: bool) -> None:
    """Bases live on in the code that an exception comes to."""
    main = "int ask(int x) { if (x == 9) { throw 1; } return x; }\n" + ("int main() { }" if executable else "")
    sources = {"module.cc": CXX, "main.cc": main}
    tally = check(compiler.file(sources, RECORDS, *level.split(), executable=executable))
    assert tally.faults() == []
    assert tally.found == tally.thread_locals
    assert tally.found > 5 or level == "-O0"


# Written by hand: what a compiler may do, but does seldom.

BLOCK = """
    .section .tbss,"awT",@nobits
    .type first, @object
    .size first, 200
first: .skip 200
    .type second, @object
    .size second, 8
second: .skip 8
    .type third, @object
    .size third, 400
third: .skip 400
    .text
    .globl f
    .type f, @function
f:
    push %rbx
    sub $32, %rsp
    {code}
    add $32, %rsp
    pop %rbx
    ret
    .size f, . - f
    .section .note.GNU-stack
"""
BASE = "lea first@tlsld(%rip), %rdi\ncall __tls_get_addr@plt\n"


def by_hand(compiler: Compiler, code: str) -> tuple[Build, CodeFacts]:
    build = compiler.build({"module.s": BLOCK.replace("{code}", code)}, RECORDS)
    return build, read_code(build, None)


def found(build: Build, facts: CodeFacts) -> set[tuple[str, int]]:
    references = facts.references
    chosen = np.flatnonzero(np.isin(references.form, THREAD_LOCAL_FORMS)).tolist()
    return {(build.entities.names[references.entity[i]], int(references.addend[i])) for i in chosen}


PROVEN = {
    "through the stack": BASE + "mov %rax, 8(%rsp)\nxor %eax, %eax\nmov 8(%rsp), %rbx\nmov third@dtpoff(%rbx), %rax",
    "pushed": BASE + "push %rax\npush %rcx\npop %rcx\npop %rdx\nlea third@dtpoff+16(%rdx), %rax",
    "through a frame": "mov %rsp, %rbx\n"
    + BASE
    + "mov %rax, 16(%rsp)\nmov 16(%rbx), %rax\nmov third@dtpoff(%rax), %rax",
    "with an index": BASE + "lea (%rax,%rsi,8), %rcx\nmov third@dtpoff(%rcx), %rax",
    "added": BASE + "add $third@dtpoff, %rax\nmov (%rax), %rax",
    "exchanged": BASE + "xchg %rax, %rbx\nmov third@dtpoff(%rbx), %rax",
    "chosen": BASE + "mov %rax, %rbx\ntest %esi, %esi\ncmovne %rbx, %rax\nmov third@dtpoff(%rax), %rax",
    "kept by a callee": BASE + "mov %rax, %rsi\ncall g\nmov third@dtpoff(%rsi), %rax\njmp 2f\ng: ret\n2:",
    "on both ways": "test %esi, %esi\nje 1f\n" + BASE + "jmp 2f\n1:" + BASE + "2: mov third@dtpoff(%rax), %rax",
    "behind what never returns": BASE + "mov %rax, %rbx\ntest %esi, %esi\nje 1f\nxor %ebx, %ebx\ncall abort@plt\n"
    "1: mov third@dtpoff(%rbx), %rax",
    # On one way only, but four bytes for a number that fits in one were left to the linker.
    "told by its form": "mov %rsi, %rax\ntest %esi, %esi\nje 1f\n" + BASE + "1: mov first@dtpoff+8(%rax), %rax",
}
OPEN = {
    "on one way only": "mov %rsi, %rax\ntest %esi, %esi\nje 1f\n" + BASE + "1: mov third@dtpoff(%rax), %rax",
    "stored away": BASE + "mov %rax, (%rsi)\nmov (%rsi), %rbx\nmov third@dtpoff(%rbx), %rax",
    "through a vector register": BASE + "movq %rax, %xmm0\nmovq %xmm0, %rbx\nmov third@dtpoff(%rbx), %rax",
    "negated": BASE + "neg %rax\nneg %rax\nmov third@dtpoff(%rax), %rax",
    "looked up in another way": "lea first@tlsld(%rip), %rdi\nmov __tls_get_addr@gotpcrel(%rip), %rbx\ncall *%rbx\n"
    "mov third@dtpoff(%rax), %rax",
    "where nothing leads": BASE + "jmp 1f\nmov third@dtpoff(%rbx), %rax\n1: mov second@dtpoff(%rax), %rax",
    "in what a callee returns": BASE + "mov %rax, %rdx\ncall g\nmov third@dtpoff(%rdx), %rax\njmp 2f\ng: ret\n2:",
}


@pytest.mark.parametrize("case", PROVEN)
def test_what_is_proven(compiler: Compiler, case: str) -> None:
    build, facts = by_hand(compiler, PROVEN[case])
    assert facts.unproven == ()
    assert found(build, facts) == found(build, build.facts) != set()


@pytest.mark.parametrize("case", OPEN)
def test_what_is_left_open(compiler: Compiler, case: str) -> None:
    """Never silently: the function is named, and refused if it matters."""
    build, facts = by_hand(compiler, OPEN[case])
    names = {build.entities.names[row] for _, row in facts.unproven}
    assert names == {"f"}
    assert ("third", 0) not in found(build, facts)
    assert ("third", 0) in found(build, build.facts)


LOOPS = """
struct two { long left, right; };
static __thread long lead, array[50], behind;
static __thread struct two pairs[8];
extern void use(long *, long *);
long read_all(void) { long t = lead; for (long *p = array; p < array + 50; p++) { t += *p; } return t + behind; }
void pass(void) { use(array, array + 50); behind++; }
long shifted(long i) { return array[i - 1]; }
long rights(void) { long t = behind; for (int i = 0; i < 8; i++) { t += pairs[i].right; } return t; }
"""


def test_an_end_may_be_the_start_of_the_next(compiler: Compiler) -> None:
    """Records tell which is meant; without them it is said to be open."""
    build = compiler.build(LOOPS, RECORDS, "-fno-toplevel-reorder")
    facts = read_code(build, None)
    doubtful = {position: {row for at, row in facts.doubtful if at == position} for position, _ in facts.doubtful}
    recorded, followed = build.references, facts.references
    differing = 0
    for index in np.flatnonzero(recorded.form == Form.DTPOFF).tolist():
        at = np.searchsorted(followed.position, recorded.position[index])
        assert followed.target[at] == recorded.target[index]
        if followed.entity[at] != recorded.entity[index]:
            assert int(recorded.entity[index]) in doubtful[int(recorded.position[index])]
            differing += 1
    assert differing > 0


def test_below_the_thread_pointer(compiler: Compiler) -> None:
    """As the linker has it: the symbol's offset less what the code holds."""
    source = (
        "__thread char small = 1; __thread char big[{}] __attribute__((aligned({}))); int main() {{ return small; }}"
    )
    for size, alignment in ((3, 1), (64, 64), (100, 32), (7, 16)):
        path = compiler.file(source.format(size, alignment), RECORDS, executable=True)
        assert check(path).faults() == []
        assert below_thread_pointer(Build.open(path)) % alignment == 0
