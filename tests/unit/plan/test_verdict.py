"""The verdict: every refusal has its code, names its culprit, and is not given without need."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Kind
from hotupgrade.errors import Reason
from hotupgrade.plan.compare import compare
from hotupgrade.plan.model import Comparison, Image
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.verdict import verdict
from unit.conftest import Compiler

BASE = 0x7F0000000000
WHOLE = PlanOptions(whole=True, trust_layout=True)


def judge(
    old: Build, new: Build, options: PlanOptions | None = None, comparison: Comparison | None = None
) -> tuple[dict[str, Reason], dict[str, Reason]]:
    """Refusals and notes by subject.  These builds have no debug information; tests/unit/plan/test_layouts.py has."""
    found = verdict(
        [Image(old, BASE)], 0, new, [comparison or compare(old, new)], options or PlanOptions(trust_layout=True)
    )
    refusals, notes = ({reason.subject: reason for reason in reasons} for reasons in found)
    return refusals, {subject: reason for subject, reason in notes.items() if reason.code != "layout-trusted"}


def codes(reasons: Mapping[str, Reason]) -> dict[str, str]:
    return {subject: reason.code for subject, reason in reasons.items()}


def pair(compiler: Compiler, old: str, new: str, *flags: str, executable: bool = False) -> tuple[Build, Build]:
    return tuple(compiler.build(text, *flags, executable=executable) for text in (old, new))  # type: ignore[return-value]


def row(build: Build, name: str) -> int:
    return build.entities.names.index(name)


PLAIN = "static int state; int get(void) { return state; } int add(int x) { return state += x; }\n"


def test_nothing_to_refuse(compiler: Compiler) -> None:
    old, new = pair(compiler, PLAIN, PLAIN.replace("+= x", "-= x"))
    assert judge(old, new) == ({}, {})
    assert judge(old, new, WHOLE) == ({}, {})
    assert judge(old, old) == ({}, {})


BUFFER = """
#include <string.h>
static char buffer[{size}];
void store(const char *text) {{ strncpy(buffer, text, sizeof buffer - 1); }}
char load(int i) {{ return buffer[i]; }}
int unrelated(void) {{ return {value}; }}
"""


@pytest.mark.parametrize("sizes", [(64, 128), (128, 64)])
def test_a_resized_variable_is_refused_with_both_sizes_and_its_users(
    compiler: Compiler, sizes: tuple[int, int]
) -> None:
    old, new = (compiler.build(BUFFER.format(size=size, value=1)) for size in sizes)
    refusals, _ = judge(old, new)
    assert codes(refusals) == {"buffer": "object-resized"}
    for part in ("module.c", str(sizes[0]), str(sizes[1]), "store"):
        assert part in refusals["buffer"].text


def test_an_exported_variable_that_is_resized_is_refused_even_if_nobody_here_uses_it(compiler: Compiler) -> None:
    old, new = pair(compiler, PLAIN + "int table[4] = { 1 };", PLAIN.replace("+=", "-=") + "int table[8] = { 1 };")
    assert codes(judge(old, new)[0]) == {"table": "object-resized"}


TABLE = """
static const int table[] = {{ {values} }};
#define LENGTH (sizeof table / sizeof *table)
int sum(void) {{ int s = 0; for (unsigned i = 0; i < LENGTH; i++) {{ s += table[i]; }} return s; }}
int pick(int i) {{ return table[i]; }}
{more}
"""


def test_a_constant_may_be_resized_when_all_its_users_come_along(compiler: Compiler) -> None:
    old = compiler.build(TABLE.format(values="1, 2, 3", more=""), "-O1")
    new = compiler.build(TABLE.format(values="1, 2, 3, 4", more=""), "-O1")
    assert judge(old, new)[0] == {}


def test_a_constant_may_not_be_resized_when_a_variable_points_to_it(compiler: Compiler) -> None:
    more = "static const int *current = table; int now(void) {{ return *current++; }}".replace("{{", "{").replace(
        "}}", "}"
    )
    old = compiler.build(TABLE.format(values="1, 2, 3", more=more), "-O1")
    new = compiler.build(TABLE.format(values="1, 2, 3, 4", more=more), "-O1")
    refusals, _ = judge(old, new)
    assert codes(refusals) == {"table": "object-resized"}
    assert "current" in refusals["table"].text


def test_an_exported_constant_may_not_be_resized(compiler: Compiler) -> None:
    old, new = (
        compiler.build(TABLE.format(values=values, more="").replace("static const", "const"), "-O1")
        for values in ("1, 2, 3", "1, 2, 3, 4")
    )
    refusals, _ = judge(old, new)
    assert "other modules" in refusals["table"].text


def test_a_constant_that_a_function_outside_of_the_image_uses_may_not_be_resized(compiler: Compiler) -> None:
    old = compiler.build(TABLE.format(values="1, 2, 3", more=""), "-O1")
    new = compiler.build(TABLE.format(values="1, 2, 3, 4", more=""), "-O1")
    comparison = compare(old, new)
    replaced = comparison.replaced.copy()
    replaced[row(new, "pick")] = False
    refusals, _ = judge(old, new, comparison=dataclasses.replace(comparison, replaced=replaced))
    assert codes(refusals) == {"table": "object-resized"}
    assert "pick" in refusals["table"].text


def test_an_unproven_variable_is_refused_only_if_it_is_used(compiler: Compiler) -> None:
    source = PLAIN + "static int other; int bump(void) { return ++other; } int tail(void) { return 1; }"
    old, new = pair(compiler, source, source.replace("return 1", "return 2"))
    comparison = compare(old, new)
    other = row(new, "other")
    old_of = comparison.old_of.copy()
    old_of[other] = -1
    doubtful = dataclasses.replace(comparison, old_of=old_of, ambiguous_new=frozenset({other}))
    assert judge(old, new, comparison=doubtful)[0] == {}
    replaced = comparison.replaced.copy()
    replaced[row(new, "bump")] = True
    refusals, _ = judge(old, new, comparison=dataclasses.replace(doubtful, replaced=replaced))
    assert codes(refusals) == {"other": "ambiguous-static"}
    assert "bump" in refusals["other"].text
    assert codes(judge(old, new, WHOLE, doubtful)[0]) == {"other": "ambiguous-static"}


def test_names_of_one_address_that_part(compiler: Compiler) -> None:
    """Whoever holds the old address cannot be told which of the two it means."""
    one = 'int f(void) { return 1; } int h(void) __attribute__((alias("f")));'
    two = "int f(void) { return 1; } int h(void) { return 2; }"
    refusals, _ = judge(*pair(compiler, one, two))
    assert list(codes(refusals).values()) == ["alias-split"]
    assert judge(*pair(compiler, two, one))[0] == {}
    one = 'int a = 1; extern int b __attribute__((alias("a"))); int sum(void) { return a + b; }'
    two = "int a = 1; int b = 1; int sum(void) { return a + b; }"
    assert "alias-split" in codes(judge(*pair(compiler, one, two))[0]).values()
    assert "variables-merged" in codes(judge(*pair(compiler, two, one))[0]).values()


@pytest.mark.parametrize("scope", ["static ", ""])
def test_a_variable_that_becomes_one_of_each_thread(compiler: Compiler, scope: str) -> None:
    text = "{}int counted; int count(void) {{ return ++counted; }} int more(void) {{ return counted + 2; }}"
    shared, each = (text.format(scope + thread) for thread in ("", "__thread "))
    for old, new in ((shared, each), (each, shared)):
        refusals, _ = judge(*pair(compiler, old, new))
        assert codes(refusals)["counted"] == "storage-changed"
        assert "count" in refusals["counted"].text


TINY = """
__asm__(".text\\n.globl tiny\\n.type tiny, @function\\ntiny: {code}\\n.size tiny, . - tiny\\n"
        "{padding}\\n"
        ".globl next\\n.type next, @function\\nnext: mov $7, %eax\\nret\\n.size next, . - next\\n");
