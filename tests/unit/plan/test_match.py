"""Pairing names: what the compiler renumbered is found again, what cannot be told is not guessed."""

from __future__ import annotations

import random

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.plan.compare import compare
from hotupgrade.plan.match import Match, match
from hotupgrade.plan.scopes import scopes_of
from hotupgrade.plan.shape import shapes_of
from unit.conftest import Compiler


def pair(old: Build, new: Build) -> Match:
    return match(shapes_of(old), shapes_of(new))


def by_content(build: Build) -> dict[tuple[str, bytes], int]:
    """(base name, initial contents) to row, for variables whose contents tell them apart."""
    entities = build.entities
    return {
        (name.split(".")[0], build.read(int(address), int(size))): row
        for row, (name, address, size, kind) in enumerate(
            zip(entities.names, entities.address.tolist(), entities.size.tolist(), entities.kind.tolist(), strict=True)
        )
        if kind in (2, 3, 4) and size
    }


def user(number: int, extra: str = "") -> str:
    """A function with two statics that other functions have too; the contents name the owner."""
    return f"""
    int use{number}(int x)
    {{
        static int rl = {number * 2 + 1000}; static int once = {number * 2 + 1001};
        {extra}
        if (!once) {{ once = x; g(x + {number}); }}
        return rl += x * {number};
    }}
    """


PROLOGUE = "extern int g(int);\n"
USERS = [user(i) for i in range(40)]


def test_statics_of_the_same_name_are_told_by_their_functions(compiler: Compiler) -> None:
    shuffled = [*USERS, user(70), user(71)]
    random.Random(3).shuffle(shuffled)
    old = compiler.build(PROLOGUE + "".join(USERS))
    new = compiler.build(PROLOGUE + "".join(shuffled))
    check_by_content(old, new, expected=80)


def test_statics_of_functions_that_all_changed(compiler: Compiler) -> None:
    """No function has the shape that it had; who refers to what is the evidence."""
    rebuilt = [user(i, "x = g(x) * 3;") for i in range(40)]
    rebuilt.insert(7, user(90))
    old = compiler.build(PROLOGUE + "".join(USERS))
    new = compiler.build(PROLOGUE + "".join(rebuilt))
    check_by_content(old, new, expected=80)


def test_optimised_differently(compiler: Compiler) -> None:
    old = compiler.build(PROLOGUE + "".join(USERS), "-O1")
    new = compiler.build(PROLOGUE + "".join(reversed(USERS)), "-O3")
    check_by_content(old, new, expected=80)


def check_by_content(old: Build, new: Build, expected: int) -> None:
    found = pair(old, new)
    ours, theirs = by_content(old), by_content(new)
    common = ours.keys() & theirs.keys()
    assert len(common) >= expected
    for key in common:
        assert found.new_of[ours[key]] == theirs[key], key
        assert found.old_of[theirs[key]] == ours[key], key
    for key in theirs.keys() - ours.keys():
        assert found.old_of[theirs[key]] == -1, key
    assert found.ambiguous_new == frozenset()


SEVERAL = """
int f(int x)
{{
    {first}
    if (x == 1) {{ static int rl = 11; g(rl++); puts("one"); }}
    if (x == 2) {{ static int rl = 22; g(rl++); puts("two"); }}
    {middle}
    if (x == 3) {{ static int rl = 33; g(rl++); puts("three"); }}
    return x;
}}
"""
PUTS = "extern int g(int); extern int puts(const char *);\n"


def test_several_of_one_name_in_a_function_that_changed(compiler: Compiler) -> None:
    """Position in the changed function says nothing; the text beside each use does."""
    old = compiler.build(PUTS + SEVERAL.format(first="", middle=""))
    middle = 'if (x == 9) { static int rl = 99; g(rl++); puts("nine"); }'
    new = compiler.build(PUTS + SEVERAL.format(first="x = g(x) ^ 5;", middle=middle))
    found = pair(old, new)
    ours, theirs = by_content(old), by_content(new)
    for number in (11, 22, 33):
        key = ("rl", number.to_bytes(4, "little"))
        assert found.new_of[ours[key]] in (theirs[key], -1)
        if found.new_of[ours[key]] == -1:
            assert theirs[key] in found.ambiguous_new
    assert found.old_of[theirs["rl", (99).to_bytes(4, "little")]] == -1


def test_what_cannot_be_told_is_ambiguous(compiler: Compiler) -> None:
    """Two of three interchangeable variables remain: nobody can say which."""
    line = "if (x == {0}) {{ static int state; g(state++ + {0}); }}"
    lines = [line.format(i) for i in (1, 2, 8, 9, 5)]
    old = compiler.build(PUTS + f"int f(int x) {{ {''.join(lines[:2])} return g(x); }}")
    new = compiler.build(PUTS + f"int f(int x) {{ x *= g(7); {''.join(lines[2:])} return x; }}")
    found = pair(old, new)
    states = {row for row, name in enumerate(new.entities.names) if name.startswith("state")}
    assert len(states) == 3
    assert found.ambiguous_new == states
    assert all(found.old_of[row] == -1 for row in states)


