"""Types of two builds: every difference that matters is refused by name, and none that does not."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotupgrade.binary.build import Build
from hotupgrade.errors import Reason
from hotupgrade.plan.compare import compare
from hotupgrade.plan.layouts import changes
from hotupgrade.plan.model import Comparison, Image
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.verdict import verdict
from unit.conftest import Compiler

BASE = 0x7F0000000000


def judge(
    old: Build, new: Build, options: PlanOptions | None = None, exempt: frozenset[str] = frozenset()
) -> tuple[dict[str, Reason], dict[str, Reason]]:
    """Refusals and notes by subject."""
    found = verdict([Image(old, BASE)], 0, new, [compare(old, new)], options or PlanOptions(), exempt)
    refusals, notes = ({reason.subject: reason for reason in reasons} for reasons in found)
    return refusals, notes


def codes(reasons: dict[str, Reason]) -> dict[str, str]:
    return {subject: reason.code for subject, reason in reasons.items()}


HOLDER = """
#include <stdint.h>
#include <stdlib.h>
{types}
static struct holder {{ struct item *first; enum colour colour; }} holder;
int add(int x) {{ struct item *item = calloc(1, sizeof *item); item->last = x; holder.first = item; return {version}; }}
int get(void) {{ return holder.first ? holder.first->last + (int) holder.colour : {version}; }}
"""
COLOURS = "enum colour { RED, GREEN, BLUE };"
ITEM = "struct item { int a; int b; unsigned flag : 3; struct item *next; int last; };"


def versions(compiler: Compiler, old: str, new: str, *flags: str) -> tuple[Build, Build]:
    texts = (HOLDER.format(types=types, version=version) for version, types in ((1, old), (2, new)))
    one, two = (compiler.build(text, "-g", *flags) for text in texts)
    return one, two


CHANGES = {
    "a field was added": ("int last;", "int last; long more;", "32 → 40 bytes, +more at 32"),
    "a field fills padding": ("unsigned flag : 3;", "unsigned flag : 3; char small;", "+small at 9"),
    "a field is gone": ("int b;", "", "-b at 4"),
    "two changed places": ("int a; int b;", "int b; int a;", "a moved at 0 → 4, b moved at 4 → 0"),
    "another size": ("int b;", "long b;", "b: int32 → int64"),
    "another sign": ("int b;", "unsigned b;", "b: int32 → uint32"),
    "another type": ("int b;", "float b;", "b: int32 → float32"),
    "wider bits": ("flag : 3", "flag : 4", "flag: 3 bits → 4 bits"),
    "no bits": ("unsigned flag : 3;", "unsigned flag;", "flag: 3 bits → no bit-field"),
    "atomic": ("int b;", "_Atomic(int) b;", "b: int32 → int32 _Atomic"),
    "an array": ("int b;", "short b[2];", "b: int32 → int16 [2]"),
    "a longer array": ("int b;", "int b[3];", "b: int32 → int32 [3]"),
    "another name": ("int b;", "int c;", "b is called c"),
    "a pointer to another": ("struct item *next;", "struct holder *next;", "next: struct item * → struct holder *"),
    "an unnamed union": ("int b;", "union { int b; float f; };", "+f at 4"),
    "aligned": ("struct item {", "struct __attribute__((aligned(16))) item {", "alignment natural → 16"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_structure_is_refused_by_field(compiler: Compiler, change: str) -> None:
    before, after, words = CHANGES[change]
    old, new = versions(compiler, COLOURS + ITEM, COLOURS + ITEM.replace(before, after))
    refusals, _ = judge(old, new)
    assert codes(refusals) == {"struct item": "type-changed"}
    assert words in refusals["struct item"].text
    assert "holder" not in codes(judge(new, old)[0])


HARMLESS = {
    "typedefs": ("int b;", "typedef int number; number b;"),
    "const": ("int b;", "const volatile int b;"),
    "long long": ("int b;", "int32_t b;"),
    "an unnamed structure": ("int a; int b;", "struct { int a; int b; };"),
    "a new type": ("struct item {", "struct more { int x; }; struct more *more; struct item {"),
    "a line further down": ("struct item {", "\n\n\nstruct item {"),
    "a pointer to const": ("struct item *next;", "const struct item *restrict next;"),
}


@pytest.mark.parametrize("change", HARMLESS)
def test_what_does_not_change_the_layout_is_not_refused(compiler: Compiler, change: str) -> None:
    before, after = HARMLESS[change]
    item = ITEM
    if after.startswith("typedef"):
        declaration, _, after = after.partition("; ")
        item = f"{declaration}; {ITEM}"
    old, new = versions(compiler, COLOURS + ITEM, COLOURS + item.replace(before, after))
    assert judge(old, new)[0] == {}


ENUMERATORS = {
    "renumbered": ("RED, GREEN, BLUE", "NEW, RED, GREEN, BLUE", "RED 0 → 1"),
    "gone": ("RED, GREEN, BLUE", "RED, GREEN", "BLUE 2 → gone"),
    "another name": ("RED, GREEN, BLUE", "RED, GREEN, AZURE", "BLUE 2 → called AZURE"),
    "the end moved": (
        "RED, GREEN, BLUE, N_COLOURS",
        "RED, GREEN, BLUE, PINK, N_COLOURS",
        "N_COLOURS 3 → 4 (it seems to count",
    ),
}


@pytest.mark.parametrize("change", ENUMERATORS)
def test_a_changed_enumerator_is_refused_with_both_values(compiler: Compiler, change: str) -> None:
    before, after, words = ENUMERATORS[change]
    old, new = (COLOURS.replace("RED, GREEN, BLUE", text) + ITEM for text in (before, after))
    refusals, _ = judge(*versions(compiler, old, new))
    assert codes(refusals) == {"enum colour": "enumerator-changed"}
    assert words in refusals["enum colour"].text


def test_new_enumerators_are_a_note(compiler: Compiler) -> None:
    refusals, notes = judge(*versions(compiler, COLOURS + ITEM, COLOURS.replace("BLUE", "BLUE, PINK") + ITEM))
    assert refusals == {}
    assert codes(notes) == {"enum colour": "enumerator-added"}


def test_enumerators_without_a_type(compiler: Compiler) -> None:
    flags = "enum { FLAG_A = 1, FLAG_B = 2 }; enum { LIMIT = 10 };" + COLOURS + ITEM
    body = "int limit(int x) { return x & FLAG_A ? LIMIT : x & FLAG_B; }"
    old, new = versions(compiler, flags + body, (flags + body).replace("FLAG_B = 2", "FLAG_B = 4").replace("10", "20"))
    refusals, notes = judge(old, new)
    assert codes(refusals) == {"FLAG_B": "enumerator-changed"}
    assert "2 → 4" in refusals["FLAG_B"].text
    assert codes(notes) == {"LIMIT": "constant-changed"}


def test_exempt_types(compiler: Compiler) -> None:
    old, new = versions(compiler, COLOURS + ITEM, COLOURS.replace("GREEN, ", "") + ITEM.replace("int b;", "long b;"))
    assert set(codes(judge(old, new)[0])) == {"struct item", "enum colour"}
    assert set(codes(judge(old, new, exempt=frozenset({"item"}))[0])) == {"enum colour"}
    assert judge(old, new, exempt=frozenset({"struct item", "enum colour"}))[0] == {}


VARIABLES = (
    "static {type} kept; int *where(void) {{ return (int *) &kept; }} int get(void) {{ return (int) kept {plus}; }}"
)


@pytest.mark.parametrize(("before", "after"), [("int", "unsigned"), ("long", "double"), ("int", "_Atomic(int)")])
def test_a_kept_variable_of_another_type(compiler: Compiler, before: str, after: str) -> None:
    old, new = (compiler.build(VARIABLES.format(type=t, plus=p), "-g") for t, p in ((before, "+ 1"), (after, "+ 2")))
    refusals, _ = judge(old, new)
    assert codes(refusals) == {"kept": "object-retyped"}
    assert judge(old, new, exempt=frozenset({"kept"}))[0] == {}


@pytest.mark.parametrize("flags", [(), ("-fdebug-types-section",)])
def test_private_types_of_one_name(compiler: Compiler, flags: tuple[str, ...]) -> None:
    part = """
    struct private {{ int x[{size}]; }};
    static struct private *kept{n};
    int use{n}(struct private *p) {{ kept{n} = p; return p->x[0] + {plus}; }}
    """

    def build(first: int, second: int, plus: int) -> Build:
        sizes = (first, second)
        return compiler.build({f"p{n}.c": part.format(n=n, size=sizes[n], plus=plus) for n in (0, 1)}, "-g", *flags)

    old = build(1, 2, 1)
    assert judge(old, build(1, 2, 2))[0] == {}
    refusals, _ = judge(old, build(1, 3, 2))
    assert codes(refusals) == {"struct private": "type-changed"}
    where = "" if flags else " (p1.c)"  # type units belong to no file
    assert f"struct private{where}: 8 → 12 bytes" in refusals["struct private"].text


def test_the_same_source_elsewhere_and_otherwise_compiled(compiler: Compiler, tmp_path: Path) -> None:
    """Other folders, levels of optimisation, forms of DWARF: no difference."""
    text = HOLDER.format(types=COLOURS + ITEM, version=1)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    source = tmp_path / "deep" / "er" / "module.c"
    source.write_text(f"\n\n{text}")
    first = compiler.build(text, "-g")
    for flags in (
        ["-O0", "-g"],
        ["-O3", "-g3"],
        ["-Os", "-gdwarf-4"],
        ["-O2", "-g", "-flto"],
        ["-g", "-fdebug-types-section"],
    ):
        command = ["gcc", "-shared", "-fPIC", *flags, str(source), "-o", str(tmp_path / "module")]
        subprocess.run(command, check=True, capture_output=True, cwd="/")
        second = Build.open(tmp_path / "module")
        assert len(second.debug.types) == len(first.debug.types) >= 3
        assert changes(first.debug, second.debug) == changes(second.debug, first.debug) == []


def test_without_debug_information(compiler: Compiler) -> None:
    text = HOLDER.format(types=COLOURS + ITEM, version=1)
    bare, full = compiler.build(text), compiler.build(text.replace("return 1", "return 2"), "-g")
    for old, new in ((bare, full), (full, bare)):
        refusals, _ = judge(old, new)
        assert set(codes(refusals).values()) == {"no-debug-information"}
        assert "--trust-layout" in next(iter(refusals.values())).text
        refusals, notes = judge(old, new, PlanOptions(trust_layout=True))
        assert refusals == {}
        assert set(codes(notes).values()) == {"layout-trusted"}


RENAMED = {
    "the typedef stays": ("typedef struct { int a; } conn_t;", "typedef struct conn { int a; int b; } conn_t;"),
    "the typedef stays, a tag goes": ("typedef struct conn { int a; } conn_t;", "typedef struct { long a; } conn_t;"),
    "another tag": ("typedef struct old { int a; } conn_t;", "typedef struct new { char a; } conn_t;"),
    "the tag stays": ("struct conn { int a; long b; }; typedef struct conn conn_t;",
                      "union conn { int a; long b; }; typedef union conn conn_t;"),
}  # fmt: skip


@pytest.mark.parametrize("how", RENAMED)
def test_a_type_that_goes_by_another_name(compiler: Compiler, how: str) -> None:
    """Reached by nothing but casts and local variables, so that no other type tells of it."""
    text = "{} int get(void *p) {{ conn_t *c = p; return c->a + {}; }}"
    old, new = (compiler.build(text.format(types, n), "-g") for n, types in enumerate(RENAMED[how]))
    for one, other in ((old, new), (new, old)):
        assert "type-changed" in codes(judge(one, other)[0]).values()


def test_another_name_for_the_same(compiler: Compiler) -> None:
    text = "{} int get(void *p) {{ conn_t *c = p; return c->a + {}; }}"
    types = ("typedef struct { int a; } conn_t;", "typedef struct conn { int a; } conn_t;")
    old, new = (compiler.build(text.format(types, n), "-g") for n, types in enumerate(types))
    assert "type-changed" not in codes(judge(old, new)[0]).values()
    assert changes(old.debug, new.debug) == changes(new.debug, old.debug) == []


SECRET = "struct secret { int x; } *kept; int bare(struct secret *s) { kept = s;"


@pytest.mark.parametrize("flags", [("-flto", "-fuse-ld=lld"), ("-flto=thin", "-fuse-ld=lld")], ids=["full", "thin"])
def test_what_was_optimised_at_link_time(compiler: Compiler, flags: tuple[str, ...]) -> None:
    """The linker names one file for all, which no debug information knows."""
    texts = ({"a.c": STATEFUL % version, "b.c": "long other(long x) { return x * 3; }\n"} for version in (1, 2))
    old, new = (Build.open(compiler.file(text, "-g", *flags, driver="clang")) for text in texts)
    assert judge(old, new)[0] == {}


STATEFUL = "static long total; long other(long); long add(long x) { return total += other(x) * %d; }\n"


def test_a_part_without_debug_information(compiler: Compiler, tmp_path: Path) -> None:
    """An object of a static library, perhaps: its types are nobody's knowledge, but who asks if it did not change?"""

    def build(bare: int, full: int) -> Build:
        texts = {
            "bare": f"{SECRET} return s->x + {bare}; }}",
            "full": f"int full(int x) {{ return x * {full}; }}",
        }
        for name, text in texts.items():
            (tmp_path / f"{name}.c").write_text(text)
            words = ["gcc", "-c", "-fPIC", *(["-g"] if name == "full" else []), f"{name}.c", "-o", f"{name}.o"]
            subprocess.run(words, cwd=tmp_path, check=True)
        subprocess.run(["gcc", "-shared", "bare.o", "full.o", "-o", "module"], cwd=tmp_path, check=True)
        return Build.open(tmp_path / "module")

    old = build(1, 10)
    assert judge(old, build(1, 20))[0] == {}
    refusals, _ = judge(old, build(2, 10))
    assert codes(refusals) == {"bare": "no-debug-information"}
    refusals, notes = judge(old, build(2, 10), PlanOptions(trust_layout=True))
    assert refusals == {}
    assert codes(notes) == {"bare": "layout-trusted"}