"""

ZERO, ONE = "xor %eax, %eax\\nret", "mov $1, %eax\\nret"


@pytest.mark.parametrize("padding", ["nop\\nnop", ".byte 0, 0", "int3\\nint3", ".byte 0x66, 0x90", ".p2align 4"])
def test_a_short_function_with_padding_is_fine(compiler: Compiler, padding: str) -> None:
    old, new = (compiler.build(TINY.format(code=code, padding=padding)) for code in (ZERO, ONE))
    assert judge(old, new)[0] == {}


@pytest.mark.parametrize("padding", ["", "nop", "hlt\\nhlt", ".byte 0x0f, 0x0b"])
def test_a_short_function_without_padding_is_refused(compiler: Compiler, padding: str) -> None:
    old, new = (compiler.build(TINY.format(code=code, padding=padding)) for code in (ZERO, ONE))
    refusals, _ = judge(old, new)
    assert codes(refusals) == {"tiny": "short-function"}
    assert "3 bytes" in refusals["tiny"].text
    assert judge(new, old)[0] == {}  # the other way round the running copy is long enough


LABELS = """
int run(const unsigned char *code, int x) {{
    static void *{const} table[] = {{ &&stop, &&add, &&twice }};
    if (x == 12345) {{ {write} }}
    goto *table[*code];
add: x += {step}; goto *table[*++code];
twice: x *= 2; goto *table[*++code];
stop: return x;
}}
"""


def test_labels_in_a_variable_are_refused(compiler: Compiler) -> None:
    old, new = (compiler.build(LABELS.format(const="", write="table[0] = &&add;", step=step)) for step in (1, 3))
    refusals, _ = judge(old, new)
    assert list(codes(refusals).values()) == ["label-in-variable"]
    assert "run" in next(iter(refusals.values())).text


def test_labels_in_a_variable_of_an_unchanged_function_do_not_matter(compiler: Compiler) -> None:
    """Whichever copy they lead into, it means the same."""
    source = LABELS.format(const="", write="table[0] = &&add;", step=1)
    old, new = pair(compiler, source + "int more(void) { return 1; }", source + "int more(void) { return 2; }")
    assert judge(old, new, WHOLE)[0] == {}


def test_labels_in_a_constant_are_not(compiler: Compiler) -> None:
    old, new = (compiler.build(LABELS.format(const="const", write="x++;", step=step)) for step in (1, 3))
    assert judge(old, new)[0] == {}


def test_a_new_ifunc_is_refused(compiler: Compiler) -> None:
    new = PLAIN.replace("+= x", "+= pick(x)") + (
        "static int one(int x) { return x; } static int (*choose(void))(int) { return one; }\n"
        'int pick(int x) __attribute__((ifunc("choose")));\n'
    )
    refusals, _ = judge(*pair(compiler, PLAIN, "int pick(int);\n" + new))
    assert codes(refusals) == {"pick": "ifunc-new"}


def test_relocations_in_code_are_refused(compiler: Compiler) -> None:
    text = '__asm__(".text\\n.quad malloc\\n");\n' + PLAIN
    old = compiler.build(text, "-Wl,-z,notext")
    new = compiler.build(text.replace("+= x", "-= x"), "-Wl,-z,notext")
    assert "text-relocations" in codes(judge(old, new)[0]).values()


NAMELESS = """
__asm__(".data\\n.long 1, 2\\n.Lhidden: .long 3, 4\\n.text\\n.globl odd\\n.type odd, @function\\n"
        "odd: mov .Lhidden(%rip), %eax\\nadd ${step}, %eax\\nret\\n.size odd, . - odd\\n");
