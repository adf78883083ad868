"""Plans that are carried out on real libraries in this process: does the new code run, and is all state still there?"""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

import pytest

from hotupgrade.errors import Refused
from hotupgrade.plan.make import footprint, make_plan, reach
from hotupgrade.plan.model import EditKind, Image
from hotupgrade.plan.options import PlanOptions
from unit.plan.inprocess import RTLD_GLOBAL, RTLD_LAZY, RTLD_NOW, World, compile_library, in_child, memory_of

WHOLE = PlanOptions(whole=True, trust_layout=True)

FLAVOURS = {
    "plain": (),
    "now": ("-Wl,-z,now",),
    "no-plt": ("-fno-plt",),
    "branch-protection": ("-fcf-protection=full",),
    "one-segment": ("-Wl,-z,noseparate-code",),
    "gold": ("-fuse-ld=gold",),
    "packed": ("-Wl,-z,pack-relative-relocs",),
    "records": ("-Wl,--emit-relocs",),
    "small": ("-Os",),
    "unoptimised": ("-O0",),
    "hardest": ("-O3", "-fipa-pta"),
    "local-binding": ("-Wl,-Bsymbolic",),
}

SINK_1 = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct list { struct list *next, *prev; int value; };
static struct list head = { &head, &head, 0 };
struct shape { const char *name; int (*area)(int); };
static int square(int side) { return side * side; }
static int circle(int side) { return 3 * side * side; }
static const struct shape shapes[] = { { "square", square }, { "circle", circle } };
const struct shape *find(const char *name) {
    for (const struct shape *each = shapes; each < shapes + sizeof shapes / sizeof *shapes; each++) {
        if (!strcmp(each->name, name)) { return each; }
    }
    return NULL;
}
int area(const char *name, int side) { const struct shape *found = find(name); return found ? found->area(side) : -1; }
static unsigned int calls;
int add(int value) {
    static int total;
    struct list *item = malloc(sizeof *item);
    item->value = value; item->next = &head; item->prev = head.prev;
    head.prev->next = item; head.prev = item;
    calls++;
    return total += value;
}
#define EACH for (struct list *i = head.next; i != &head; i = i->next)
int count(void) { int found = 0; EACH { found++; } return found; }
int sum(void) { int found = 0; EACH { found += i->value; } return found; }
unsigned int made(void) { return calls; }
typedef int (*callback)(int);
static callback registered;
static int on_event(int event) { return event + 1 + (int) (calls & 0x40000000); }
callback hook(void) { return on_event; }
void enroll(void) { registered = on_event; }
int is_enrolled(void) { return registered == on_event; }
int fire(int event) { return registered(event); }
const char *word(int which) {
    switch (which) {
    case 0: return "zero"; case 1: return "one"; case 2: return "two"; case 3: return "three";
    case 4: return "four"; case 5: return "five"; case 6: return "six"; case 7: return "seven";
    default: return "many";
    }
}
int compute(int which, int x) {
    switch (which) {
    case 0: return x + 1; case 1: return x * 7; case 2: return x ^ 0x55; case 3: return made() + x;
    case 4: return abs(x); case 5: return sum() - x; case 6: return count() * x; case 7: return -x;
    default: return 0;
    }
}
double scale(double x) { return x * 1.5 + 0.25; }
"""

SINK_2 = (
    SINK_1.replace("static int total;", "static int peak; static int total; if (value > peak) { peak = value; }")
    .replace("return total += value;", "return (total += value) + 1000 * peak;")
    .replace("side * side; }\nstatic int circle", "side * side + 1; }\nstatic int circle")
    .replace('{ "circle", circle } };', '{ "kreis", circle } };')
    .replace("event + 1", "event + 2")
    .replace('"five"', '"fuenf"')
    .replace("x * 7", "x * 8")
    .replace("1.5", "2.5")
    + "static int fresh = 41;\nint *newest(void) { return &fresh; }\nint next(void) { return ++*newest(); }\n"
    + 'struct shape extra = { "extra", square };\nstruct shape *get_extra(void) { return &extra; }\n'
)


@pytest.mark.parametrize("options", [PlanOptions(trust_layout=True), WHOLE], ids=["changed", "whole"])
@pytest.mark.parametrize("flavour", FLAVOURS)
@in_child
def test_everything_at_once(tmp_path: Path, flavour: str, options: PlanOptions) -> None:
    flags = FLAVOURS[flavour]
    old, new = compile_library(tmp_path, SINK_1, *flags), compile_library(tmp_path, SINK_2, *flags)
    world = World(tmp_path, old, mode=RTLD_LAZY)
    assert world.call("add", 5) == 5
    assert world.call("add", 7) == 12
    world.call("enroll")
    hook, find = world.call("hook", result=ctypes.c_void_p), world.address("find")
    shape = world.call("find", b"square", result=ctypes.c_void_p)
    assert world.call("area", b"circle", 2) == 12
    for _ in range(2):
        plan = world.upgrade(new, options)
        assert {"add", "compute", "word", "scale"} <= set(plan.functions["changed"])
        assert set(plan.functions["added"]) == {"newest", "next", "get_extra"}
        before = world.call("count")
        assert world.call("add", 100) % 1000 == world.call("sum") % 1000
        assert world.call("count") == before + 1 == world.call("made", result=ctypes.c_uint)
        assert world.call("is_enrolled") == 1
        assert world.call("fire", 10) == 12
        assert world.call("hook", result=ctypes.c_void_p) == hook
        assert world.call_at(hook, 1) == 3
        assert world.call("find", b"square", result=ctypes.c_void_p) == shape
        assert world.call("area", b"square", 5) == 26
        assert world.call("area", b"circle", 2) == -1
        assert world.call("area", b"kreis", 2) == 12
        assert [world.text("word", number) for number in range(9)] == (
            ["zero", "one", "two", "three", "four", "fuenf", "six", "seven", "many"]
        )
        assert world.call("compute", 1, 3) == 24
        assert world.call("compute", 5, 3) == world.call("sum") - 3
        assert world.call("scale", ctypes.c_double(2), result=ctypes.c_double) == 5.25
        assert world.call_at(find, b"kreis", result=ctypes.c_void_p) == shape + 16
        extra = world.call_at(world.new_address("get_extra"), result=ctypes.c_void_p)
        assert extra == world.new_address("extra")
        name, area = struct.unpack("<QQ", world.read(extra, 16))
        assert ctypes.string_at(name) == b"extra"
        assert world.call_at(area, 3) == 10
        next_value = world.call_at(world.new_address("next"))
        assert world.call_at(world.new_address("next")) == next_value + 1
        back = world.upgrade(old, options)
        assert back.image is None
        assert world.images[world.current].base == world.images[0].base
        assert world.call("area", b"circle", 2) == 12
        assert world.call("fire", 10) == 11
        assert world.text("word", 5) == "five"
        assert world.call("scale", ctypes.c_double(2), result=ctypes.c_double) == 3.25
        assert world.read(find, 64) == world.images[0].build.read(find - world.images[0].base, 64)
    assert len(world.images) == 2
    assert next_value == 44  # a new variable is not initialised again when its build comes back


STATICS_1 = """
int first(void) { static int state = 10; return state++; }
int second(void) { static int state = 20; return state++; }
int third(void) { static int state = 30; return state++; }
"""


@pytest.mark.parametrize("options", [PlanOptions(trust_layout=True), WHOLE], ids=["changed", "whole"])
@in_child
def test_renumbered_statics_keep_their_values(tmp_path: Path, options: PlanOptions) -> None:
    added = "int zeroth(void) { static int state = 5; return state++; }\n"
    new = added + STATICS_1.replace("return state++", "return 100 + state++")
    world = World(tmp_path, compile_library(tmp_path, STATICS_1))
    for name, value in (("first", 10), ("second", 20), ("third", 30)):
        assert world.call(name) == value
    world.upgrade(compile_library(tmp_path, new), options)
    for name, value in (("first", 111), ("second", 121), ("third", 131)):
        assert world.call(name) == value
    assert world.call_at(world.new_address("zeroth")) == 5


@in_child
def test_strings_that_say_the_same_are_no_edit(tmp_path: Path) -> None:
    source = """
    static const char *const names[] = { "alpha", "beta", "gamma" };
    const char *name(int i) { return names[i]; }
    const char *extra(void) { return "extra %s"; }
    """
    moved = source.replace('"extra', '"a much longer text than before that moves all the others, extra')
    world = World(tmp_path, compile_library(tmp_path, source))
    plan = world.upgrade(compile_library(tmp_path, moved))
    assert plan.objects["constants-updated"] == ()
    assert [edit.what for edit in plan.edits] == ["extra"]
    assert world.text("name", 2) == "gamma"
    changed = moved.replace('"beta"', '"delta"')
    plan = world.upgrade(compile_library(tmp_path, changed))
    constants = [edit for edit in plan.edits if edit.kind is EditKind.CONSTANT]
    assert [(edit.what, len(edit.new)) for edit in constants] == [("names", 8)]
    assert [world.text("name", i) for i in range(3)] == ["alpha", "delta", "gamma"]


@in_child
def test_constants_without_pointers_are_updated_in_place(tmp_path: Path) -> None:
    source = """
    static const unsigned char table[] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13 };
    static const unsigned char after[] = { 21, 22, 23 };
    int look(int i) { return table[i] + after[i % 3]; }
    const void *address(void) { return table; }
    """
    world = World(tmp_path, compile_library(tmp_path, source))
    home = world.call("address", result=ctypes.c_void_p)
    assert world.call("look", 4) == 5 + 22
    plan = world.upgrade(compile_library(tmp_path, source.replace("5, 6", "50, 6").replace("22,", "99,")))
    assert set(plan.objects["constants-updated"]) == {"table", "after"}
    assert all(edit.kind is EditKind.CONSTANT for edit in plan.edits)
    assert world.call("look", 4) == 50 + 99
    assert world.call("look", 0) == 1 + 21
    assert world.call("address", result=ctypes.c_void_p) == home


@in_child
def test_a_constant_that_grew_moves_with_its_users(tmp_path: Path) -> None:
    source = """
    static const short table[] = { 10, 20, 30 };
    int total(void) {
        int sum = 0;
        for (unsigned i = 0; i < sizeof table / sizeof *table; i++) { sum += table[i]; }
        return sum;
    }
    """
    world = World(tmp_path, compile_library(tmp_path, source, "-O1"))
    assert world.call("total") == 60
    world.upgrade(compile_library(tmp_path, source.replace("30 }", "30, 40, 50 }"), "-O1"))
    assert world.call("total") == 150


DRAG_1 = """
static int state = 3;
__attribute__((noinline)) static int inner(int x) { return x * state; }
__attribute__((noinline)) static int middle(int x) { return inner(x) + 1; }
int outer(int x) { return middle(x) + 1; }
int other(int x) { return inner(x + 1); }
int set(int x) { return state = x; }
"""


@in_child
def test_a_changed_local_function_is_led_to_the_new_one(tmp_path: Path) -> None:
    world = World(tmp_path, compile_library(tmp_path, DRAG_1))
    world.call("set", 4)
    plan = world.upgrade(compile_library(tmp_path, DRAG_1.replace("x * state", "x * state * 2")))
    entries = {edit.what.split(".")[0] for edit in plan.edits}
    assert entries <= {"outer", "other", "inner", "middle"}
    assert "inner" in {watch.name.split(".")[0] for watch in plan.watches}
    assert world.call("outer", 5) == 42
    assert world.call("other", 5) == 48


CALLBACK_1 = (
    DRAG_1
    + """
