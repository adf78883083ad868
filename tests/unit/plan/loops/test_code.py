"""What the code of a function says: by name, with its pieces, with its calls."""

from __future__ import annotations

import re
import subprocess

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.plan.loops.code import Code, Functions, WrongFunction
from unit.conftest import Compiler


def disassembled(build: Build, function: str) -> list[tuple[int, str]]:
    """(vaddr, instruction) by another disassembler."""
    assert build.path is not None
    words = ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={function}", str(build.path)]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return [(int(at, 16), what) for at, what in re.findall(r"^ *([0-9a-f]+):\t(.*)$", text, re.MULTILINE)]


def calls_by_objdump(build: Build, function: str, callee: str) -> list[int]:
    wanted = re.compile(rf"call +[0-9a-f]+ <{re.escape(callee)}(@plt)?>")
    return [at for at, what in disassembled(build, function) if wanted.match(what)]


def code_of(build: Build, name: str) -> Code:
    functions = Functions(build)
    row = functions.find(name)
    assert row is not None
    return functions.code(row)


CALLS = """
extern void there(int); extern int asked(void); extern void last(int) __attribute__((visibility("default")));
__attribute__((noinline)) void here(int x) { there(x + 1); }
__attribute__((noinline)) static void own(int x) { there(x + 2); there(x + 3); }
void loop(int x) { own(x); while (asked()) { here(1); there(2); here(3); own(4); } here(x); last(x); }
"""


def test_calls_are_those_of_another_disassembler(compiler: Compiler) -> None:
    build = compiler.build(CALLS)
    code = code_of(build, "loop")
    for callee in ("here", "there", "own", "asked"):
        assert code.calls(callee) == calls_by_objdump(build, "loop", callee), callee
        assert code.calls(callee), callee
        assert not code.reaches_otherwise(callee)


def test_a_jump_is_no_call(compiler: Compiler) -> None:
    code = code_of(compiler.build(CALLS), "loop")
    assert code.calls("last") == []
    assert code.reaches_otherwise("last")


def test_neither_is_a_call_through_a_slot(compiler: Compiler) -> None:
    code = code_of(compiler.build(CALLS, "-fno-plt"), "loop")
    assert code.calls("there") == []
    assert code.reaches_otherwise("there")
    assert code.calls("own")


def test_the_rows_of_what_is_called(compiler: Compiler) -> None:
    build = compiler.build(CALLS)
    found = {name: t.row for t in code_of(build, "loop").transfers for name in t.names}
    names = build.entities.names
    assert (names[found["here"]], names[found["own"]], found["there"]) == ("here", "own", -1)


COLD = """
extern void there(int); extern void rare(int) __attribute__((cold)); extern int asked(void); volatile int never;
void loop(int x) { while (asked()) { there(x); if (__builtin_expect(never, 0)) { rare(x); there(1); rare(2); } } }
"""


def test_cold_parts_belong_to_the_function(compiler: Compiler) -> None:
    build = compiler.build(COLD)
    code = code_of(build, "loop")
    assert [build.entities.names[row] for row in code.rows] == ["loop", "loop.cold"]
    assert code.ranges[0][0] == code.entry == int(build.entities.address[build.by_name["loop"]])
    assert len(code.ranges) == 2
    for low, high in code.ranges:
        assert low < high
    assert code.calls("rare")
    low, high = code.ranges[1]
    assert all(low <= vaddr < high for vaddr in code.calls("rare"))
    assert sorted(code.calls("there")) == sorted(
        calls_by_objdump(build, "loop", "there") + calls_by_objdump(build, "loop.cold", "there")
    )


def test_what_the_compiler_cut_off_is_not_the_function(compiler: Compiler) -> None:
    text = """
    .globl loop
    .type loop, @function
    loop: call half.part.0
          call half.constprop.0
          ret
    .size loop, . - loop
    .type half.part.0, @function
    half.part.0: ret
    .size half.part.0, . - half.part.0
    .type half.constprop.0, @function
    half.constprop.0: ret
    .size half.constprop.0, . - half.constprop.0
    """
    code = code_of(compiler.build({"module.s": text}), "loop")
    assert code.calls("half") == [code.entry + 5]


def named(compiler: Compiler, *names: str) -> Functions:
    lines = [f".type {name}, @function\n{name}: ret\nnop\n.size {name}, 2\n" for name in names]
    return Functions(compiler.build({"module.s": "".join(lines)}))


@pytest.mark.parametrize("name", ["loop", "loop.lto_priv.0", "loop.17"])
def test_names_that_are_as_good(compiler: Compiler, name: str) -> None:
    functions = named(compiler, name, f"{name}.cold", "loop2")
    row = functions.find("loop")
    assert row is not None
    assert functions.build.entities.names[row] == name


@pytest.mark.parametrize("suffix", ["isra.0", "constprop.0", "part.0", "isra.0.cold"])
@pytest.mark.parametrize("beside", [(), ("loop",)])
def test_variants_are_refused(compiler: Compiler, suffix: str, beside: tuple[str, ...]) -> None:
    functions = named(compiler, f"loop.{suffix.removesuffix('.cold')}", *beside)
    with pytest.raises(WrongFunction, match="another calling convention of it, loop"):
        functions.find("loop")
    assert len(functions.all_of("loop")) == 1 + len(beside)


def test_a_name_that_nobody_has(compiler: Compiler) -> None:
    assert named(compiler, "loop2").find("loop") is None


def test_two_files_with_one_name(compiler: Compiler) -> None:
    text = "__attribute__((used)) static int loop(int x) { return x + 1; }"
    functions = Functions(compiler.build({"one.c": text, "two.c": text}))
    with pytest.raises(WrongFunction, match="there are 2 functions of that name"):
        functions.find("loop")


RETURNS = {
    "void loop(int *p) { while (*(volatile int *) p) ; }": True,
    "void loop(int *p) { for (;;) *(volatile int *) p = 1; }": False,
    "int g(void); int loop(int *p) { while (*(volatile int *) p) ; return g(); }": False,  # jumps there
}


@pytest.mark.parametrize("text", RETURNS)
def test_whether_it_returns(compiler: Compiler, text: str) -> None:
    assert code_of(compiler.build(text), "loop").returns == RETURNS[text]


def test_what_it_reads(compiler: Compiler) -> None:
    text = """
    struct big { char pad[5000]; volatile char stop; volatile char other[300]; };
    extern void use(void *);
    void loop(struct big *b) { char stack[7777]; use(stack); while (!b->stop) use(&stack[77]); }
    """
    code = code_of(compiler.build(text), "loop")
    assert 5000 in code.displacements
    assert 5001 not in code.displacements
    assert not any(offset > 5000 for offset in code.displacements)


FIRST = {
    "call first@PLT\n call second@PLT": "first",
    "push %rbx\n mov %rdi, %rbx\n call second@PLT": "second",
    "test %edi, %edi\n je 1f\n call first@PLT\n1: call second@PLT": "",
    "jmp 1f\n1: call first@PLT": "",
    "call *%rdi\n call first@PLT": "",
    "call *first@GOTPCREL(%rip)\n call first@PLT": "",
    "nop": "",
}


@pytest.mark.parametrize("lines", FIRST)
def test_the_first_call(compiler: Compiler, lines: str) -> None:
    text = f".globl loop\n.type loop, @function\nloop: {lines}\n ret\n.size loop, . - loop\n"
    code = code_of(compiler.build({"module.s": text}), "loop")
    assert code.first_call == (code.calls(FIRST[lines])[0] if FIRST[lines] else -1)
