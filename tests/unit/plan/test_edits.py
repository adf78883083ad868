"""Edits at entries, on processes that are only bytes."""

from __future__ import annotations

import dataclasses
import struct
from itertools import pairwise

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.errors import Refused
from hotupgrade.plan.compare import compare
from hotupgrade.plan.entries import OutOfReach, branching_into_entry, has_room, is_intact, jump, jump_target
from hotupgrade.plan.make import make_plan
from hotupgrade.plan.model import EditKind, Image, ModulePlan
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.patchwork import Patchwork
from unit.conftest import Compiler
from unit.plan.scenes import BASE, FakeScene

SECOND, THIRD = BASE + 0x1000000, BASE + 0x2000000
WHOLE = PlanOptions(whole=True, trust_layout=True)


def plan(
    scene: FakeScene, images: list[Image], current: int, new: Build, base: int, options: PlanOptions | None = None
) -> ModulePlan:
    comparisons = [compare(image.build, new) for image in images]
    return make_plan(
        "module", images, current, new, comparisons, scene, base, options or PlanOptions(trust_layout=True)
    )


def apply(scene: FakeScene, made: ModulePlan) -> None:
    if made.image is not None:
        content = bytearray(made.image.size)
        for piece in made.image.pieces:
            content[piece.offset : piece.offset + len(piece.content)] = piece.content
        scene.map(made.image.base, bytes(content))
    for edit in made.edits:
        assert scene.read(edit.address, len(edit.old)) == edit.old
        scene.write(edit.address, edit.new)


def entry(build: Build, name: str, base: int = BASE) -> int:
    return base + int(build.entities.address[build.entities.names.index(name)])


def leads_to(scene: FakeScene, address: int) -> int | None:
    return jump_target(address, scene.read(address, 5))


def asm(*functions: tuple[str, str]) -> str:
    """C text of global functions (name, instructions) that follow one another without padding."""
    text = "".join(
        f".globl {name}\n.type {name}, @function\n{name}: {code}\n.size {name}, . - {name}\n"
        for name, code in functions
    )
    return "__asm__(" + "".join(f'"{line}\\n"\n' for line in [".text", ".balign 64", *text.splitlines()]) + ");\n"


SOURCE = """
static int state;
int get(void) {{ return state; }}
int add(int x) {{ return state += x * {factor}; }}
int sub(int x) {{ return state -= x * {other}; }}
"""


def test_jumps_of_one_plan(compiler: Compiler) -> None:
    old, new = (compiler.build(SOURCE.format(factor=factor, other=7)) for factor in (3, 5))
    scene = FakeScene(old)
    made = plan(scene, [Image(old, BASE)], 0, new, SECOND)
    (edit,) = made.edits
    assert (edit.kind, edit.what) == (EditKind.JUMP, "add")
    assert edit.address % 8 == 0
    assert len(edit.old) == len(edit.new) == 8
    assert edit.old[5:] == edit.new[5:]
    apply(scene, made)
    assert leads_to(scene, entry(old, "add")) == entry(new, "add", SECOND)
    low = entry(old, "add")
    assert [(watch.low, watch.name, watch.retry) for watch in made.watches] == [(low, "add", True)]
    assert made.watches[0].high == low + int(old.entities.size[old.entities.names.index("add")])
    assert made.functions == {"changed": ("add",), "dragged": (), "added": (), "removed": ()}


def test_entries_that_straddle_words(compiler: Compiler) -> None:
    """Functions at odd places: two words, and two functions that share one."""
    old, new = (compiler.build(asm(*((f"f{n}", f"mov ${value}, %eax\nret") for n in range(8)))) for value in (1, 2))
    assert {int(entry(old, f"f{n}")) % 8 for n in range(8)} == {0, 6, 4, 2}
    scene = FakeScene(old)
    made = plan(scene, [Image(old, BASE)], 0, new, SECOND)
    spans = [(edit.address, edit.address + len(edit.new)) for edit in made.edits]
    assert all(low % 8 == high % 8 == 0 for low, high in spans)
    assert all(one[1] <= two[0] for one, two in pairwise(spans))
    apply(scene, made)
    for n in range(8):
        assert leads_to(scene, entry(old, f"f{n}")) == entry(new, f"f{n}", SECOND)
    apply(scene, plan(scene, [Image(old, BASE), made.placed], 1, old, THIRD))
    assert bytes(scene.memory) == bytes(FakeScene(old).memory)