def test_a_function_scope_static_that_belongs_to_another_function_now(compiler: Compiler) -> None:
    """One `n` went and one came: the same name and size are no proof."""
    old = compiler.build(PUTS + "int f(int x) { static int n; return n += g(x); } int h(int x) { return g(x); }")
    new = compiler.build(PUTS + "int f(int x) { return g(x); } int h(int x) { static int n; return n += g(x) * 2; }")
    found = pair(old, new)
    (row,) = [row for row, name in enumerate(new.entities.names) if name.startswith("n.")]
    assert found.old_of[row] == -1
    assert row in found.ambiguous_new


def test_globals_pair_by_name_and_kind(compiler: Compiler) -> None:
    old = compiler.build("int a = 1; int b = 2; int gone = 3; int becomes_code = 4; int becomes_constant = 5;")
    new = compiler.build(
        "int fresh = 9; int b = 2; int a = 1; int becomes_code(void) { return 0; } const int becomes_constant = 5;"
    )
    found = pair(old, new)
    for name in ("a", "b"):
        assert found.new_of[old.by_name[name]] == new.by_name[name]
    for name in ("gone", "becomes_code", "becomes_constant"):
        assert found.new_of[old.by_name[name]] == -1
    for name in ("fresh", "becomes_code", "becomes_constant"):
        assert found.old_of[new.by_name[name]] == -1
    assert {note.subject for note in found.notes if note.code == "kind-changed"} == {"becomes_code", "becomes_constant"}
    assert found.ambiguous_new == frozenset()


def test_a_constant_that_gained_a_pointer_stays_itself(compiler: Compiler) -> None:
    text = "struct s {{ long n; const char *p; }}; extern const struct s table; const struct s table = {{ 3, {} }};"
    old, new = compiler.build(text.format("0")), compiler.build(text.format('"text"'))
    assert old.entities.kind[old.by_name["table"]] != new.entities.kind[new.by_name["table"]]
    assert pair(old, new).new_of[old.by_name["table"]] == new.by_name["table"]


def test_static_became_global_and_moved_to_another_file(compiler: Compiler) -> None:
    use = "int use{0}(int x) {{ return state += x; }}"
    old = compiler.build({"a.c": "static int state = 1;" + use.format(1), "b.c": "int other;"})
    new = compiler.build({"a.c": "extern int state;" + use.format(1), "b.c": "int other; int state = 1;"})
    found = pair(old, new)
    row = old.entities.names.index("state")
    assert found.new_of[row] == new.by_name["state"]