def test_what_the_toolchain_adds_needs_no_debug_information(compiler: Compiler) -> None:
    text = "#include <stdlib.h>\nvoid later(void) {{ }} int set_up(int x) {{ return {}; }}"
    old, new = (compiler.build(text.format(what), "-g") for what in ("x * 1000003", "atexit(later) + x * 1000003"))
    assert "atexit" in new.entities.names
    assert judge(old, new)[0] == {}


def test_trust_excuses_nothing_that_is_known(compiler: Compiler) -> None:
    old, new = versions(compiler, COLOURS + ITEM, COLOURS + ITEM.replace("int b;", "long b;"))
    assert codes(judge(old, new, PlanOptions(trust_layout=True))[0]) == {"struct item": "type-changed"}


def test_a_type_that_only_an_earlier_generation_had(compiler: Compiler) -> None:
    """Objects of the first build may be alive when the third comes, though the second knew nothing of them."""
    with_it = (
        "struct past {{ int x; {more} }}; void *make(struct past *p) {{ p->x = 1; return p; }}"
        "int step(void) {{ return {n}; }}"
    )
    without = "void *make(void *p) { return p; } int step(void) { return 2; }"
    first, third = (compiler.build(with_it.format(more=m, n=n), "-g") for m, n in (("", 1), ("int y;", 3)))
    second = compiler.build(without, "-g")
    images = [Image(first, BASE), Image(second, BASE + 0x1000000)]
    comparisons: list[Comparison] = [compare(first, third), compare(second, third)]
    refusals, _ = verdict(images, 1, third, comparisons, PlanOptions())
    assert [(reason.code, reason.subject) for reason in refusals] == [("type-changed", "struct past")]