def test_three_generations(compiler: Compiler) -> None:
    first, second, third = (
        compiler.build(SOURCE.format(factor=factor, other=other)) for factor, other in ((3, 7), (5, 7), (5, 9))
    )
    scene = FakeScene(first)
    one = plan(scene, [Image(first, BASE)], 0, second, SECOND)
    apply(scene, one)
    images = [Image(first, BASE), one.placed]
    two = plan(scene, images, 1, third, THIRD)
    assert {edit.what for edit in two.edits} == {"add", "sub"}
    apply(scene, two)
    assert leads_to(scene, entry(first, "add")) == entry(third, "add", THIRD)
    assert leads_to(scene, entry(first, "sub")) == entry(third, "sub", THIRD)
    assert leads_to(scene, entry(second, "add", SECOND)) is None  # it means the same as the third's
    images.append(two.placed)
    back = plan(scene, images, 2, second, THIRD + 0x1000000)
    assert back.image is None
    assert back.placed is one.placed
    apply(scene, back)
    assert leads_to(scene, entry(first, "add")) == entry(second, "add", SECOND)
    assert leads_to(scene, entry(first, "sub")) is None
    assert leads_to(scene, entry(third, "sub", THIRD)) == entry(first, "sub")
    again = plan(scene, images, 1, third, THIRD + 0x1000000)
    assert again.image is None
    apply(scene, again)
    assert leads_to(scene, entry(third, "sub", THIRD)) is None
    apply(scene, plan(scene, images, 2, first, THIRD + 0x1000000))
    assert bytes(scene.memory) == bytes(FakeScene(first).memory)


def test_the_relinked_first_bytes_of_a_later_copy_are_restored(compiler: Compiler) -> None:
    """The entry begins with a reference that was re-pointed: the file does not hold those bytes."""
    first, second, third = (
        compiler.build(
            f"static int state; void set(int x) {{ state = {n}; state += x; }} int get(void) {{ return state; }}"
        )
        for n in (1, 2, 3)
    )
    scene = FakeScene(first)
    one = plan(scene, [Image(first, BASE)], 0, second, SECOND)
    apply(scene, one)
    before = scene.read(entry(second, "set", SECOND), 16)
    images = [Image(first, BASE), one.placed]
    two = plan(scene, images, 1, third, THIRD)
    apply(scene, two)
    assert leads_to(scene, entry(second, "set", SECOND)) == entry(third, "set", THIRD)
    images.append(two.placed)
    apply(scene, plan(scene, images, 2, second, THIRD + 0x1000000))
    assert scene.read(entry(second, "set", SECOND), 16) == before


def test_whole_redirects_what_did_not_change_except_where_code_runs_over_it(compiler: Compiler) -> None:
    loop = asm(("spin", "dec %edi\njnz spin+2\nret"), ("wait", "nop\n1: dec %edi\njnz 1b\nmov $1, %eax\nret"))
    old, new = (compiler.build(SOURCE.format(factor=factor, other=7) + loop) for factor in (3, 5))
    scene = FakeScene(old)
    made = plan(scene, [Image(old, BASE)], 0, new, SECOND, WHOLE)
    entries = {edit.what for edit in made.edits}
    assert {"get", "add", "sub"} <= entries
    assert "wait" not in entries
    assert made.placed.placed is None
    watches = {watch.name: watch for watch in made.watches}
    assert watches["get"].high - watches["get"].low == 5
    assert watches["add"].high - watches["add"].low > 5


def test_a_changed_function_may_branch_into_its_first_bytes(compiler: Compiler) -> None:
    old, new = (compiler.build(asm(("wait", f"nop\n1: dec %edi\njnz 1b\nmov ${n}, %eax\nret"))) for n in (1, 2))
    made = plan(FakeScene(old), [Image(old, BASE)], 0, new, SECOND)
    assert [edit.what for edit in made.edits] == ["wait"]


@pytest.mark.parametrize("content", [b"\xcc", b"\xe9\x00\x10\x00\x00", b"\x0f\x0b"])
def test_foreign_bytes(compiler: Compiler, content: bytes) -> None:
    old, new = (compiler.build(SOURCE.format(factor=factor, other=7)) for factor in (3, 5))
    scene = FakeScene(old)
    scene.write(entry(old, "add"), content)
    with pytest.raises(Refused) as refusal:
        plan(scene, [Image(old, BASE)], 0, new, SECOND)
    assert [(reason.code, reason.subject) for reason in refusal.value.reasons] == [("foreign-edit", "add")]
    scene = FakeScene(old)
    scene.write(entry(old, "sub"), content)  # somebody else's business
    assert len(plan(scene, [Image(old, BASE)], 0, new, SECOND).edits) == 1
    assert "sub" not in {edit.what for edit in plan(scene, [Image(old, BASE)], 0, new, SECOND, WHOLE).edits}