def test_files_of_the_same_name_keep_their_statics_apart(
    compiler: Compiler, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def build(order: tuple[str, ...]) -> Build:
        texts = {
            "one": "static int state = 1; int one(int x) { return state += x; }",
            "two": "static int state = 2; int two(int x) { return state *= x; }",
        }
        main = {}
        for which in order:
            directory = tmp_path_factory.mktemp(which)
            (directory / "same.c").write_text(texts[which])
            main[which] = str(directory / "same.c")
        return compiler.build({"empty.c": ""}, *main.values())

    old, new = build(("one", "two")), build(("two", "one"))
    assert sorted(old.entities.files[row] for row, n in enumerate(old.entities.names) if n == "state") == ["same.c"] * 2
    check_by_content(old, new, expected=2)


def test_equal_constants_need_no_single_partner(compiler: Compiler) -> None:
    note = 'static const char __attribute__((used)) note[] = "abc";'
    use = f"const char *use{{0}}(int x) {{{{ {note.replace('{', '{{').replace('}', '}}')} return g(x) ? note : 0; }}}}"
    old = compiler.build(PUTS + "".join(use.format(i) for i in range(3)))
    new = compiler.build(PUTS + "".join(use.format(i) for i in (5, 2, 1, 6, 0, 7)))
    found = pair(old, new)
    for row, name in enumerate(new.entities.names):
        if name.startswith("note"):
            assert old.entities.names[found.old_of[row]].startswith("note")
    assert found.ambiguous_new == frozenset()


def test_clones_pair_by_their_callers(compiler: Compiler) -> None:
    """Numbers of .constprop clones follow the order of the file."""
    text = """
    __attribute__((noinline)) static int work(int *p, int mode, int x) {{ while (x--) *p += mode * g(x); return *p; }}
    {0}
    """
    callers = [
        "int a(int *p, int x) { return work(p, 3, x) + work(p + 1, 3, x); }",
        "int b(int *p, int x) { return work(p, 5, x); }",
    ]
    old = compiler.build(PUTS + text.format("".join(callers)), "-O3", "-fno-ipa-icf")
    new = compiler.build(PUTS + text.format("".join(reversed(callers))), "-O3", "-fno-ipa-icf")
    found = pair(old, new)
    clones = [row for row, name in enumerate(new.entities.names) if name.startswith("work")]
    assert clones
    assert all(found.old_of[row] >= 0 for row in clones)


def test_thread_locals_of_one_name_pair_while_the_block_is_the_same(compiler: Compiler) -> None:
    text = PUTS + "".join(f"int *t{i}(void) {{ static __thread int var; return &var; }}" for i in range(6))
    old, new = compiler.build(text), compiler.build("int more(void) { return 5; }\n" + text)
    found = pair(old, new)
    rows = [row for row, name in enumerate(new.entities.names) if name.startswith("var")]
    assert len(rows) == 6
    assert all(old.entities.address[found.old_of[row]] == new.entities.address[row] for row in rows)


@pytest.mark.parametrize("records", [(), ("-Wl,--emit-relocs",)], ids=["plain", "records"])
def test_thread_locals_of_another_block(compiler: Compiler, records: tuple[str, ...]) -> None:
    """By who uses them, which the code itself tells."""
    function = "int t{0}(int x) {{ static __thread int var{1}; return var += x * {0} + 1; }}"
    old_text = PUTS + "".join(function.format(i, "") for i in range(4))
    new_text = PUTS + "".join(function.format(i, "") for i in (3, 9, 0, 1, 2))
    flags = ("-ftls-model=local-dynamic", *records)
    old, new = compiler.build(old_text, *flags), compiler.build(new_text, *flags)
    found = pair(old, new)
    assert found.ambiguous_new == frozenset()
    assert sum(1 for row, n in enumerate(new.entities.names) if n.startswith("var") and found.old_of[row] >= 0) == 4


def test_scopes_from_debug_information_decide(compiler: Compiler) -> None:
    text = "int f(int x) { static int n; return n += g(x); } int h(int x) { return g(x); }"
    other = "int f(int x) { return g(x); } int h(int x) { static int n; return n += g(x) * 2; }"
    old, new = compiler.build(PUTS + text), compiler.build(PUTS + other)
    rows = [next(row for row, n in enumerate(b.entities.names) if n.startswith("n.")) for b in (old, new)]
    apart = match(shapes_of(old), shapes_of(new), {rows[0]: "f"}, {rows[1]: "h"})
    assert apart.ambiguous_new == frozenset()
    assert apart.old_of[rows[1]] == -1


def test_debug_information_settles_what_is_ambiguous_without(compiler: Compiler) -> None:
    """Two functions with a static each, rewritten and in another order."""
    line = "int {f}(int x) {{ static int state; return {body}; }}"

    def build(body: str, *flags: str) -> Build:
        texts = (line.format(f=f, body=body.format(i=i)) for i, f in enumerate(("one", "two")))
        order = reversed(list(texts)) if "*" in body else texts
        return compiler.build(PUTS + "".join(order), *flags)

    bodies = "g(state += x + {i})", "(state = g(x) * {i} - state)"
    old, new = (build(body, "-g") for body in bodies)
    comparison = compare(old, new)
    assert comparison.ambiguous_new == frozenset()
    scopes = scopes_of(old), scopes_of(new)
    assert sorted(scopes[0].values()) == sorted(scopes[1].values()) == ["one", "two"]
    for row, scope in scopes[1].items():
        assert scopes[0][int(comparison.old_of[row])] == scope


def test_names_that_shared_an_address_and_no_longer_do(compiler: Compiler) -> None:
    old = compiler.build('int f(void) { return 1; } int h(void) __attribute__((alias("f")));')
    new = compiler.build("int f(void) { return 1; } int h(void) { return 2; }")
    found = pair(old, new)
    row = old.by_name["f"]
    preferred = old.entities.names[row]
    assert found.new_of[row] == new.by_name[preferred]
    assert [note.code for note in found.notes] == ["alias-split"]
    back = pair(new, old)
    assert {int(back.new_of[new.by_name["f"]]), int(back.new_of[new.by_name["h"]])} == {row}
    assert back.notes == ()


def test_a_build_matches_itself(compiler: Compiler) -> None:
    build = compiler.build(PROLOGUE + "".join(USERS))
    found = pair(build, Build.from_bytes(build.data, "again"))
    assert found.old_of.tolist() == list(range(len(build.entities)))
    assert found.new_of.tolist() == found.old_of.tolist()