CXX = """
struct base {{ virtual ~base(); virtual int one(); {virtual} long state; }};
base::~base() {{}} int base::one() {{ return {n}; }} {define}
base *kept; base *make() {{ return kept = new base; }} int call() {{ return kept->one(); }}
"""


def test_virtual_functions(compiler: Compiler) -> None:
    old = compiler.build({"module.cc": CXX.format(virtual="", define="", n=1)}, "-g")
    more = {"virtual": "virtual int two();", "define": "int base::two() { return 3; }"}
    new = compiler.build({"module.cc": CXX.format(**more, n=1)}, "-g")
    refusals, _ = judge(old, new)
    assert codes(refusals)["struct base"] == "type-changed"
    assert "_ZN4base3twoEv" in refusals["struct base"].text


# Any structure, any change


@dataclass(frozen=True)
class Member:
    name: str
    kind: str  # a C type, an array of one, or a number of bits

    def declared(self) -> str:
        if self.kind.startswith(":"):
            return f"unsigned {self.name} {self.kind};"
        base, _, length = self.kind.partition("[")
        return f"{base} {self.name}{'[' + length if length else ''};"


KINDS = ("char", "unsigned char", "short", "int", "unsigned", "long", "double", "void *", "struct one *", "int [2]",
         "int [3]", "char [5]", "_Atomic int", "union pair", ":3", ":4", ":17")  # fmt: skip