"""


def test_references_to_nameless_state_are_refused(compiler: Compiler) -> None:
    old, new = (compiler.build(NAMELESS.format(step=step)) for step in (1, 2))
    refusals, _ = judge(old, new)
    assert codes(refusals) == {"odd": "unknown-reference"}


def test_nameless_state_does_not_matter_to_who_stays(compiler: Compiler) -> None:
    source = NAMELESS.format(step=1) + "int tail(void) {{ return {}; }}"
    old, new = (compiler.build(source.format(number)) for number in (1, 2))
    assert judge(old, new)[0] == {}
    assert judge(old, new, WHOLE)[0] == {}


ENDS = """
__attribute__((visibility("hidden"))) int first[4] = {{ 1, 2, 3, 4 }};
{between}
__attribute__((visibility("hidden"))) int second[4] = {{ 5, 6, 7, 8 }};
int *low, *high;
__asm__(".text\\n.globl set\\n.type set, @function\\nset: lea first(%rip), %rax\\n"
        "mov low@GOTPCREL(%rip), %rcx\\nmov %rax, (%rcx)\\nlea first+16(%rip), %rax\\n"
        "mov high@GOTPCREL(%rip), %rcx\\nmov %rax, (%rcx)\\n{extra}\\nret\\n.size set, . - set\\n");
"""

SEPARATE = ("-fno-toplevel-reorder",)


def test_an_end_that_may_be_a_start_is_refused_when_neighbours_part(compiler: Compiler) -> None:
    old = compiler.build(ENDS.format(between="", extra=""), *SEPARATE)
    new = compiler.build(ENDS.format(between="static int inserted[4] = { 9 };", extra="incl inserted(%rip)"), *SEPARATE)
    refusals, _ = judge(old, new)
    assert codes(refusals) == {"set": "adjacency"}
    assert "first" in refusals["set"].text


def test_an_end_is_no_question_while_neighbours_stay(compiler: Compiler) -> None:
    old = compiler.build(ENDS.format(between="", extra=""), *SEPARATE)
    new = compiler.build(ENDS.format(between="", extra="incl second(%rip)"), *SEPARATE)
    assert judge(old, new)[0] == {}


PROGRAM = """
#include <stdio.h>
{before}
static __thread int mine = 3;
int work(int x) {{ return mine += x + {plus}; }}
int plain(int x) {{ return x * 1000003 + {plus}; }}
int main(void) {{ printf("%d\\n", work(1) + plain(2)); return 0; }}
"""


def test_local_exec_code_follows_its_variables(compiler: Compiler) -> None:
    flags = ("-rdynamic", "-fno-inline")
    old = compiler.build(PROGRAM.format(before="", plus=1), *flags, executable=True)
    same_block = compiler.build(PROGRAM.format(before="", plus=2), *flags, executable=True)
    assert judge(old, same_block)[0] == {}
    moved = compiler.build(
        PROGRAM.format(before="__thread int other = 5;", plus=2).replace("mine +=", "mine += other +"),
        *flags,
        executable=True,
    )
    assert judge(old, moved)[0] == {}


# On one way the thread pointer is in the register, on the other what the caller passed.
EITHER = """
    .text
    .globl either
    .type either, @function
