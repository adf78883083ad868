"""Relinking: where the references, slots and pointers of a new image lead."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from iced_x86 import Decoder, FlowControl, Mnemonic

from hotupgrade.binary.build import Build
from hotupgrade.errors import Refused
from hotupgrade.plan.compare import compare
from hotupgrade.plan.make import make_plan
from hotupgrade.plan.memory import PAGE, ImageMemory
from hotupgrade.plan.model import Image, ModulePlan
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.rows import Rows
from hotupgrade.plan.targets import Targets
from hotupgrade.plan.tls import lay_out
from hotupgrade.plan.unnamed import Unnamed, equal
from unit.conftest import Compiler
from unit.plan.scenes import BASE, FakeScene

SECOND = BASE + 0x1000000
WHOLE = PlanOptions(whole=True, trust_layout=True)


@dataclass
class Placed:
    """A planned image as it will stand in memory."""

    plan: ModulePlan
    old: Build
    new: Build
    memory: bytes

    @classmethod
    def make(cls, old: Build, new: Build, scene: FakeScene, options: PlanOptions | None = None) -> Placed:
        plan = make_plan(
            "module",
            [Image(old, BASE)],
            0,
            new,
            [compare(old, new)],
            scene,
            SECOND,
            options or PlanOptions(trust_layout=True),
        )
        assert plan.image is not None
        memory = bytearray(plan.image.size)
        for piece in plan.image.pieces:
            memory[piece.offset : piece.offset + len(piece.content)] = piece.content
        return cls(plan, old, new, bytes(memory))

    def home(self, name: str) -> int:
        return BASE + int(self.old.entities.address[self.old.entities.names.index(name)])

    def copy(self, name: str) -> int:
        return SECOND + int(self.new.entities.address[self.new.entities.names.index(name)])

    def named_by(self, function: str) -> set[int]:
        """All addresses that the code of a function names: data and call targets, absolute."""
        row = self.new.entities.names.index(function)
        low, size = int(self.new.entities.address[row]), int(self.new.extent[row])
        found = set()
        for instruction in Decoder(64, self.memory[low : low + size], ip=SECOND + low):
            if instruction.is_ip_rel_memory_operand:
                found.add(instruction.ip_rel_memory_address)
            elif instruction.flow_control in (FlowControl.CALL, FlowControl.UNCONDITIONAL_BRANCH):
                found.add(instruction.near_branch_target)
        return found

    def word(self, address: int) -> int:
        value: int = struct.unpack_from("<Q", self.memory, address - SECOND)[0]
        return value

    def slot(self, symbol: str) -> int:
        """What the slot of a symbol holds."""
        slot = next(slot for slot in self.new.slots if slot.symbol == symbol)
        return self.word(SECOND + slot.vaddr)

    def is_present(self, vaddr: int) -> bool:
        assert self.plan.image is not None
        return any(piece.offset <= vaddr < piece.offset + len(piece.content) for piece in self.plan.image.pieces)


CODE = """
extern int printf(const char *, ...);
int exported = 1;
static int state;
static const int table[] = {{ 7, 8, 9 }};
__attribute__((noinline)) static int same(int x) {{ return state + table[x % 3]; }}
__attribute__((noinline)) static int fresh(int x);
int caller(int x) {{ state += {n}; exported++; return same(x) + table[x % 3] {extra}; }}
int (*taken(void))(int) {{ state += {n}; return caller; }}
int writer(int x) {{ state += {n}; return printf("value %d\\n", x); }}
{tail}
"""


def pair(compiler: Compiler, *flags: str) -> tuple[Build, Build]:
    tail = (
        "static int added; static int fresh(int x) { added += x; return added; } int user(int x) { return fresh(x); }"
    )
    old = compiler.build(CODE.format(n=1, extra="", tail="").replace("static int fresh(int x);", ""), *flags)
    new = compiler.build(CODE.format(n=2, extra="+ fresh(x)", tail=tail), *flags)
    return old, new


def test_names_with_a_home_are_named_there(compiler: Compiler) -> None:
    old, new = pair(compiler)
    placed = Placed.make(old, new, FakeScene(old, externals={"printf": 0x7FFF00001000}))
    named = placed.named_by("caller")
    assert {placed.home("state"), placed.home("same"), placed.home("table"), placed.copy("fresh")} <= named
    assert placed.copy("state") not in named
    assert placed.slot("exported") == placed.home("exported")
    assert placed.named_by("fresh") == {placed.copy("added")}
    assert placed.slot("caller") == placed.home("caller")  # an address that is taken
    assert placed.slot("printf") == 0x7FFF00001000
    assert set(placed.plan.functions["added"]) == {"fresh", "user"}
    assert placed.plan.objects["new"] == ("added",)


def test_whole_calls_copies_but_takes_addresses_of_homes(compiler: Compiler) -> None:
    old, new = pair(compiler)
    placed = Placed.make(old, new, FakeScene(old, externals={"printf": 0x7FFF00001000}), WHOLE)
    assert placed.copy("same") in placed.named_by("caller")
    assert placed.slot("caller") == placed.home("caller")


@pytest.mark.parametrize("flags", [(), ("-fcf-protection=full",)], ids=["plt", "plt.sec"])
def test_a_slot_that_is_not_bound_leads_to_the_old_stub(compiler: Compiler, flags: tuple[str, ...]) -> None:
    old, new = pair(compiler, "-Wl,-z,lazy", *flags)
    scene = FakeScene(old, externals={"printf": 0x7FFF00001000}, lazy=True)
    placed = Placed.make(old, new, scene)
    stub = placed.slot("printf")
    assert old.slots[old.plt_slot[stub - BASE]].symbol == "printf"
    assert "printf" not in scene.resolved


def test_own_functions_are_called_at_the_copy_only_if_the_loader_would_take_ours(compiler: Compiler) -> None:
    source = "int helper(int x) {{ return x + {n}; }} int run(int x) {{ return helper(x) * {n}; }}"
    old, new = (compiler.build(source.format(n=n), "-fno-inline", "-Wl,-z,lazy") for n in (3, 5))
    for lazy in (False, True):
        placed = Placed.make(old, new, FakeScene(old, lazy=lazy))
        assert placed.slot("helper") == placed.copy("helper")
        elsewhere = Placed.make(old, new, FakeScene(old, externals={"helper": 0x7FFF00002000}, lazy=lazy))
        assert elsewhere.slot("helper") == 0x7FFF00002000


def test_a_symbol_that_is_new_in_the_module_is_its_own_unless_it_is_shared_by_all(compiler: Compiler) -> None:
    source = "int state; int run(void) {{ return ++state; }} {tail}"
    tail = "int mine = 1; __attribute__((weak)) int shared = 2; int both(void) { return mine++ + shared++; }"
    old, new = compiler.build(source.format(tail="")), compiler.build(source.format(tail=tail))
    other = {"mine": 0x7FFF00003000, "shared": 0x7FFF00003008}
    placed = Placed.make(old, new, FakeScene(old, externals=other))
    assert placed.slot("mine") == placed.copy("mine")
    assert placed.slot("shared") == 0x7FFF00003008


def test_unresolved_symbols(compiler: Compiler) -> None:
    old = compiler.build("int run(void) { return 1; }")
    new = compiler.build("extern int one(void), two; int run(void) { return one() + two; }")
    with pytest.raises(Refused) as refusal:
        Placed.make(old, new, FakeScene(old))
    found = {(reason.code, reason.subject) for reason in refusal.value.reasons}
    assert found == {("unresolved-symbol", "one"), ("unresolved-symbol", "two")}


def test_symbols_of_functions_that_stay_need_not_be_known(compiler: Compiler) -> None:
    source = "extern int unknown(void); int stays(void) {{ return unknown(); }} int run(void) {{ return {n}; }}"
    old, new = (compiler.build(source.format(n=n)) for n in (1, 2))
    placed = Placed.make(old, new, FakeScene(old))
    assert placed.slot("unknown") == 0


POINTERS = """
struct node {{ const char *name; int *number; int (*function)(void); struct node *next; }};
static int number = 5;
int function(void) {{ return number += {n}; }}
{tail}
"""


def test_pointers_in_new_data(compiler: Compiler) -> None:
    tail = """
    static struct node second = { "second", &number, function, 0 };
    struct node first = { "first", &number + 1, function, &second };
    static const struct node fixed[] = { { "fixed", &number, function, &first } };
    const struct node *list(void) { return fixed; }
    """
    old, new = compiler.build(POINTERS.format(n=1, tail="")), compiler.build(POINTERS.format(n=2, tail=tail))
    placed = Placed.make(old, new, FakeScene(old))

    def node(address: int) -> tuple[bytes, int, int, int]:
        name, pointed, function, following = (placed.word(address + 8 * place) for place in range(4))
        return placed.memory[name - SECOND :].split(b"\0")[0], pointed, function, following

    home = placed.home("function")
    assert node(placed.copy("fixed")) == (b"fixed", placed.home("number"), home, placed.copy("first"))
    assert node(placed.copy("first")) == (b"first", placed.home("number") + 4, home, placed.copy("second"))
    assert node(placed.copy("second")) == (b"second", placed.home("number"), home, 0)
    assert placed.plan.objects["new"] == ("first", "fixed", "second")
    owned = {new.entities.names[row] for row in placed.plan.placed.owned}
    assert owned == {"list", "first", "fixed", "second"}


def test_new_data_that_nobody_uses_do_not_come_along(compiler: Compiler) -> None:
    tail = '__attribute__((visibility("hidden"))) int unused[1000] = { 1 }; int offered[2] = { 1 };'
    old, new = compiler.build(POINTERS.format(n=1, tail="")), compiler.build(POINTERS.format(n=2, tail=tail))
    placed = Placed.make(old, new, FakeScene(old))
    assert placed.plan.objects["new"] == ("offered",)  # another module may use it
    assert placed.word(placed.copy("offered")) == 1


def test_new_zeroed_data_take_no_piece_but_can_be_written(compiler: Compiler) -> None:
    tail = "static char room[40000]; char *get(int i) { return room + i * 4096; }"
    old, new = compiler.build(POINTERS.format(n=1, tail="")), compiler.build(POINTERS.format(n=2, tail=tail))
    placed = Placed.make(old, new, FakeScene(old))
    image = placed.plan.image
    assert image is not None
    low = placed.copy("room") - SECOND
    for vaddr in range(low, low + 40000, PAGE):
        (state,) = [one for one in image.protections if one.offset <= vaddr < one.offset + one.size]
        assert state.writable
        assert not state.executable
    assert not placed.is_present(low + 20000)


def test_protections_cover_the_image_once(compiler: Compiler) -> None:
    old, new = pair(compiler)
    placed = Placed.make(old, new, FakeScene(old, externals={"printf": 1 << 40}), WHOLE)
    image = placed.plan.image
    assert image is not None
    edge = 0
    for one in image.protections:
        assert one.offset == edge
        assert one.size % PAGE == 0
        assert not (one.writable and one.executable)
        edge += one.size
    assert edge == image.size
    for piece in image.pieces:
        assert piece.offset % PAGE == 0
        assert len(piece.content) % PAGE == 0


def test_code_that_is_not_placed_is_traps(compiler: Compiler) -> None:
    old, new = pair(compiler)
    placed = Placed.make(old, new, FakeScene(old, externals={"printf": 1 << 40}))
    row = new.entities.names.index("same")
    low = int(new.entities.address[row])
    assert placed.memory[low : low + int(new.extent[row])] == b"\xcc" * int(new.extent[row])


def test_constants_at_home_get_only_the_words_that_differ(compiler: Compiler) -> None:
    source = """
    static int one, two;
    int first(void) {{ return 1; }} int second(void) {{ return 2; }}
    const struct row {{ const char *name; int *at; int (*call)(void); int n; }} rows[] = {{
        {{ "alpha", &one, first, 10 }}, {{ "beta", {at}, {call}, {n} }} }};
    const struct row *get(int i) {{ one += two++; return rows + i; }}
    """
    old = compiler.build(source.format(at="&one", call="first", n=20))
    new = compiler.build(source.format(at="&two", call="second", n=30))
    placed = Placed.make(old, new, FakeScene(old))
    rows = placed.home("rows")
    changed = {edit.address + 8 * word for edit in placed.plan.edits for word in range(len(edit.new) // 8)}
    assert changed == {rows + 40, rows + 48, rows + 56}
    content = b"".join(edit.new for edit in placed.plan.edits)
    at, call, number = struct.unpack("<QQQ", content)
    assert (at, call, number & 0xFFFFFFFF) == (placed.home("two"), placed.home("second"), 30)
    assert placed.plan.objects["constants-updated"] == ("rows",)


def test_the_string_that_was_there_first_is_used_again(compiler: Compiler) -> None:
    """v1 → v2 → v1-like v3: the pointer goes back to the loader's string, not to a third one."""
    source = """
    static const char *const names[] = {{ "{name}", "last" }};
    const char *name(int i) {{ return names[i]; }} {tail}
    """
    first, second, third = (
        compiler.build(source.format(name=name, tail=tail))
        for name, tail in (("red", ""), ("blue", ""), ("red", "int extra(void) { return 1; }"))
    )
    scene = FakeScene(first)
    one = Placed.make(first, second, scene)
    scene.map(SECOND, one.memory)
    before = scene.read(one.home("names"), 16)
    for edit in one.plan.edits:
        scene.write(edit.address, edit.new)
    images = [Image(first, BASE), one.plan.placed]
    comparisons = [compare(image.build, third) for image in images]
    two = make_plan("module", images, 1, third, comparisons, scene, SECOND + 0x1000000, PlanOptions(trust_layout=True))
    for edit in two.edits:
        scene.write(edit.address, edit.new)
    assert scene.read(one.home("names"), 16) == before


