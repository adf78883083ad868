"""Pointers in data: to objects, to strings, and to where an object ends."""

from __future__ import annotations

import numpy as np
import pytest

from hotupgrade.binary.build import Build
from hotupgrade.errors import Refused
from hotupgrade.plan.compare import compare
from hotupgrade.plan.make import make_plan
from hotupgrade.plan.model import Image
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.rows import Rows
from hotupgrade.plan.targets import Targets
from unit.conftest import Compiler
from unit.plan.scenes import BASE, FakeScene

SECOND = BASE + 0x1000000

# A named constant, what follows it, and a table with pointers.
SOURCE = """
__asm__(".section .rodata\\n.balign 8\\n.globl row\\n.hidden row\\n.type row, @object\\nrow: .quad 1, 2\\n"
        ".size row, 16\\n{behind}"
        ".section .data.rel.ro,\\"aw\\"\\n.balign 8\\n.globl table\\n.type table, @object\\ntable: {pointers}\\n"
        ".size table, . - table\\n"
        ".data\\n.globl items\\n.type items, @object\\nitems: .long 1, 2, 3\\n.size items, 12\\n.balign 64\\n.text\\n");
extern const void *const table[];
const void *get(int i) {{ return table[i]; }}
int run(int x) {{ return x * 1000003 + {value}; }}
"""

TEXT = '.asciz \\"a string\\"\\n.balign 8\\n'
PADDING = ".quad 0\\n"
END = ".quad row+16"
BOTH = ".quad row, row+16"


def targets_of(build: Build) -> Targets:
    return Targets(build, Rows(build))


def pointer(compiler: Compiler, behind: str, pointers: str) -> tuple[str, int, bool]:
    """What the last pointer of the table names, at which distance, and whether that is doubtful."""
    build = compiler.build(SOURCE.format(behind=behind, pointers=pointers, value=1))
    targets = targets_of(build)
    word = targets.within_rows([build.entities.names.index("table")])[-1]
    row = int(targets.row[word])
    return build.entities.names[row] if row >= 0 else "", int(targets.addend[word]), bool(targets.doubtful[word] >= 0)


@pytest.mark.parametrize(
    ("behind", "pointers", "expected"),
    [
        (TEXT, ".quad row+8", ("row", 8, False)),
        (TEXT, END, ("", 0, False)),  # the string: the table does not use the object
        (PADDING, BOTH, ("row", 16, False)),  # the end: nothing is there
        (TEXT, BOTH, ("", 0, True)),
        (PADDING, END, ("", 0, True)),
        (TEXT, ".quad items+12", ("items", 12, False)),  # nothing nameless is among variables
    ],
)
def test_what_a_pointer_to_an_end_means(
    compiler: Compiler, behind: str, pointers: str, expected: tuple[str, int, bool]
) -> None:
    assert pointer(compiler, behind, pointers) == expected


def plan(compiler: Compiler, old: tuple[str, str], new: tuple[str, str]) -> list[str]:
    """The edits of constants."""
    first, second = (
        compiler.build(SOURCE.format(behind=behind, pointers=pointers, value=value))
        for value, (behind, pointers) in enumerate((old, new))
    )
    comparisons = [compare(first, second)]
    made = make_plan(
        "m", [Image(first, BASE)], 0, second, comparisons, FakeScene(first), SECOND, PlanOptions(trust_layout=True)
    )
    return [edit.what for edit in made.edits if edit.kind == "constant"]


def test_a_doubtful_pointer_stays_while_both_meanings_hold(compiler: Compiler) -> None:
    assert plan(compiler, (TEXT, BOTH), (TEXT, BOTH)) == []
    assert plan(compiler, (PADDING, END), (PADDING, END)) == []


def test_a_doubtful_pointer_is_refused_when_the_string_behind_changed(compiler: Compiler) -> None:
    with pytest.raises(Refused) as refusal:
        plan(compiler, (TEXT, BOTH), (TEXT.replace("a string", "another"), BOTH))
    assert {(reason.code, reason.subject) for reason in refusal.value.reasons} == {("adjacency", "table")}


def test_a_clear_pointer_follows_its_string(compiler: Compiler) -> None:
    assert plan(compiler, (TEXT, END), (TEXT, END)) == []
    assert plan(compiler, (TEXT, END), (TEXT.replace("a string", "another"), END)) == ["table"]


def test_symbols_and_sections_of_other_kinds(compiler: Compiler) -> None:
    source = """
    extern int elsewhere; extern void *memcpy(void *, const void *, unsigned long);
    static int own; int exported;
    const void *const words[] = { &elsewhere, &own, &exported, memcpy, (char *) &own + 2 };
    const void *get(int i) { own++; return words[i]; }
    """
    build = compiler.build(source)
    targets = targets_of(build)
    words = targets.within_rows([build.entities.names.index("words")])
    names = [build.entities.names[row] if row >= 0 else "" for row in targets.row[words].tolist()]
    assert names == ["", "own", "exported", "", "own"]
    assert targets.addend[words].tolist() == [0, 0, 0, 0, 2]
    assert (targets.container[words] == build.entities.names.index("words")).all()
    assert targets.offset[words].tolist() == [0, 8, 16, 24, 32]


def test_rows_of_addresses(compiler: Compiler) -> None:
    build = compiler.build(
        "int one[3] = { 1 }; int two = 2; __thread int mine = 3; int get(void) { return one[0] + two; }"
    )
    rows = Rows(build)
    names = list(build.entities.names)
    one = int(build.entities.address[names.index("one")])
    assert rows.one_at(one) == (names.index("one"), 0)
    assert rows.one_at(one + 11) == (names.index("one"), 11)
    found, distance = rows.at([one, one + 4, one + 12, 1 << 40])
    assert found[:2].tolist() == [names.index("one")] * 2
    assert distance[:2].tolist() == [0, 4]
    assert found[3] == -1
    assert rows.ending_at([one + 12, one + 11]).tolist() == [names.index("one"), -1]
    assert rows.thread_local_at(2) == (names.index("mine"), 2)
    assert np.all(rows.ending_at([0]) == -1)
