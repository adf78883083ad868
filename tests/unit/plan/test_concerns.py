"""What is listed for a person: found where it is, and not where it is not."""

from __future__ import annotations

import pytest

from hotupgrade.plan.compare import compare
from hotupgrade.plan.concerns import Concern, ConcernKind, concerns, creates, duty
from unit.conftest import Compiler

HEAD = r"""
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
struct conn { char *name, *more; int state; };
extern void conn_unref(struct conn *); extern int checksum(const void *, int);
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
"""


def found(compiler: Compiler, old: str, new: str, *flags: str) -> list[Concern]:
    builds = [compiler.build(HEAD + text, *flags) for text in (old, new)]
    return concerns(compare(*builds))


def of(kind: ConcernKind, every: list[Concern]) -> dict[str, str]:
    return {concern.subject: concern.text for concern in every if concern.kind is kind}


@pytest.mark.parametrize("flags", [(), ("-O0",), ("-fno-plt",), ("-fcf-protection=full",)])
def test_a_duty_to_free_that_moved_comes_first(compiler: Compiler, flags: tuple[str, ...]) -> None:
    old = """
    void clean(struct conn *c) { free(c->name); c->name = NULL; c->state = 0; checksum(c, 1); }
    int other(struct conn *c) { puts("a message"); free(c->name); return checksum(c, 2); }
    """
    new = """
    void clean(struct conn *c) { free(c->name); checksum(c, 3); free(c->more); c->name = NULL; c->state = 0; }
    int other(struct conn *c) { puts("another message"); free(c->name); return checksum(c, 2); }
    """
    every = found(compiler, old, new, *flags)
    assert every[0].kind is ConcernKind.OWNERSHIP
    assert every[0].text == "clean calls free() 2× instead of 1×"
    assert every[0].evidence == ("was: free()", "now: free() 2×")
    assert of(ConcernKind.DUTIES, every) == {"other": "other: free(), as before"}
    assert of(ConcernKind.TEXT, every) == {
        "other": 'other names other texts: - "a message", + "another message"',
    }
    assert of(ConcernKind.CREATION, every) == {}


def test_a_lock_that_came_and_a_reference_that_went(compiler: Compiler) -> None:
    old = "int change(struct conn *c) { conn_unref(c); return c->state++; }"
    new = """int change(struct conn *c)
    { pthread_mutex_lock(&mutex); c->state++; pthread_mutex_unlock(&mutex); return checksum(c, 1); }"""
    texts = of(ConcernKind.OWNERSHIP, found(compiler, old, new))
    assert texts == {
        "change": "change now calls pthread_mutex_lock(), pthread_mutex_unlock(); no longer calls conn_unref()"
    }


def test_a_helper_that_was_merged_into_its_caller_is_no_difference(compiler: Compiler) -> None:
    """The compiler may inline a local function in one build only: what it frees is then freed by its caller."""
    text = """static %s void helper(struct conn *c) { free(c->name); free(c->more); }
    void outer(struct conn *c) { helper(c); checksum(c, %d); }"""
    every = found(compiler, text % ("__attribute__((noinline))", 1), text % ("inline", 2))
    assert of(ConcernKind.OWNERSHIP, every) == {}
    assert of(ConcernKind.DUTIES, every) == {"outer": "outer: free() 2×, as before"}


def test_what_a_new_function_frees_counts_as_its_callers(compiler: Compiler) -> None:
    old = "void outer(struct conn *c) { checksum(c, 1); }"
    new = """__attribute__((noinline)) void forget(struct conn *c) { free(c->name); free(c->more); checksum(c, 3); }
    void outer(struct conn *c) { forget(c); checksum(c, 2); }"""
    assert of(ConcernKind.OWNERSHIP, found(compiler, old, new)) == {"outer": "outer now calls free() 2×"}


def test_one_who_only_hands_on_to_free_frees(compiler: Compiler) -> None:
    text = """__attribute__((noinline)) void give_back(struct conn *c) { c->state = 0; free(c); }
    void outer(struct conn *c) { if (c->state == %d) { give_back(c); } checksum(c, 1); %s }"""
    texts = of(ConcernKind.OWNERSHIP, found(compiler, text % (1, ""), text % (1, "give_back(c + 1); checksum(c, 2);")))
    assert texts == {"outer": "outer calls give_back() 2× instead of 1×"}