def test_wide_strings_and_blobs_are_compared_to_their_end(compiler: Compiler) -> None:
    source = """
    #include <wchar.h>
    static const wchar_t *const wide[] = {{ L"{wide}", 0 }};
    static const char *const empty[] = {{ "" , "{narrow}" }};
    const wchar_t *get(int i) {{ return wide[i]; }} const char *text(int i) {{ return empty[i]; }}
    """
    first = compiler.build(source.format(wide="abc", narrow="x"))
    same = compiler.build(source.format(wide="abc", narrow="x") + "int more(void) { return 1; }")
    other = compiler.build(source.format(wide="abd", narrow="x"))
    for build, expected in ((same, True), (other, False)):
        ours, theirs = (Targets(each, Rows(each)) for each in (first, build))
        places = []
        for targets in (ours, theirs):
            row = targets.build.entities.names.index("wide")
            word = targets.within_rows([row])[0]
            places.append(int(targets.plain_addend[word]))
        assert equal(Unnamed(ours), places[0], Unnamed(theirs), places[1]) is expected


def test_strings_are_told_from_other_data(compiler: Compiler) -> None:
    build = compiler.build('const char *text(int i) { return i ? "some text" : ""; } double real(void) { return 2.5; }')
    unnamed = Unnamed(Targets(build, Rows(build)))
    references = build.references
    found = {unnamed.string(int(target)) for target in references.target[references.target_kind == 2].tolist()}
    assert found == {b"some text", None}