members = st.builds(Member, st.sampled_from("abcdefghij"), st.sampled_from(KINDS))
structures = st.lists(members, min_size=2, max_size=8, unique_by=lambda member: member.name)


@st.composite
def mutations(draw: st.DrawFn) -> tuple[list[Member], list[Member]]:
    old = draw(structures)
    new = list(old)
    at = draw(st.integers(0, len(old) - 1))
    match draw(st.sampled_from(["same", "swap", "drop", "insert", "retype", "rename"])):
        case "swap":
            new[at], new[at - 1] = new[at - 1], new[at]
        case "drop":
            del new[at]
        case "insert":
            new.insert(at, Member("z", draw(st.sampled_from(KINDS))))
        case "retype":
            new[at] = dataclasses.replace(new[at], kind=draw(st.sampled_from(KINDS)))
        case "rename":
            new[at] = dataclasses.replace(new[at], name="z")
    return old, new


SHAPE = """struct one {{ int x; }}; union pair {{ float f; int i; }};
struct s {{ {} }}; struct s *kept; int n = sizeof(struct s);"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("gcc"):
        pytest.fail("gcc is needed")
    return tmp_path_factory.mktemp("shapes")


def _layout(bench: Path, shape: list[Member]) -> tuple[Build, object]:
    """A build, and what gcc says of the structure: the bytes that each member occupies, and its type."""
    declared = " ".join(member.declared() for member in shape)
    source = bench / "shape.c"
    source.write_text(SHAPE.format(declared) + "".join(_mask(member) for member in shape))
    subprocess.run(["gcc", "-w", "-g", "-O0", "-shared", "-fPIC", str(source), "-o", str(bench / "shape")], check=True)
    build = Build.open(bench / "shape")
    said = []
    for member in shape:
        row = build.by_name[f"mask_{member.name}"]
        address, size = int(build.entities.address[row]), int(build.entities.size[row])
        said.append((member.name, member.kind, build.read(address, size)))
    size_row = build.by_name["n"]
    return build, (sorted(said), build.read(int(build.entities.address[size_row]), 4))


def _mask(member: Member) -> str:
    """An object in which only this member is not zero: its bytes say where it lies, without debug information."""
    text = "1"
    if "[" in member.kind:
        text = "{ 1, 1 }"
    elif member.kind == "union pair":
        text = "{ .i = 1 }"
    elif "*" in member.kind:
        text = "(void *) 1"
    return f"struct s mask_{member.name} = {{ .{member.name} = {text} }};"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations())
def test_any_change_of_any_structure(bench: Path, shapes: tuple[list[Member], list[Member]]) -> None:
    """Found if and only if a member has another name, type or place, as the compiler lays it out."""
    (old, before), (new, after) = (_layout(bench, shape) for shape in shapes)
    found = [change.name for change in changes(old.debug, new.debug)]
    assert found == ([] if before == after else ["struct s"])