def test_jumps_reach_two_gigabytes() -> None:
    assert jump(0x1000, 0x2000) == b"\xe9" + struct.pack("<i", 0xFFB)
    assert jump_target(0x1000, jump(0x1000, 0x2000)) == 0x2000
    assert jump_target(0x80000000, jump(0x80000000, 5)) == 5
    with pytest.raises(OutOfReach):
        jump(0, 0x80000006)
    assert jump_target(0, b"\x90" * 5) is None
    assert jump_target(0, b"\xe9") is None


def test_intact_entries() -> None:
    assert is_intact(b"\x55", b"\x55")
    assert not is_intact(b"\x55", b"\xe9")
    assert not is_intact(b"\xe9", b"\xe9")


def test_symbols_inside_the_first_bytes_are_no_room(compiler: Compiler) -> None:
    source = asm(("outer", "nop\nnop\n.globl inner\n.type inner, @function\ninner: mov $1, %eax\nret\n.size inner, 6"))
    build = compiler.build(source)
    names = build.entities.names
    assert not has_room(build, names.index("outer"))
    assert has_room(build, names.index("inner"))


def test_branches_to_the_entry_itself_are_no_obstacle(compiler: Compiler) -> None:
    source = asm(("f", "dec %edi\nnop\nnop\nnop\njnz f\nret"))
    build = compiler.build(source)
    assert branching_into_entry(build, build.entities.kind == 1) == frozenset()


def test_near_branches_into_the_entry_are_found(compiler: Compiler) -> None:
    source = asm(("f", "nop\n1: dec %edi\n.fill 300, 1, 0x90\njnz 1b\njmp 1b\nret"))
    build = compiler.build(source)
    found = branching_into_entry(build, build.entities.kind == 1)
    assert [build.entities.names[row] for row in found] == ["f"]


def test_patchwork_shares_words_and_leaves_out_what_is_equal() -> None:
    memory = bytes(range(64))
    patchwork = Patchwork(lambda address, size: memory[address : address + size])
    patchwork.add(6, b"\xaa\xbb\xcc\xdd\xee", EditKind.JUMP, "one")
    patchwork.add(12, b"\x11\x22\x33\x44\x55", EditKind.JUMP, "two")
    patchwork.add(24, memory[24:40], EditKind.CONSTANT, "equal")
    patchwork.add(40, b"\0" * 3, EditKind.CONSTANT, "partly")
    edits = patchwork.edits()
    assert [(edit.address, len(edit.new), edit.what) for edit in edits] == [
        (0, 16, "one"),
        (16, 8, "two"),
        (40, 8, "partly"),
    ]
    merged = bytearray(memory)
    for edit in edits:
        assert memory[edit.address : edit.address + len(edit.old)] == edit.old
        merged[edit.address : edit.address + len(edit.new)] = edit.new
    expected = bytearray(memory)
    expected[6:11], expected[12:17], expected[40:43] = b"\xaa\xbb\xcc\xdd\xee", b"\x11\x22\x33\x44\x55", b"\0\0\0"
    assert merged == expected


def test_removed_functions_are_watched_and_left_alone(compiler: Compiler) -> None:
    source = SOURCE.format(factor=3, other=7)
    old, new = compiler.build(source + "int gone(int x) { return x * 5 + state; }"), compiler.build(source)
    made = plan(FakeScene(old), [Image(old, BASE)], 0, new, SECOND)
    assert made.edits == ()
    assert {watch.name for watch in made.watches} == {"gone"}
    assert made.functions["removed"] == ("gone",)
    assert made.image is not None
    assert made.image.pieces == ()


def test_plans_are_the_same_every_time(compiler: Compiler) -> None:
    old, new = (compiler.build(SOURCE.format(factor=factor, other=7)) for factor in (3, 5))
    one, two = (plan(FakeScene(old), [Image(old, BASE)], 0, new, SECOND, WHOLE) for _ in range(2))
    assert dataclasses.replace(one, placed=two.placed) == two