static int gone(int x) { return inner(x) + 100000; }
int (*hook)(int) = gone;
int fire(int x) { return hook(x); }
void unset(void) { hook = other; }
"""
)


@in_child
def test_a_callback_that_is_gone_runs_in_its_old_code(tmp_path: Path) -> None:
    """Back and forth: at each turn, what it calls must be what it was compiled with."""
    world = World(tmp_path, compile_library(tmp_path, CALLBACK_1))
    world.call("set", 4)
    assert world.call("fire", 5) == 100020
    text = CALLBACK_1.replace("x * state", "x * state * 2").replace(
        "static int gone(int x) { return inner(x) + 100000; }", ""
    )
    with_it = compile_library(tmp_path, CALLBACK_1.replace("x * state", "x * state * 3"))
    without_it = compile_library(tmp_path, text.replace("= gone", "= other"))
    for _ in range(2):
        world.upgrade(without_it)
        assert (world.call("outer", 5), world.call("other", 5), world.call("fire", 5)) == (42, 48, 100020)
        world.upgrade(with_it)
        assert (world.call("outer", 5), world.call("other", 5), world.call("fire", 5)) == (62, 72, 100060)


SWITCH_1 = """
extern int abs(int);
int step(int which, int x) {
    switch (which) {
    case 10: return x + 1; case 11: x = abs(x); break; case 12: return x * 3; case 13: x -= 5; break;
    case 14: return x / 3; case 15: x <<= 2; break; case 16: return x % 7; case 17: x |= 1; break;
    case 18: return x & 6; case 19: x ^= 77; break;
    }
    return x + 1000;
}
"""


@pytest.mark.parametrize("options", [PlanOptions(trust_layout=True), WHOLE], ids=["changed", "whole"])
@in_child
def test_switch_tables(tmp_path: Path, options: PlanOptions) -> None:
    world = World(tmp_path, compile_library(tmp_path, SWITCH_1))
    before = [world.call("step", which, 40) for which in range(8, 22)]
    world.upgrade(compile_library(tmp_path, SWITCH_1.replace("+ 1000", "+ 2000")), options)
    after = [world.call("step", which, 40) for which in range(8, 22)]
    assert after == [value + 1000 if value > 900 else value for value in before]


COLD_1 = """
#include <stdlib.h>
#include <stdio.h>
static char text[64];
extern void complain(const char *, int) __attribute__((cold, noinline));
void complain(const char *what, int n) { snprintf(text, sizeof text, "%s %d", what, n); }
int check(int x) {
    if (__builtin_expect(x < 0, 0)) { complain("negative", x); complain("very negative", x - 1); return -1; }
    int sum = 0;
    for (int i = 0; i < x; i++) {
        if (__builtin_expect(i == 13, 0)) { complain("unlucky", i); sum += 100; }
        sum += i;
    }
    return sum;
}
const char *last(void) { return text; }
"""


@in_child
def test_cold_parts_come_along(tmp_path: Path) -> None:
    old, new = (
        compile_library(tmp_path, source, "-O2", "-freorder-blocks-and-partition")
        for source in (COLD_1, COLD_1.replace("sum += 100", "sum += 1000"))
    )
    world = World(tmp_path, old)
    assert any(".cold" in name for name in world.images[0].build.entities.names)
    plan = world.upgrade(new)
    assert any(".cold" in watch.name for watch in plan.watches)
    assert world.call("check", 20) == sum(range(20)) + 1000
    assert world.text("last") == "unlucky 13"
    assert world.call("check", -3) == -1
    assert world.text("last") == "very negative -4"


ENDS_1 = """
static const struct { int key, value; } pairs[] = { { 1, 10 }, { 2, 20 }, { 3, 30 } };
__attribute__((noinline)) int use(const char *text, int n) { return text[0] + n; }
int lookup(int key) {
    for (unsigned i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        if (pairs[i].key == key) { return use("first text", pairs[i].value); }
    }
    return use("no such key", key);
}
"""


@in_child
def test_loops_end_at_the_end_of_their_table(tmp_path: Path) -> None:
    world = World(tmp_path, compile_library(tmp_path, ENDS_1))
    world.upgrade(compile_library(tmp_path, ENDS_1.replace("text[0] + n", "text[0] + 2 * n").replace("first", "First")))
    assert world.call("lookup", 3) == ord("F") + 60
    assert world.call("lookup", 9) == ord("n") + 18


@in_child
def test_several_generations_and_back(tmp_path: Path) -> None:
    template = """
    static int state;
    static const char *const label = "%(label)s";
    %(extra)s
    int run(int x) { state += x; return state * %(factor)d %(more)s; }
    const char *name(void) { return label; }
    int keep(void) { return state; }
    """
    counter = "static int counter = 500; int tick(void) { return ++counter; }"

    def build(label: str, factor: int, extra: str = "", more: str = "") -> Path:
        return compile_library(tmp_path, template % {"label": label, "factor": factor, "extra": extra, "more": more})

    first = build("one", 1)
    second = build("two", 2, counter, "+ tick()")
    third = build("three", 3, counter, "+ tick() + 10000")
    fourth = build("two", 4, counter, "+ tick()")
    world = World(tmp_path, first)
    assert world.call("run", 1) == 1
    world.upgrade(second)
    assert world.call("run", 1) == 2 * 2 + 501
    tick = world.new_address("tick")
    world.upgrade(third)
    assert world.call("run", 1) == 3 * 3 + 502 + 10000
    assert world.call_at(tick) == 503
    assert world.text("name") == "three"
    world.upgrade(fourth)
    assert world.call("run", 1) == 4 * 4 + 504
    assert world.text("name") == "two"
    plan = world.upgrade(first)
    assert plan.image is None
    assert world.call("run", 1) == 5
    assert world.text("name") == "one"
    plan = world.upgrade(third)
    assert plan.image is None
    assert world.call("run", 1) == 6 * 3 + 505 + 10000
    assert world.text("name") == "three"
    plan = world.upgrade(second)
    assert world.call("run", 1) == 7 * 2 + 506
    assert world.call("keep") == 7
    world.upgrade(first)
    text = next(segment for segment in world.images[0].build.segments if segment.executable)
    content = world.images[0].build.read(text.vaddr, text.file_size)
    assert world.read(world.images[0].base + text.vaddr, text.file_size) == content


@in_child
def test_back_and_forth_places_nothing_again(tmp_path: Path) -> None:
    old, new = compile_library(tmp_path, SINK_1), compile_library(tmp_path, SINK_2)
    world = World(tmp_path, old)
    for round_ in range(20):
        assert (world.upgrade(new).image is None) == (round_ > 0)
        assert world.call("compute", 1, 3) == 24
        assert world.upgrade(old).image is None
        assert world.call("compute", 1, 3) == 21
    assert len(world.images) == 2
    assert not world.upgrade(old).edits


@in_child
def test_whole_then_changed_only(tmp_path: Path) -> None:
    old, new = compile_library(tmp_path, SINK_1), compile_library(tmp_path, SINK_2)
    world = World(tmp_path, old)
    world.call("add", 5)
    whole = world.upgrade(new, WHOLE)
    assert {"count", "sum"} <= {edit.what for edit in whole.edits}
    assert world.call("count") == 1
    narrow = world.upgrade(new)
    assert narrow.image is None
    assert {"count", "sum"} <= {edit.what for edit in narrow.edits}
    assert world.call("count") == 1
    assert world.call("compute", 1, 3) == 24
    world.upgrade(old)
    assert world.call("compute", 1, 3) == 21


@in_child
def test_whole_needs_a_whole_image(tmp_path: Path) -> None:
    old, new = compile_library(tmp_path, SINK_1), compile_library(tmp_path, SINK_2)
    world = World(tmp_path, old)
    world.upgrade(new)
    plan = world.upgrade(new, WHOLE)
    assert plan.image is not None
    assert world.call("compute", 1, 3) == 24
    world.call("add", 5)
    assert world.call("count") == 1


@pytest.mark.parametrize("mode", [RTLD_LAZY, RTLD_NOW])
@in_child
def test_lazy_binding_is_done_by_the_loader_or_by_us(tmp_path: Path, mode: int) -> None:
    source = """
    #include <string.h>
    #include <stdlib.h>
    int measure(const char *text) { return strlen(text) + atoi("7"); }
    int unused(const char *text) { return strtol(text, 0, 10); }
    """
    world = World(tmp_path, compile_library(tmp_path, source, "-Wl,-z,lazy", "-fno-builtin"), mode=mode)
    new = source.replace('"7"', '"8"').replace("0, 10)", "0, 16)")
    world.upgrade(compile_library(tmp_path, new, "-Wl,-z,lazy", "-fno-builtin"))
    assert world.call("measure", b"four") == 12
    assert world.call("unused", b"10") == 16


@in_child
def test_a_symbol_that_nobody_has_is_refused_and_a_weak_one_is_null(tmp_path: Path) -> None:
    source = "int run(void) { return 1; }\n"
    weak = "extern int nobody(void) __attribute__((weak)); int run(void) { return nobody ? nobody() : 2; }\n"
    strong = "extern int nobody(void); int run(void) { return nobody(); }\n"
    world = World(tmp_path, compile_library(tmp_path, source))
    world.upgrade(compile_library(tmp_path, weak))
    assert world.call("run") == 2
    with pytest.raises(Refused) as refusal:
        world.plan(compile_library(tmp_path, strong))
    assert [(reason.code, reason.subject) for reason in refusal.value.reasons] == [("unresolved-symbol", "nobody")]


@in_child
def test_interposed_symbols_stay_interposed(tmp_path: Path) -> None:
    front = """
    int shared = 77;
    const int limits[2] = { 5, 6 };
    int helper(void) { return 1000; }
    """
    source = """
    int shared = 1;
    const int limits[2] = { 1, 2 };
    int helper(void) { return 10; }
    int own(void) { return 20; }
    int run(int which) { return shared + helper() + own() + limits[which]; }
    int (*address(void))(void) { return helper; }
    """
    interposer = compile_library(tmp_path, front, soname="libfront.so")
    ctypes.CDLL(str(interposer), mode=RTLD_GLOBAL)
    world = World(tmp_path, compile_library(tmp_path, source, "-fno-inline", "-fno-builtin"))
    assert world.call("run", 1) == 77 + 1000 + 20 + 6
    address = world.call("address", result=ctypes.c_void_p)
    new = source.replace("own() +", "own() * 2 +").replace("return 10", "return 11").replace("{ 1, 2 }", "{ 1, 3 }")
    for options in (PlanOptions(trust_layout=True), WHOLE):
        plan = world.upgrade(compile_library(tmp_path, new, "-fno-inline", "-fno-builtin"), options)
        assert world.call("run", 1) == 77 + 1000 + 40 + 6
        assert world.call("address", result=ctypes.c_void_p) == address
    assert "interposed-constant" in {note.code for note in world.upgrade(world.library).notes} | {
        note.code for note in plan.notes
    }


@in_child
def test_a_new_constructor_is_called_and_old_ones_are_not(tmp_path: Path) -> None:
    source = """
    static int started, later;
    __attribute__((constructor)) static void start(void) { started++; }
    int run(void) { return started * 100 + later; }
    """
    new = (
        source.replace("started++", "started += 5")
        .replace("int run", "__attribute__((constructor)) static void more(void) { later++; }\nint run")
        .replace("100", "1000")
    )
    world = World(tmp_path, compile_library(tmp_path, source))
    plan = world.upgrade(compile_library(tmp_path, new))
    assert [call.name for call in plan.constructors] == ["more"]
    assert world.call("run") == 1001
    world.upgrade(world.library)
    again = world.upgrade(compile_library(tmp_path, new))
    assert again.constructors == ()
    assert world.call("run") == 1001


@in_child
def test_labels_as_values(tmp_path: Path) -> None:
    source = """
    int run(const unsigned char *code, int x) {
        static const void *const table[] = { &&stop, &&add, &&twice, &&negate };
        goto *table[*code];
    add: x += 1; goto *table[*++code];
    twice: x *= 2; goto *table[*++code];
    negate: x = -x; goto *table[*++code];
    stop: return x;
    }
    """
    world = World(tmp_path, compile_library(tmp_path, source))
    assert world.call("run", b"\1\2\3\0", 5) == -12
    world.upgrade(compile_library(tmp_path, source.replace("x += 1", "x += 3")))
    assert world.call("run", b"\1\2\3\0", 5) == -16
    world.upgrade(world.library)
    assert world.call("run", b"\1\2\3\0", 5) == -12


@in_child
def test_ifuncs_keep_their_choice(tmp_path: Path) -> None:
    source = """
    static int fast(int x) { return x + 1; }
    static int slow(int x) { return x + 2; }
    typedef int (*function)(int);
    static function choose(void) { return %s; }
    int pick(int x) __attribute__((ifunc("choose")));
    static int hidden_pick(int x) __attribute__((ifunc("choose")));
    int run(int x) { return pick(x) + 10 * hidden_pick(x); }
    """
    world = World(tmp_path, compile_library(tmp_path, source % "fast"))
    assert world.call("run", 1) == 22
    new = (source % "fast").replace("x + 1", "x + 5").replace("10 *", "100 *")
    world.upgrade(compile_library(tmp_path, new))
    assert world.call("run", 1) == 606
    assert world.call_at(world.address("pick"), 1) == 6


@in_child
def test_imports_of_other_modules(tmp_path: Path) -> None:
    source = "static int state; int work(int x) { return state += x; }\n"
    user = "extern int work(int); int go(int x) { return work(x) + 1; }\n"
    old = compile_library(tmp_path, source)
    world = World(tmp_path, old, mode=RTLD_GLOBAL | RTLD_NOW)
    caller = ctypes.CDLL(str(compile_library(tmp_path, user, soname="libuser.so")))
    assert caller.go(1) == 2
    home = world.address("work")
    slot = _slot_holding(world, home, "libuser.so")
    new = compile_library(tmp_path, source.replace("+= x", "+= 2 * x"))
    plan = world.upgrade(new, PlanOptions(imports=True, trust_layout=True), [(slot, home, "libuser.so: work")])
    assert {edit.kind for edit in plan.edits} == {EditKind.JUMP, EditKind.IMPORT}
    copy = world.new_address("work")
    assert world.read(slot, 8) == struct.pack("<Q", copy)
    assert caller.go(1) == 4
    world.upgrade(old, PlanOptions(trust_layout=True), [(slot, copy, "libuser.so: work")])
    assert world.read(slot, 8) == struct.pack("<Q", home)
    assert caller.go(1) == 5


def _slot_holding(world: World, value: int, library: str) -> int:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(library):
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            content = world.read(low, high - low)
            place = content.find(struct.pack("<Q", value))
            if place >= 0:
                return low + place
    raise AssertionError("no slot")


@in_child
def test_two_modules_where_one_needs_what_is_new_in_the_other(tmp_path: Path) -> None:
    low = "static int base = 5; int low(int x) { return x + base; } %s"
    high = "extern int low(int); %s int high(int x) { return low(x) %s; }"
    added = "int mask[2] = { 3, 4 }; static int times; int extra(int x) { return x * 10 + 4 + times++; }"
    old_low = compile_library(tmp_path, low % "", soname="liblow.so")
    new_low = compile_library(tmp_path, low % added, soname="liblow.so")
    lower = World(tmp_path, old_low, mode=RTLD_NOW | RTLD_GLOBAL)
    old_high = compile_library(tmp_path, high % ("", ""), libraries=[str(old_low)])
    uses = ("extern int extra(int), mask[2];", "+ extra(x) + mask[0]")
    new_high = compile_library(tmp_path, high % uses, libraries=[str(new_low)])
    higher = World(tmp_path, old_high)
    assert higher.call("high", 1) == 6
    with pytest.raises(Refused) as refusal:
        higher.plan(new_high)
    assert {reason.subject for reason in refusal.value.reasons} == {"extra", "mask"}

    class Both:
        """A scene that knows what the lower module's later images offer."""

        read, tls_module, tls_block = higher.read, None, None

        def resolve(self, symbol: str, version: str) -> int | None:
            return higher.resolve(symbol, version) or lower.new_address(symbol)

    lower.upgrade(new_low)
    higher.apply(higher.plan(new_high, scene=Both()))
    assert higher.call("high", 1) == 6 + 14 + 3
    assert higher.call("high", 1) == 6 + 15 + 3
    higher.upgrade(old_high)
    lower.upgrade(old_low)
    assert higher.call("high", 1) == 6