def test_room_for_new_thread_locals(compiler: Compiler) -> None:
    source = """
    __thread char one = 1;
    __thread long two __attribute__((aligned(32))) = 2;
    __thread int three[3] = { 3, 4, 5 };
    __thread int zero;
    """
    build = compiler.build(source)
    names = {name: row for row, name in enumerate(build.entities.names)}
    rows = [names[name] for name in ("one", "two", "three", "zero")]
    layout = lay_out(build, rows)
    assert layout is not None
    assert layout.request.alignment == 32
    spans = sorted((layout.offsets[row], layout.offsets[row] + int(build.entities.size[row])) for row in rows)
    assert all(one[1] <= two[0] for one, two in pairwise(spans))
    assert layout.offsets[names["two"]] % 32 == 0
    assert layout.offsets[names["three"]] % 4 == 0
    image = layout.request.initial
    assert struct.unpack_from("<q", image, layout.offsets[names["two"]]) == (2,)
    assert struct.unpack_from("<iii", image, layout.offsets[names["three"]]) == (3, 4, 5)
    assert struct.unpack_from("<i", image, layout.offsets[names["zero"]]) == (0,)
    assert lay_out(build, []) is None


def test_image_memory_is_sparse(compiler: Compiler) -> None:
    build = compiler.build("char room[200000]; int run(void) { return room[5]; }")
    memory = ImageMemory(build)
    room = int(build.entities.address[build.entities.names.index("room")])
    memory.put_word(room + 100000, 0x1122334455667788)
    (piece,) = memory.pieces()
    assert len(piece.content) == PAGE
    assert struct.unpack_from("<Q", piece.content, room + 100000 - piece.offset) == (0x1122334455667788,)
    positions = np.asarray([room + 100000, room + 100010], dtype=np.int64)
    memory.put_fields(positions, np.asarray([-1, 7], dtype=np.int32))
    (piece,) = memory.pieces()
    assert struct.unpack_from("<i", piece.content, room + 100010 - piece.offset) == (7,)


def test_the_sample_code_is_what_the_tests_think(compiler: Compiler) -> None:
    _, new = pair(compiler)
    row = new.entities.names.index("caller")
    code = new.read(int(new.entities.address[row]), int(new.extent[row]))
    assert any(instruction.mnemonic == Mnemonic.CALL for instruction in Decoder(64, code, ip=0))