def test_initial_values_that_a_running_process_does_not_get(compiler: Compiler) -> None:
    text = """
    int limit = %d; long below = %d; char mode[16] = "%s"; static int hidden = %d; unsigned mask = 0x%x;
    __thread int per_thread = %d; int (*hook)(const char *) = %s; const char *title = "%s"; int table[20] = {1, 2, %d};
    int use(int x) { return limit + below + mode[x] + ++hidden + per_thread + hook(title) + table[x] + mask; }
    """
    every = found(
        compiler,
        text % (10, -1, "slow", 3, 0xF0000000, 5, "puts", "first", 3),
        text % (20, -2, "fast", 4, 0xF0000001, 6, "puts", "second", 4),
    )
    texts = of(ConcernKind.INITIAL, every)
    stays = "; the running value stays"
    assert texts["limit"] == f"limit: 10 → 20{stays}"
    assert texts["below"] == f"below: -1 → -2{stays}"
    assert texts["mode"] == f'mode: "slow" → "fast"{stays}'
    assert texts["hidden"] == f"hidden: 3 → 4{stays}"
    assert texts["mask"] == f"mask: 0xf0000000 → 0xf0000001{stays}"
    assert texts["per_thread"] == f"per_thread: 5 → 6{stays}"
    assert texts["title"] == f'title: "first" → "second"{stays}'
    assert texts["table"] == f"table: at +8 3 → 4{stays}"
    assert "hook" not in texts


def test_values_are_written_as_their_types_say(compiler: Compiler) -> None:
    """With debug information: fields by name, signs, enumerators, pointers."""
    text = """
    #include <stdbool.h>
    #include <stdatomic.h>
    enum mode { MODE_SLOW, MODE_FAST = 7 };
    struct rate { int burst; unsigned flags : 3, level : 5; signed delta : 4; };
    struct port {
        char name[12]; enum mode mode; bool up; double weight; struct rate rates[2]; int (*run)(const char *);
        struct { short low; } part; unsigned long mask; _Atomic int seen; struct port *next;
    };
    enum mode mode = %s; bool up = %s; float weight = %s; signed char below = %d; int grid[2][3] = {{0, 1, %d}};
    struct port port = { "%s", %s, %s, %s, {{1, 2, 3, -1}, {%d, %d, %d, %d}}, %s, {%d}, %s, %d, %s };
    struct port *use(int x) { mode += below + grid[x][x] + weight + up; port.part.low += mode; return &port; }
    """
    first = ("MODE_SLOW", "false", "0.5f", -1, 4, "eth0", "MODE_SLOW", "true", "1.5", 5, 6, 7, -2, "puts", -3)
    second = ("MODE_FAST", "true", "2.5f", -2, 5, "eth1", "MODE_FAST", "false", "2.5", 6, 5, 8, -3, "remove", -4)
    every = found(compiler, text % (*first, "1", 8, "0"), text % (*second, "~0UL", 9, "&port"), "-g")
    stays = "; the running value stays"
    texts = {name: text.removesuffix(stays) for name, text in of(ConcernKind.INITIAL, every).items()}
    assert texts.pop("port") == (
        'port: name "eth0" → "eth1", mode MODE_SLOW → MODE_FAST, up true → false, weight 1.5 → 2.5 and in 9 more places'
    )
    assert texts == {
        "mode": "mode: MODE_SLOW → MODE_FAST",
        "up": "up: false → true",
        "weight": "weight: 0.5 → 2.5",
        "below": "below: -1 → -2",
        "grid": "grid: [0][2] 4 → 5",
    }


@pytest.mark.parametrize(
    ("field", "old", "new", "said"),
    [
        ("unsigned flags : 3, level : 5", "{2, 3}", "{2, 4}", "value.level 3 → 4"),
        ("signed delta : 4", "{-1}", "{-2}", "value.delta -1 → -2"),
        ("struct { short low; } part", "{{-3}}", "{{-4}}", "value.part.low -3 → -4"),
        ("unsigned long mask", "{1}", "{~0UL}", "value.mask 1 → 0xffffffffffffffff"),
        ("_Atomic int seen", "{8}", "{9}", "value.seen 8 → 9"),
        ("void *next", "{0}", "{&holder}", "value.next NULL → holder"),
        ("int (*run)(const char *)", "{puts}", "{remove}", "value.run puts → remove"),
        ("struct { long a, b; } pairs[2]", "{{{1, 2}, {3, 4}}}", "{{{1, 2}, {3, 5}}}", "at +32 4 → 5"),
        ("union { int i; float f; } both", "{{1}}", "{{2}}", "value.both.i 1 → 2"),
        ("struct holder *list[2]", "{{0, 0}}", "{{0, &holder}}", "value.list[1] NULL → holder"),
    ],
)
def test_a_field_is_found_by_name(compiler: Compiler, field: str, old: str, new: str, said: str) -> None:
    text = """
    struct holder {{ long first; struct value {{ {field}; }} value; }};
    extern struct holder holder; struct holder holder = {{ 1, {value} }};
    struct holder *use(void) {{ holder.first++; return &holder; }}
    """
    builds = (text.format(field=field, value=value) for value in (old, new))
    texts = of(ConcernKind.INITIAL, found(compiler, *builds, "-g"))
    assert texts == {"holder": f"holder: {said}; the running value stays"}


