"""Comparing: what means the same is found to be the same, and nothing that differs is."""

from __future__ import annotations

import random

import numpy as np
import pytest

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Kind
from hotupgrade.plan.compare import compare
from hotupgrade.plan.model import Comparison
from unit.binary.samples import EVERYTHING, PROGRAM
from unit.conftest import Compiler

HEAD = "extern int g(int); extern int puts(const char *); extern void *memcpy(void *, const void *, unsigned long);\n"


def changed(comparison: Comparison) -> set[str]:
    """Paired functions whose own meaning changed."""
    names = comparison.new.entities.names
    return {names[row] for row in np.flatnonzero(comparison.replaced).tolist() if row not in comparison.dragged}


def dragged(comparison: Comparison) -> dict[str, str]:
    names = comparison.new.entities.names
    return {names[row]: names[because] for row, because in comparison.dragged.items()}


def added(comparison: Comparison) -> set[str]:
    entities = comparison.new.entities
    return {entities.names[row] for row in np.flatnonzero(comparison.old_of < 0).tolist()}


def quiet(comparison: Comparison) -> bool:
    return not (comparison.replaced.any() or comparison.resized or comparison.initial_changed or comparison.notes)


@pytest.mark.parametrize("flags", [(), ("-O0",), ("-O3",), ("-fcf-protection=full",), ("-fno-plt",), ("-Wl,-z,now",)])
def test_a_build_equals_itself(compiler: Compiler, flags: tuple[str, ...]) -> None:
    old = compiler.build(EVERYTHING, *flags)
    comparison = compare(old, Build.from_bytes(old.data, "again"))
    assert quiet(comparison)
    assert comparison.tls_equal
    functions = comparison.new.entities.kind == Kind.FUNCTION
    assert (comparison.same == functions).all()
    assert not comparison.old_replaced.any()


@pytest.mark.parametrize("executable", [False, True])
def test_the_same_source_linked_elsewhere_is_the_same(compiler: Compiler, executable: bool) -> None:
    """Another image around it: every address differs, nothing else."""
    text = PROGRAM if executable else EVERYTHING
    more = """
    extern int puts(const char *);
    const char filler[5000] = "x"; int more_data[700] = {1}; void more(void) { puts("more than before"); }
    """
    old = compiler.build(text, executable=executable)
    new = compiler.build({"first.c": more, "module.c": text}, executable=executable)
    comparison = compare(old, new)
    assert changed(comparison) == set()
    assert dragged(comparison) == {}
    assert added(comparison) == {"filler", "more_data", "more"}
    assert comparison.initial_changed == ()
    assert comparison.tls_equal


PARTS = r"""
static int st{i}; int fn{i}(int x) {{ static int once; if (!once++) puts("hello {i}"); return st{i} += g(x) + {i}; }}
static const int table{i}[] = {{ {i}, 2, 3 }}; int fn{i}(int x) {{ return table{i}[x & 1] + (int) sizeof "text"; }}
static int cb{i}(int x) {{ return x + {i}; }} int (*fn{i}(void))(int) {{ return cb{i}; }}
double fn{i}(double x) {{ return x * {i}.5 + 1e10; }}
int fn{i}(int x) {{ switch (x) {{ CASES }} return {i}; }}
""".strip().splitlines()
PARTS[-1] = PARTS[-1].replace(
    "CASES",
    'case 0: return g({i}); case 1: return g(4); case 2: puts("two {i}"); return 1; '
    'case 3: return g(9) * 2; case 4: puts("four"); return 3; case 5: return g(x * x);',
)