@in_child
def test_foreign_changes_of_an_entry_are_refused(tmp_path: Path) -> None:
    world = World(tmp_path, compile_library(tmp_path, SINK_1))
    entry = world.address("compute")
    world.write([(entry, b"\xcc")])
    with pytest.raises(Refused) as refusal:
        world.plan(compile_library(tmp_path, SINK_2))
    assert [(reason.code, reason.subject) for reason in refusal.value.reasons] == [("foreign-edit", "compute")]


@in_child
def test_a_base_out_of_reach_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, compile_library(tmp_path, SINK_1))
    new = world.open(compile_library(tmp_path, SINK_2))
    comparisons = [world.compare(world.images[0].build, new)]
    far = world.images[0].base - (3 << 30)
    with pytest.raises(Refused) as refusal:
        make_plan("x", world.images, 0, new, comparisons, world, far, PlanOptions(trust_layout=True))
    assert {reason.code for reason in refusal.value.reasons} == {"out-of-reach"}


@in_child
def test_the_image_is_small(tmp_path: Path) -> None:
    filler = "".join(f"int filler{n}(int x) {{ return x * {n} + {n * 7}; }}\n" for n in range(600))
    strings = "".join(f'const char *text{n}(void) {{ return "this is text number {n}"; }}\n' for n in range(300))
    source = filler + strings + "int run(void) { return 1; }\n"
    world = World(tmp_path, compile_library(tmp_path, source))
    plan = world.upgrade(compile_library(tmp_path, source.replace("return 1;", "return 2;")))
    assert world.call("run") == 2
    assert memory_of(plan) <= 2 * 4096
    assert plan.image is not None
    assert plan.image.size == footprint(world.images[1].build)


def test_reach_leaves_every_displacement_within_31_bits(tmp_path: Path) -> None:
    from hotupgrade.binary.build import Build

    build = Build.open(compile_library(tmp_path, SINK_1))
    homes = [Image(build, 0x7F0000000000), Image(build, 0x7F0040000000)]
    size = 0x300000
    low, high = reach(homes, size)
    highest = homes[1].base + build.span
    assert highest - low < 1 << 31
    assert high + size - homes[0].base < 1 << 31
    assert low % 4096 == high % 4096 == 0
    low, _ = reach([Image(build, 0x400000)], size)
    assert low >= 1 << 16