def test_tables_of_constants_that_change_in_place(compiler: Compiler) -> None:
    text = """
    extern int one(int); extern int two(int);
    struct class { const char *name; int (*run)(int); int level; };
    const struct class kind = { "kind", %s, %d };
    int use(int x) { return kind.run(x) + checksum(&kind, 1); }
    """
    every = found(compiler, text % ("one", 1), text % ("two", 2))
    assert of(ConcernKind.CONSTANT, every) == {"kind": "kind: at +8 one → two, at +16 1 → 2; changes with the commit"}


def test_what_acts_only_when_something_is_made(compiler: Compiler) -> None:
    text = """
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static __attribute__((noinline)) void set_limits(int *p) { *p = checksum(p, %d); }
    static __attribute__((noinline)) void fill(int *p) { *p = checksum(p, 1%d); }
    static void prepare(void) { checksum(&once, %d); }
    void conn_init(int *p) { set_limits(p); fill(p); }
    void use(int *p) { pthread_once(&once, prepare); fill(p); checksum(p, 4%d); }
    __attribute__((constructor)) static void begin(void) { checksum(&once, 5%d); }
    """
    texts = of(ConcernKind.CREATION, found(compiler, text % (1, 1, 1, 1, 1), text % (2, 2, 2, 2, 2)))
    after = "what exists keeps what the old code gave it"
    assert texts.pop("set_limits") == f"set_limits acts when something is made (called only from conn_init()): {after}"
    assert texts.pop("prepare") == f"prepare acts when something is made (run by pthread_once()): {after}"
    assert texts.pop("begin") == f"begin acts when something is made (a constructor): {after}"
    assert set(texts) <= {"conn_init"}, "fill() and use() act on what exists"


@pytest.mark.parametrize(("flag", "seen"), [("-g", True), ("-g0", False)])
def test_members_of_tables_of_functions(compiler: Compiler, flag: str, seen: bool) -> None:
    """The name of the member says when a function is called; without types nobody can tell."""
    text = """
    struct class { int (*construct)(int *); int (*run)(int *); };
    static int first(int *p) { return checksum(p, 1%d); }
    static int second(int *p) { return checksum(p, 2%d); }
    extern const struct class plain_class; const struct class plain_class = { first, second };
    """
    texts = of(ConcernKind.CREATION, found(compiler, text % (1, 1), text % (2, 2), flag))
    assert set(texts) == ({"first"} if seen else set())
    assert not seen or "(it is plain_class.construct)" in texts["first"]


def test_a_build_that_differs_in_nothing_raises_no_concern(compiler: Compiler) -> None:
    text = "int limit = 3; void clean(struct conn *c) { free(c->name); limit++; }"
    assert found(compiler, text, text) == []


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("free", "frees"),
        ("conn_clean__", None),
        ("ofpbuf_delete", "frees"),
        ("ofpbuf_uninit", "frees"),
        ("ofpbuf_put_uninit", None),
        ("ovsrcu_postpone__", "frees"),
        ("_ZdlPvm", "frees"),
        ("_ZN4ConnD1Ev", "frees"),
        ("pthread_mutex_lock", "locks"),
        ("ovs_rwlock_wrlock_at", "locks"),
        ("block", None),
        ("clock_gettime", None),
        ("netdev_ref", "references"),
        ("prefer", None),
        ("hmap_init", "initialises"),
    ],
)
def test_what_names_say(name: str, what: str | None) -> None:
    assert duty(name) == what


@pytest.mark.parametrize(
    ("name", "yes"), [("netdev_linux_construct", True), ("_ZN4ConnC2Ei", True), ("dp_packet_set", False)]
)
def test_what_makes_something(name: str, yes: bool) -> None:
    assert creates(name) is yes