def parts(count: int) -> list[str]:
    return [PARTS[i % len(PARTS)].format(i=i) + "\n" for i in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_reordered_with_statics_inserted(compiler: Compiler, seed: int) -> None:
    texts = parts(30)
    shuffled = [*texts, "int fresh(int x) { static int once; return once += x; }\n"]
    random.Random(seed).shuffle(shuffled)
    flags = ("-fno-toplevel-reorder",) if seed % 2 else ()
    comparison = compare(compiler.build(HEAD + "".join(texts)), compiler.build(HEAD + "".join(shuffled), *flags))
    assert changed(comparison) == set()
    assert {name.split(".")[0] for name in added(comparison)} == {"fresh", "once"}
    assert comparison.ambiguous_new == frozenset()


EDITS = [
    ("st0 += g(x) + 0", "st0 += g(x) - 1"),  # code
    ("hello 5", "hullo 5"),  # a string
    ("1e10", "2e10"),  # a floating constant
    ("case 1: return g(4)", "case 1: return g(5)"),  # inside a switch
    ("return cb2;", "return (int (*)(int)) g;"),  # another address
    ("two 4", "two 4 and more"),
    ('sizeof "text"', 'sizeof "texts"'),
]


@pytest.mark.parametrize(("before", "after"), EDITS)
def test_one_edit_is_one_change(compiler: Compiler, before: str, after: str) -> None:
    texts = parts(10)
    index = next(i for i, text in enumerate(texts) if before in text)
    edited = [*texts[:index], texts[index].replace(before, after), *texts[index + 1 :]]
    old, new = compiler.build(HEAD + "".join(texts)), compiler.build(HEAD + "".join(reversed(edited)))
    # A cold part goes with its function.
    assert {name.split(".")[0] for name in changed(compare(old, new))} == {f"fn{index}"}
    assert {name.split(".")[0] for name in changed(compare(new, old))} == {f"fn{index}"}


PAIRS = {
    "another variable": ("return a += x;", "return b += x;"),
    "another element": ("return c[2] += x;", "return c[3] += x;"),
    "another function": ("return g(x);", "return h(x);"),
    "another import": ('return puts("x");', 'return remove("x");'),
    "another string tail": ('return puts("prefix tail");', 'return puts("tail");'),
    "another address": ("p = &a; return 0;", "p = &b; return 0;"),
    "another constant": ("return k[x];", "return m[x];"),
    "another static": ("static int u; return u += x;", "static int v; return v += x;"),
    "another vector": (
        "memcpy(c, (int[4]) {1, 2, 3, 4}, 16); return 0;",
        "memcpy(c, (int[4]) {1, 2, 3, 5}, 16); return 0;",
    ),
    "another order of cases": (
        "switch (x) { case 0: A case 1: B OTHERS } return 9;",
        "switch (x) { case 1: A case 0: B OTHERS } return 9;",
    ),
}
MACROS = """
#define A return g(1);
#define B return h(7);
#define OTHERS case 2: return a; case 3: return b; case 4: return c[3]; case 5: return g(3);
"""
DECLARATIONS = """
extern int remove(const char *);
int a, b, c[8]; static int *p; const int *last(void) { return p; }
static const int k[3] = {1, 2, 3}; static const int m[3] = {4, 5, 6};
__attribute__((noinline)) int h(int x) { return x * 3 + k[x & 1] + m[x & 1]; }
const char *user(int x) { return x ? "prefix tail" : "tail"; }
"""


@pytest.mark.parametrize("name", PAIRS)
def test_a_difference_in_one_reference_alone_is_seen(compiler: Compiler, name: str) -> None:
    old, new = (
        compiler.build(HEAD + MACROS + DECLARATIONS + f"int f(int x) {{ {body} }}", "-O1") for body in PAIRS[name]
    )
    assert changed(compare(old, new)) == {"f"}
    assert changed(compare(new, old)) == {"f"}


def test_a_string_that_only_grew_a_tail(compiler: Compiler) -> None:
    """The old text is a prefix of the new one, and something else follows it in the file."""
    old = compiler.build(HEAD + 'int f(void) { puts("abc"); return puts("zzz"); }')
    new = compiler.build(HEAD + 'int f(void) { puts("abcdef"); return puts("zzz"); }')
    assert changed(compare(old, new)) == {"f"}
    assert changed(compare(new, old)) == {"f"}


def test_a_string_that_shares_its_tail_with_another_now(compiler: Compiler) -> None:
    old = compiler.build(HEAD + 'int f(void) { return puts("long tail"); }')
    new = compiler.build(HEAD + 'int f(void) { return puts("long tail"); } int t(void) { return puts("tail"); }')
    comparison = compare(old, new)
    assert changed(comparison) == set()
    assert added(comparison) == {"t"}


@pytest.mark.parametrize(("lines", "expected"), [((10, 40), set()), ((10, 10), set())])
def test_shifted_source_lines_are_the_same_and_said(
    compiler: Compiler, lines: tuple[int, int], expected: set[str]
) -> None:
    old, new = (compiler.build(HEAD + f'int f(void) {{ return puts("lib/some-file.c:{line}"); }}') for line in lines)
    comparison = compare(old, new)
    assert changed(comparison) == expected
    assert [note.code for note in comparison.notes] == (["source-lines-shifted"] if lines[0] != lines[1] else [])


@pytest.mark.parametrize("texts", [("a.c:1", "b.c:1"), ("a.c:1 x", "a.c:2 x"), ("port:1", "port:2"), ("a.c:1", "a.c:")])
def test_other_numbers_in_strings_are_changes(compiler: Compiler, texts: tuple[str, str]) -> None:
    old, new = (compiler.build(HEAD + f'int f(void) {{ return puts("{text}"); }}') for text in texts)
    assert changed(compare(old, new)) == {"f"}


# Who comes along

LOCAL = """
static int __attribute__((noinline)) leaf(int x) {{ return g(x) {operation} 3; }}
static int __attribute__((noinline)) middle(int x) {{ return leaf(x) + g(2); }}
int top(int x) {{ return middle(x) * 5 + g(4); }}
int other(int x) {{ return g(x); }}
static int __attribute__((noinline)) taken(int x) {{ return g(x) {operation2} 7; }}
int caller_of_taken(int x) {{ return taken(x) + 1 + g(8); }}
void *take(void) {{ return (void *) taken; }}
"""


def led(comparison: Comparison) -> set[str]:
    """Old functions whose entries lead to the new ones."""
    return {comparison.old.entities.names[row] for row in np.flatnonzero(comparison.led_old).tolist()}


def test_callers_of_a_local_function_that_are_the_same_stay(compiler: Compiler) -> None:
    """Whatever the compiler saw in the callee: the new build has the same code around its new one."""
    old = compiler.build(HEAD + LOCAL.format(operation="+", operation2="+"))
    new = compiler.build(HEAD + LOCAL.format(operation="-", operation2="+"))
    comparison = compare(old, new)
    assert changed(comparison) == {"leaf"}
    assert dragged(comparison) == {}
    assert led(comparison) == {"leaf"}
    names = {old.entities.names[row] for row in np.flatnonzero(comparison.old_replaced).tolist()}
    assert names == {"leaf"}


GONE = """
typedef int callback(int);
static int __attribute__((noinline)) deep(int x) {{ return g(x) {0} 3; }}
static int __attribute__((noinline)) leaf(int x) {{ return deep(x) {0} 5 + g(2); }}
static int __attribute__((noinline)) stays(int x) {{ return g(x) {0} 9; }}
int top(int x) {{ return leaf(x) * 5 + g(4) + stays(x); }}
int bottom(int x) {{ return deep(x) * 5 + g(5); }}
int other(int x) {{ return stays(x) * 6 + g(7); }}
static int first(int x) {{ return g(x) + 77; }}
{1}
callback *get(int x) {{ return x ? {2} : first; }}
"""


def test_what_a_callback_that_is_gone_may_call_stays_as_it_was(compiler: Compiler) -> None:
    """Somebody may yet hold its address; it is called by its old code alone, on which it counts."""
    callback = "static int gone(int x) { return leaf(x) + 5 + g(8); }"
    old = compiler.build(HEAD + GONE.format("+", callback, "gone"))
    comparison = compare(old, compiler.build(HEAD + GONE.format("-", "", "first")))
    assert changed(comparison) == {"leaf", "deep", "stays", "get"}
    assert dragged(comparison) == {"top": "leaf", "bottom": "deep"}
    assert led(comparison) == {"stays", "get", "top", "bottom"}


def test_a_caller_that_is_gone_and_whose_address_nobody_has_counts_for_nothing(compiler: Compiler) -> None:
    caller = "static int __attribute__((noinline)) gone(int x) { return leaf(x) + 5 + g(8); }"
    old = compiler.build(HEAD + GONE.format("+", caller, "gone(1) ? first : 0"))
    comparison = compare(old, compiler.build(HEAD + GONE.format("-", "", "0")))
    assert changed(comparison) == {"leaf", "deep", "stays", "get"}
    assert dragged(comparison) == {}
    assert led(comparison) == {"leaf", "deep", "stays", "get"}


def test_a_local_function_without_room_for_a_jump_drags_its_callers(compiler: Compiler) -> None:
    text = """
    .text
    .globl user
    .type user, @function
    user: call tiny
          add $5, %eax
          ret
    .size user, . - user
    .type tiny, @function
    tiny: {0}
          ret
    .size tiny, . - tiny
    .type neighbour, @function
    neighbour: mov $7, %eax
          ret
    .size neighbour, . - neighbour
    .globl last
    .type last, @function
    last: call neighbour
          ret
    .size last, . - last
    .section .note.GNU-stack
    """
    old, new = (compiler.build({"a.s": text.format(word)}) for word in ("cltd", "cwtl"))
    comparison = compare(old, new)
    assert changed(comparison) == {"tiny"}
    assert dragged(comparison) == {"user": "tiny"}
    assert led(comparison) == {"user"}


def test_a_function_that_is_called_through_a_pointer_drags_nobody(compiler: Compiler) -> None:
    text = (
        "static __attribute__((noinline)) int taken(int x) { return x {0} 3; } "
        "int (*pointer)(int) = taken; int user(int x) { return pointer(x); }"
    )
    old, new = (compiler.build(HEAD + text.replace("{0}", operation)) for operation in "+-")
    comparison = compare(old, new)
    assert changed(comparison) == {"taken"}
    assert dragged(comparison) == {}


def test_a_cold_part_goes_with_its_function(compiler: Compiler) -> None:
    text = """
    extern void bad(int) __attribute__((cold));
    extern void die(int) __attribute__((cold, noreturn));
    int f(int x) {{ if (x == 3) {{ bad(1); g(7); }} g({0}); if (x == 9) {{ die(2); }} return g(x); }}
    int h(int x) {{ if (x == 3) {{ bad(1); g(7); }} if (x == 9) {{ die({1}); }} return g(x); }}
    """
    old = compiler.build(HEAD + text.format(1, 1))
    assert {"f.cold", "h.cold"} <= set(old.entities.names)
    hot = compare(old, compiler.build(HEAD + text.format(2, 1)))
    assert {hot.new.entities.names[row] for row in np.flatnonzero(hot.replaced).tolist()} == {"f", "f.cold"}
    cold = compare(old, compiler.build(HEAD + text.format(1, 2)))
    assert {cold.new.entities.names[row] for row in np.flatnonzero(cold.replaced).tolist()} == {"h", "h.cold"}


def test_a_table_takes_its_cold_part_along(compiler: Compiler) -> None:
    """The cold part never jumps back, so that nothing but the table connects the two."""

    def text(last: int) -> str:
        cases = "".join(
            f"case {i}: {'die' if i % 3 == 1 else 'g'}({last if i == 9 else i * 7}); return {i * i};" for i in range(11)
        )
        die = "extern void die(int) __attribute__((cold, noreturn));"
        return f"{HEAD} {die} int f(int x) {{ switch (x) {{ {cases} }} return -1; }}"

    comparison = compare(compiler.build(text(5)), compiler.build(text(6)))
    assert {comparison.new.entities.names[row] for row in np.flatnonzero(comparison.replaced).tolist()} == {
        "f",
        "f.cold",
    }


def test_a_jump_of_one_byte_takes_its_target_along(compiler: Compiler) -> None:
    text = """
    .text
    .globl first
    .type first, @function
    first: mov ${0}, %eax
           jmp second
    .size first, . - first
    .type second, @function
    second: nop
            ret
    .size second, . - second
    .globl third
    .type third, @function
    third: call second
           ret
    .size third, . - third
    .section .note.GNU-stack
    """
    comparison = compare(compiler.build({"a.s": text.format(1)}), compiler.build({"a.s": text.format(2)}))
    assert changed(comparison) == {"first"}
    assert dragged(comparison) == {"second": "first", "third": "second"}


def test_a_call_of_a_new_function_is_a_change(compiler: Compiler) -> None:
    text = """
    static int __attribute__((noinline)) {0}(int x) {{ return g(x) + 4; }}
    int f(int x) {{ return {0}(x) + g(1); }}
    """
    comparison = compare(compiler.build(HEAD + text.format("one")), compiler.build(HEAD + text.format("two")))
    assert changed(comparison) == {"f"}
    assert added(comparison) == {"two"}
    old = comparison.old
    assert comparison.old_replaced[old.entities.names.index("one")]


# Data


def test_objects_of_another_size_change_their_users(compiler: Compiler) -> None:
    text = """
    int many[{0}]; static long priv[{1}];
    int f(int i) {{ return many[i]; }} long h(int i) {{ return priv[i]++; }} int z(int x) {{ return g(x); }}
    """
    old, new = compiler.build(HEAD + text.format(4, 6)), compiler.build(HEAD + text.format(5, 7))
    comparison = compare(old, new)
    assert changed(comparison) == {"f", "h"}
    names = {(old.entities.names[a], new.entities.names[b]) for a, b in comparison.resized}
    assert names == {("many", "many"), ("priv", "priv")}


def test_other_initial_values_are_said_and_change_no_function(compiler: Compiler) -> None:
    text = """
    int number = {0}; static int hidden = {0}; const int constant[2] = {{ {0}, 1 }};
    const char *pointer = "{0}"; int *const to[1] = {{ &number }}; __thread int t = {0}; int kept = 3;
    int f(int x) {{ hidden += x; return number + constant[x] + pointer[x] + *to[x] + t + kept; }}
    """
    old, new = compiler.build(text.format(1)), compiler.build("int before = 8;" + text.format(2))
    comparison = compare(old, new)
    assert changed(comparison) == set()
    assert {new.entities.names[b] for _, b in comparison.initial_changed} == {
        "number",
        "hidden",
        "constant",
        "pointer",
        "t",
    }
    assert comparison.tls_equal


def test_tables_of_functions_compare_by_name(compiler: Compiler) -> None:
    text = """
    static int one(int x) {{ return g(x) + 1; }} static int two(int x) {{ return g(x) + 2; }}
    typedef int (*handler)(int); const handler handlers[2] = {{ {0} }};
    int call(int x) {{ return handlers[x](x); }}
    """
    old = compiler.build(HEAD + text.format("one, two"))
    moved = compare(old, compiler.build(HEAD + "int pad(int x) { return x * 77; }" + text.format("one, two")))
    assert moved.initial_changed == ()
    swapped = compare(old, compiler.build(HEAD + text.format("two, one")))
    assert [swapped.new.entities.names[b] for _, b in swapped.initial_changed] == ["handlers"]
    assert changed(swapped) == set()


def test_new_thread_locals_are_no_equal_block(compiler: Compiler) -> None:
    text = "__thread int a = 1; __thread int b = 2; int f(void) { return a + b; }"
    old = compiler.build(text)
    assert compare(old, compiler.build("int x; " + text)).tls_equal
    assert not compare(old, compiler.build("__thread int c = 3;" + text)).tls_equal
    assert compare(compiler.build(text + "__thread int z;"), old).tls_equal
    main = "int main(void) { return f(); }"
    program = compiler.build(text + main, executable=True)
    longer = compiler.build(text + "__thread int z;" + main, executable=True)
    assert not compare(longer, program).tls_equal  # counted from the end of the block


def test_versions_of_imports_matter(compiler: Compiler) -> None:
    text = '__asm__(".symver copy, memcpy@GLIBC_{0}"); extern void *copy(void *, const void *, unsigned long);'
    use = "void *f(void *a, void *b, unsigned long n) { return copy(a, b, n); }"
    old, new = (compiler.build(text.format(version) + use) for version in ("2.2.5", "2.14"))
    assert changed(compare(old, new)) == {"f"}


def test_another_name_of_the_own_version_does_not(compiler: Compiler, tmp_path_factory: pytest.TempPathFactory) -> None:
    builds = []
    for version in ("LIB_1", "LIB_2"):
        script = tmp_path_factory.mktemp("versions") / "map"
        script.write_text(f"{version} {{ global: *; }};\n")
        builds.append(compiler.build(EVERYTHING, f"-Wl,--version-script={script}"))
    assert changed(compare(*builds)) == set()


def test_code_that_cannot_be_read_counts_as_changed(compiler: Compiler) -> None:
    text = ".text\n.globl f\n.type f, @function\nf: ret\n.byte 6, 7\n.size f, . - f\n.section .note.GNU-stack\n"
    build = compiler.build({"a.s": text})
    comparison = compare(build, Build.from_bytes(build.data, "again"))
    assert changed(comparison) == {"f"}
    assert [note.code for note in comparison.notes] == ["undecodable"]


def test_folded_functions_map_to_one(compiler: Compiler) -> None:
    text = "int f(int x) { return g(x) + 1; } int h(int x) { return g(x) + 1; } int use(int x) { return f(x) + h(x); }"
    apart = compiler.build(HEAD + text, "-fno-ipa-icf")
    folded = compiler.build(
        HEAD + text.replace("int h(int x) { return g(x) + 1; }", 'int h(int) __attribute__((alias("f")));')
    )
    comparison = compare(apart, folded)
    assert changed(comparison) == set()
    row = folded.by_name["f"]
    assert comparison.new_of[apart.by_name["f"]] == comparison.new_of[apart.by_name["h"]] == row
    assert not comparison.old_replaced.any()


CATCHES = """
struct first {{ int a; }}; struct second {{ int a; }};
extern "C" int g(int);
extern "C" void thrower(int x) {{ if (x > 3) throw first{{x}}; if (x < -3) throw second{{x}}; g(x); }}
extern "C" int catcher(int x) {{ try {{ thrower(x); return g(x); }} catch (const {0} &) {{ return -1; }} }}
extern "C" int everything(int x) {{ try {{ thrower(x); return g(x); }} catch (...) {{ return -2; }} }}
"""


def test_what_is_caught_belongs_to_the_meaning(compiler: Compiler) -> None:
    """The code of both builds is byte for byte the same; only the table of types differs."""
    old = compiler.build({"module.cc": CATCHES.format("first")})
    new = compiler.build({"module.cc": CATCHES.format("second")})
    assert changed(compare(old, new)) == {"catcher"}
    assert changed(compare(new, old)) == {"catcher"}
    padded = {"pad.cc": 'extern "C" int pad(int x) { return x * 55; }', "module.cc": CATCHES.format("first")}
    assert changed(compare(old, compiler.build(padded))) == set()


def test_only_one_of_both_has_records(compiler: Compiler) -> None:
    """Thread-local offsets are then compared as the numbers they are."""
    text = "int t(int x) { static __thread int a, b; return a += x + b++; } int u(int x) { return x; }"
    flags = ("-ftls-model=local-dynamic",)
    plain, recorded = compiler.build(text, *flags), compiler.build(text, *flags, "-Wl,--emit-relocs")
    for old, new in ((plain, recorded), (recorded, plain)):
        comparison = compare(old, new)
        assert changed(comparison) == set()
        assert comparison.tls_equal


def test_labels_of_the_assembler_are_no_names(compiler: Compiler) -> None:
    """With --emit-relocs the linker keeps .LC0 and its like."""
    plain, recorded = compiler.build(EVERYTHING), compiler.build(EVERYTHING, "-Wl,--emit-relocs")
    assert plain.entities.names == recorded.entities.names
    assert quiet(compare(plain, recorded))


MARKED = r"""
#include <stdlib.h>
long counted, spare;
long before(void) { return rand() + 4; }
__attribute__((noinline)) long count(void) {
    __asm__ volatile(
        ".pushsection __rseq_cs, \"aw\"\n.balign 32\n3: .long 0, 0\n.quad 1f, 2f - 1f, 4f\n.popsection\n"
        "leaq 3b(%%rip), %%rax\n1: incq %0\n2: jmp 5f\n"
        ".byte 0x0f, 0xb9, 0x3d\n.long MARK\n4: nop\n5:" : "+m"(counted) : : "rax");
    return counted;
}
"""


def test_a_restartable_sequence_is_the_same(compiler: Compiler) -> None:
    """Its descriptor has no name, and its mark is no address."""
    old = compiler.build(MARKED.replace("MARK", "0x53053053"))
    moved = compiler.build(MARKED.replace("MARK", "0x53053053") + "int more(void) { return rand() + 5; }")
    assert changed(compare(old, moved)) == set()
    assert changed(compare(old, compiler.build(MARKED.replace("MARK", "0x53053054")))) == {"count"}
    longer = MARKED.replace("MARK", "0x53053053").replace("2f - 1f", "5f - 1f")
    assert changed(compare(old, compiler.build(longer))) == {"count"}


LETTERS = r"""
__asm__(".text\n.balign 64\n.globl options\n.type options, @function\noptions: lea 1f(%rip), %rax\nret\n"
        ".balign 16\n1: .asciz \"TEXT\"\n.balign 64\n.size options, . - options\n"
        ".balign 64\n.globl short\n.type short, @function\nshort: ret\n.size short, . - short\n"
        ".balign 64\n.globl next\n.type next, @function\nnext: mov $NUMBER, %eax\nret\n.size next, . - next\n");
"""


def test_letters_behind_code_that_look_like_jumps(compiler: Compiler) -> None:
    """As in OpenSSL's RC4_options: what leads into padding between two functions is no jump."""
    text = LETTERS.replace("TEXT", "rPrQ")  # jb +80, jb +81: between "short" and "next"
    old = compiler.build(text.replace("NUMBER", "1"))
    unknown = [
        int(place) for place, kind in zip(old.references.target, old.references.target_kind, strict=True) if kind == 5
    ]
    start = int(old.entities.address[old.by_name["options"]])
    assert [place - start for place in unknown] == [0x12 + 0x50, 0x14 + 0x51]
    elsewhere = "int more(void) { return g(5); }\n" + text.replace("NUMBER", "2")
    new = compiler.build(HEAD + elsewhere)
    assert changed(compare(old, new)) == {"next"}
    assert "options" in changed(compare(old, compiler.build(text.replace("rPrQ", "rPrR").replace("NUMBER", "1"))))
