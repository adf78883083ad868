"""Control flow: every way that code may take is there, and what is too odd to be followed is given up."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.binary.graph import Effort, ExhaustedError, Graph, Surroundings, graph_of, is_padding
from unit.conftest import Compiler

SOURCE = """
    .globl f
    .type f, @function
f:
    {code}
    .size f, . - f
    .section .note.GNU-stack
"""


class Code:
    """A function that was written by hand."""

    def __init__(self, compiler: Compiler, code: str) -> None:
        self.build: Build = compiler.build({"module.s": SOURCE.replace("{code}", code)})
        row = self.build.by_name["f"]
        self.low = int(self.build.entities.address[row])
        self.high = self.low + int(self.build.extent[row])

    def graph(self, tables: Iterable[int] = (), pad: int = -1, effort: int = 10_000) -> Graph:
        def landing_pads(_: int) -> list[int]:
            return [] if pad < 0 else [self.low + pad]

        around = Surroundings(frozenset(self.low + at for at in tables), landing_pads, Effort(effort))
        return graph_of(self.build.image, [(self.low, self.high)], around, [self.low])

    def shown(self, graph: Graph) -> dict[int, tuple[list[int], list[int]]]:
        """Successors and ways out of each block, counted from the start."""
        return {
            start - self.low: (
                sorted(successor - self.low for successor in block.successors),
                sorted(vaddr - self.low for vaddr in block.leaves),
            )
            for start, block in graph.blocks.items()
        }


DIAMOND = "test %edi, %edi\nje 1f\nnop\njmp 2f\n1: xor %eax, %eax\n2: ret"


def test_both_ways_of_a_branch(compiler: Compiler) -> None:
    code = Code(compiler, DIAMOND)
    graph = code.graph()
    assert code.shown(graph) == {0: ([4, 7], []), 4: ([9], []), 7: ([9], []), 9: ([], [])}
    assert sorted(each - code.low for each in graph.predecessors[code.low + 9]) == [4, 7]


def test_a_call_ends_a_block_as_an_exception_may_leave_there(compiler: Compiler) -> None:
    code = Code(compiler, "call abort@plt\nret\nnop\nret")
    assert code.shown(code.graph())[0] == ([5], [])
    assert code.shown(code.graph(pad=6))[0] == ([5, 6], [])


def test_an_indirect_jump_may_lead_to_all_that_is_known(compiler: Compiler) -> None:
    code = Code(compiler, "jmp *%rax\nnop\nret\nret")
    assert code.shown(code.graph())[0] == ([], [])
    assert code.shown(code.graph(tables=(2, 4, 77))) == {0: ([2, 4], [77]), 2: ([], []), 4: ([], [])}


def test_running_on_leaves_the_function(compiler: Compiler) -> None:
    code = Code(compiler, "nop\nnop")
    assert code.shown(code.graph()) == {0: ([], [2])}


def test_parts_that_are_apart(compiler: Compiler) -> None:
    """A cold part elsewhere is the same function: a jump there stays within."""
    code = Code(compiler, "je 1f\nret\n.fill 40, 1, 0xcc\n1: ret")
    around = Surroundings(frozenset(), lambda _: (), Effort(100))
    graph = graph_of(code.build.image, [(code.low, code.low + 3), (code.high - 1, code.high)], around, [code.low])
    assert code.shown(graph) == {
        0: ([2, code.high - 1 - code.low], []),
        2: ([], []),
        code.high - 1 - code.low: ([], []),
    }


@pytest.mark.parametrize(
    ("code", "expected"),
    [("nop", True), ("xchg %ax, %ax", True), ("int3", True), ("ud2", True), ("nop\nmov %eax, %eax", False)],
)
def test_padding(compiler: Compiler, code: str, expected: bool) -> None:
    found = Code(compiler, code)
    assert all(map(is_padding, found.graph().blocks.values())) == expected


def test_as_many_jumps_as_labels(compiler: Compiler) -> None:
    """Each may lead to each: what grows with their product is not drawn."""
    count = 2000
    code = Code(compiler, "jmp *%rax\n" * count)
    tables = range(0, 2 * count, 2)
    with pytest.raises(ExhaustedError):
        code.graph(tables=tables, effort=100_000)
    assert len(code.graph(tables=tables[:10], effort=100_000).blocks) == count