either:
    mov %fs:0, %rax
    test %edi, %edi
    je 1f
    mov %rsi, %rax
1:  mov mine@tpoff(%rax), %eax
    add ${plus}, %eax
    ret
    .size either, . - either
    .section .note.GNU-stack
"""
EITHERS_PROGRAM = """
{before}
__thread char room[4000];
__thread int mine = 3;
__thread char behind[1000];
int either(int x, void *p);
int main(int count, char **words) { return either(count, words) + room[count] + behind[count]; }
"""


def test_what_may_be_a_thread_local_or_not_is_refused_when_offsets_move(compiler: Compiler) -> None:
    def program(before: str, plus: int) -> Build:
        sources = {"main.c": EITHERS_PROGRAM.replace("{before}", before), "either.s": EITHER.format(plus=plus)}
        return compiler.build(sources, "-rdynamic", executable=True)

    old = program("", 1)
    assert judge(old, program("", 2))[0] == {}
    refusals, _ = judge(old, program("__thread char first[256] = {1};", 2))
    assert codes(refusals) == {"either": "tls-layout"}
    assert "--emit-relocs" in refusals["either"].text


def test_initial_values_are_noted(compiler: Compiler) -> None:
    source = "int limit = {value}; const int fixed[2] = {{ {value}, 1 }}; int get(void) {{ return limit; }}"
    old, new = (compiler.build(source.format(value=value)) for value in (10, 20))
    _, notes = judge(old, new)
    assert codes(notes) == {"limit": "initial-changed"}


def test_constructors_and_exports_are_noted(compiler: Compiler) -> None:
    old = PLAIN + (
        "__attribute__((constructor)) static void changes(void) { state = 1; }\n"
        "__attribute__((constructor)) static void goes(void) { state += 1; }\n"
        "int gone(void) { return state * 3; }\n"
    )
    new = PLAIN + (
        "__attribute__((constructor)) static void changes(void) { state = 2; }\n"
        "__attribute__((constructor)) static void comes(void) { state += 7; }\n"
        "__attribute__((destructor)) static void ends(void) { state = 0; }\n"
    )
    refusals, notes = judge(*pair(compiler, old, new))
    assert refusals == {}
    assert codes(notes) == {
        "changes": "constructor-changed",
        "comes": "constructor-new",
        "goes": "constructor-removed",
        "ends": "destructor-new",
        "gone": "export-removed",
    }


def test_every_reason_is_a_sentence_with_a_stable_code(compiler: Compiler) -> None:
    old, new = (compiler.build(BUFFER.format(size=size, value=1)) for size in (64, 128))
    refusals, notes = verdict([Image(old, BASE)], 0, new, [compare(old, new)], PlanOptions(trust_layout=True))
    for reason in [*refusals, *notes]:
        assert reason.code == reason.code.lower()
        assert " " not in reason.code
        assert reason.subject in reason.text
        assert not reason.text.endswith(".")


def test_kinds_of_the_samples(compiler: Compiler) -> None:
    """The samples above test what they say they test."""
    build = compiler.build(ENDS.format(between="", extra=""), *SEPARATE)
    first, second = row(build, "first"), row(build, "second")
    assert int(build.entities.address[second]) == int(build.entities.address[first]) + 16
    assert np.all(build.entities.kind[[first, second]] == Kind.OBJECT)


def test_what_would_bring_unclear_code_along_stays_too(compiler: Compiler) -> None:
    """A short jump leads from ``near`` to ``odd``, which cannot be placed."""
    near = ".globl near\\n.type near, @function\\nnear: test %edi, %edi\\njne odd\\nret\\n.size near, . - near"
    source = NAMELESS.replace(".size odd, . - odd", f".size odd, . - odd\\n{near}")
    source = source.format(step=1) + "int tail(int x) { return x * 1000003 + 1; }"
    old, new = pair(compiler, source, source.replace("+ 1;", "+ 2;"))
    assert judge(old, new, WHOLE)[0] == {}
    comparison = compare(old, new)
    replaced = comparison.replaced.copy()
    replaced[row(new, "near")] = True
    refusals, _ = judge(old, new, comparison=dataclasses.replace(comparison, replaced=replaced))
    assert codes(refusals) == {"odd": "unknown-reference"}
