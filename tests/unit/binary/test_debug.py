"""What is read of DWARF, against pyelftools, readelf and the compiler's own sizeof and offsetof."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from hotupgrade.binary.build import Build
from hotupgrade.binary.cache import Cache, load_build
from hotupgrade.binary.debug import read
from hotupgrade.binary.debug.model import Debug, Definition
from unit.conftest import Compiler

FORMS = {
    "dwarf5": ("-g", "-gdwarf-5"),
    "dwarf4": ("-g", "-gdwarf-4"),
    "strict4": ("-g", "-gdwarf-4", "-gstrict-dwarf"),
    "type units": ("-g", "-gdwarf-5", "-fdebug-types-section"),
    "type units of 4": ("-g", "-gdwarf-4", "-fdebug-types-section"),
    "packed": ("-g", "-gz"),
    "64-bit": ("-g", "-gdwarf64"),
    "lto": ("-g", "-flto"),
    "records": ("-g", "-Wl,--emit-relocs"),
    "unoptimised": ("-g", "-O0"),
}

TYPES = r"""
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum colour { RED, GREEN = 5, BLUE = -3, HIGH = 200 };
enum { ALONE = 65536 };
enum { FLAG_A = 1, FLAG_B = 128 };
typedef struct { uint64_t low, high; } pair_t;
struct node { struct node *next; pair_t pair; };
union both { double real; char bytes[12]; };
struct everything {
    uint8_t one;
    const volatile int32_t two;
    unsigned first : 3, second : 7;
    long long wide : 40;
    bool flag;
    _Atomic(int) counter;
    atomic_bool set;
    long double big;
    float small;
    struct node *list, own;
    union both both;
    enum colour colour;
    struct { int x, y; } inner;
    union { int8_t a; uint16_t b; };
    struct { short s; } several[3];
    int table[2][3];
    int (*call)(struct node *, const char *, ...);
    void *anything;
    char tail[];
};
struct opaque;
int counter = 1;
static struct node head = { &head, { 1, 2 } };
__thread long mine = 3;
static __thread struct node *current;
struct opaque *nobody;
const int numbers[300] = { 1 };

__attribute__((noinline)) static int helper(struct everything *e, enum colour c)
{
    static int once;
    struct local { int only; char here; } l = { once, 'x' };
    return ++once + e->counter + (int) c + l.only;
}

int work(struct everything *e, int n, ...)
{
    static short once;
    static __thread int calls;
    once += calls++;
    current = e->list;
    return helper(e, e->colour) + once + n + (head.next == current) + FLAG_B + ALONE;
}
"""


@pytest.fixture(autouse=True, params=[0, 1 << 62], ids=["condensed", "one by one"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "CONDENSED_FROM", request.param)


@pytest.fixture(params=FORMS)
def debug(request: pytest.FixtureRequest, compiler: Compiler) -> Debug:
    found = compiler.build(TYPES, *FORMS[request.param]).debug
    assert not found.missing
    return found


def only(debug: Debug, name: str) -> Definition:
    ((index, _),) = debug.types[name]
    return debug.definitions[index]


def test_structures(debug: Debug) -> None:
    everything = only(debug, "struct everything")
    places = {field.name: (field.bit, field.bits, field.text) for field in everything.fields}
    assert places["one"] == (0, 0, "uint8")
    assert places["two"] == (32, 0, "int32")
    assert places["first"] == (64, 3, "uint32")
    assert places["second"] == (67, 7, "uint32")
    assert places["wide"][1:] == (40, "int64")
    assert places["flag"][2] == "bool8"
    atomic = " _Atomic" if debug.atomics else ""  # DWARF 4 cannot say it
    assert places["counter"][2] == "int32" + atomic
    assert places["set"][2] == "bool8" + atomic
    assert places["big"][2] == "long double:128"
    assert places["small"][2] == "float32"
    assert places["list"][2] == "`struct node` *"
    assert places["own"][2] == "`struct node`"
    assert places["both"][2] == "`union both`"
    assert places["colour"][2] == "`enum colour`"
    assert places["inner.y"][0] == places["inner.x"][0] + 32
    assert places["a"][0] == places["b"][0]
    assert places["several"][2] == "struct {s@0 int16} 2 bytes [3]"
    assert places["table"][2] == "int32 [2][3]"
    assert places["call"][2] == "(`struct node` *, int8 *, ...) -> int32 *"
    assert places["anything"][2] == "void *"
    assert places["tail"][2] == "int8 []"
    assert "struct opaque" not in debug.types
    assert only(debug, "pair_t").size == 16
    assert only(debug, "union both").kind == "union"
    assert [f.text for f in only(debug, "struct node").fields] == ["`struct node` *", "`pair_t`"]
    assert only(debug, "struct helper()::local").size == 8


def test_enumerations(debug: Debug) -> None:
    assert dict(only(debug, "enum colour").enumerators) == {"RED": 0, "GREEN": 5, "BLUE": -3, "HIGH": 200}
    constants = {name: (alone, values) for name, _, alone, values in debug.constants}
    assert constants == {"ALONE": (True, [65536]), "FLAG_A": (False, [1]), "FLAG_B": (False, [128])}


def test_functions(debug: Debug) -> None:
    found = {(name, file): texts for name, file, texts in debug.functions}
    assert found["work", ""] == ["(`struct everything` *, int32, ...) -> int32"]
    assert found["helper", "module.c"] == ["(`struct everything` *, `enum colour`) -> int32"]


@pytest.mark.parametrize("flags", [(), ("-ffunction-sections",), ("-O0",), ("-Os", "-freorder-functions")])
@pytest.mark.parametrize("form", ["dwarf5", "dwarf4", "lto"])
def test_all_code_is_covered(compiler: Compiler, form: str, flags: tuple[str, ...]) -> None:
    build = compiler.build({"one.c": TYPES, "two.c": "int more(void) { return 1; }"}, *FORMS[form], *flags)
    covered = build.debug.covered
    assert all(low < high for low, high in covered)
    assert covered == sorted(covered)
    for name in ("work", "helper", "more"):
        row = build.entities.names.index(name)
        low = int(build.entities.address[row])
        assert any(start <= low < low + int(build.entities.size[row]) <= end for start, end in covered), name
    row = build.entities.names.index("frame_dummy")
    assert not any(start <= int(build.entities.address[row]) < end for start, end in covered)


@pytest.mark.parametrize("form", FORMS)
def test_variables_are_where_the_symbols_are(compiler: Compiler, form: str) -> None:
    build = compiler.build(TYPES, *FORMS[form])
    entities = build.entities
    rows = {(int(a), int(k) == 5): n for a, k, n in zip(entities.address, entities.kind, entities.names, strict=True)}
    found = {(v.name, v.scope): (rows[v.address, v.thread_local], v.text) for v in build.debug.variables}
    assert {key: text for key, (_, text) in found.items()} == {
        ("counter", ""): "int32",
        ("head", ""): "`struct node`",
        ("mine", ""): "int64",
        ("current", ""): "`struct node` *",
        ("nobody", ""): "`struct opaque` *",
        ("numbers", ""): "int32 [300]",
        ("once", "helper"): "int32",
        ("once", "work"): "int16",
        ("calls", "work"): "int32",
    }
    assert all(symbol.split(".")[0] == name for (name, _), (symbol, _) in found.items())


def test_the_compiler_says_the_same(compiler: Compiler, debug: Debug, tmp_path: Path) -> None:
    """offsetof and sizeof of every member that they can be asked for."""
    everything = only(debug, "struct everything")
    members = [f for f in everything.fields if not f.bits]
    lines = "".join(f'printf("%zu\\n", 8 * offsetof(struct everything, {f.name}));' for f in members)
    text = f'#include <stdio.h>\n{TYPES}\nint main(void) {{ {lines} printf("%zu\\n", sizeof(struct everything)); }}'
    (tmp_path / "says.c").write_text(text)
    subprocess.run(["gcc", "-w", "says.c", "-o", "says"], cwd=tmp_path, check=True)
    said = subprocess.run([tmp_path / "says"], capture_output=True, text=True, check=True).stdout.split()
    assert [int(word) for word in said] == [*(f.bit for f in members), everything.size]


def _structures_by_pyelftools(data: bytes) -> Iterator[tuple[str, int, list[tuple[str, int]]]]:
    info = ELFFile(io.BytesIO(data)).get_dwarf_info(relocate_dwarf_sections=False)
    for unit in info.iter_CUs():
        for die in unit.iter_DIEs():
            if die.tag != "DW_TAG_structure_type" or "DW_AT_name" not in die.attributes:
                continue
            if "DW_AT_declaration" in die.attributes:
                continue
            members = [
                (child.attributes["DW_AT_name"].value.decode(), child.attributes["DW_AT_data_member_location"].value)
                for child in die.iter_children()
                if child.tag == "DW_TAG_member"
                and {"DW_AT_name", "DW_AT_data_member_location"} <= child.attributes.keys()
            ]
            yield die.attributes["DW_AT_name"].value.decode(), die.attributes["DW_AT_byte_size"].value, members


@pytest.mark.parametrize("form", ["dwarf5", "dwarf4", "packed", "records"])
def test_pyelftools_says_the_same(compiler: Compiler, form: str) -> None:
    sources = {
        f"part{i}.c": f"#include <stdio.h>\n#include <signal.h>\n#include <pthread.h>\n{USE.format(i)}" for i in (1, 2)
    }
    build = compiler.build(sources, *FORMS[form])
    found = list(_structures_by_pyelftools(build.data))
    assert len(found) > 8
    for name, size, members in found:
        keys = [key for key in build.debug.types if key.split("::")[-1].removeprefix("struct ") == name]
        ours = [build.debug.definitions[index] for key in keys for index, _ in build.debug.types[key]]
        assert any(
            definition.size == size
            and all(any(f.name.split(".")[0] == n and f.bit >= 8 * at for f in definition.fields) for n, at in members)
            for definition in ours
        ), name


USE = """
struct private {{ int of_{0}[{0}]; }};
static struct private kept{0};
FILE *file{0}(pthread_mutex_t *m, siginfo_t *s, struct sigaction *a)
{{ kept{0}.of_{0}[0] += m->__data.__lock + s->si_signo + a->sa_flags; return stdout; }}
"""


def test_files_keep_their_private_types(compiler: Compiler) -> None:
    debug = compiler.build(
        {
            f"part{i}.c": f"#include <stdio.h>\n#include <signal.h>\n#include <pthread.h>\n{USE.format(i)}"
            for i in (1, 2)
        },
        "-g",
    ).debug
    private = {debug.files[file]: debug.definitions[i] for i, files in debug.types["struct private"] for file in files}
    assert {file: definition.size for file, definition in private.items()} == {"part1.c": 4, "part2.c": 8}
    ((_, files),) = debug.types["struct sigaction"]
    assert {debug.files[file] for file in files} == {"part1.c", "part2.c"}


CXX = r"""
namespace outer {
namespace { struct hidden { int a; }; }
struct seen { hidden h; static int shared; enum class kind { one, two } k; };
}
struct base { virtual ~base() {} virtual int call(int) { return 1; } long state; };
class derived : public base, private outer::seen {
    int call(int x) override { return x; }
    int own = 2;
public:
    int& ref;
    derived(int& r) : ref(r) {}
};
template <typename T, int N> struct box { T items[N]; };
box<short, 4> shorts;
outer::seen seen;
int outer::seen::shared = 3;
extern "C" int use(derived *d) { return d->base::call(1) + (int) d->state; }
int overloaded(int x) { return x; }
int overloaded(const box<short, 4>& b) { return b.items[0]; }
base *make(int& i) { return new derived(i); }
"""


@pytest.mark.parametrize("form", ["dwarf5", "dwarf4", "type units"])
def test_cxx(compiler: Compiler, form: str) -> None:
    debug = compiler.build({"module.cc": CXX}, *FORMS[form]).debug
    assert not debug.missing
    seen = only(debug, "struct outer::seen")
    assert [(f.name, f.text) for f in seen.fields] == [
        ("h", "`struct outer::(anonymous namespace)::hidden`"),
        ("k", "`enum outer::seen::kind`"),
    ]
    derived = {f.name: f for f in only(debug, "struct derived").fields}
    assert derived["<base struct base>"].bit == 0
    assert derived["<base struct outer::seen>"].bit == 128
    assert derived["own"].bit == 192
    assert derived["ref"].text == "int32 &"
    base = {f.name: f.text for f in only(debug, "struct base").fields}
    assert "_vptr.base" in base
    assert base["<virtual 2>"] == "_ZN4base4callEi"
    assert only(debug, "struct box<short int, 4>").size == 8
    names = {name for name, _, _ in debug.functions}
    assert {"_Z10overloadedi", "_Z10overloadedRK3boxIsLi4EE", "use"} <= names
    assert {v.name for v in debug.variables} >= {"shorts", "seen", "shared"}


def test_without_debug_information(compiler: Compiler) -> None:
    assert compiler.build(TYPES).debug.missing == "it has no debug information"


def test_what_is_not_read_is_said(compiler: Compiler) -> None:
    split = compiler.build(TYPES, "-g", "-gsplit-dwarf").debug
    assert "-gsplit-dwarf" in split.missing
    old = compiler.build(TYPES, "-g", "-gdwarf-3").debug
    assert "DWARF 3" in old.missing


def test_clang(tmp_path: Path) -> None:
    (tmp_path / "module.c").write_text(TYPES)
    subprocess.run(["clang", "-g", "-shared", "-fPIC", "module.c", "-o", "module"], cwd=tmp_path, check=True)
    debug = Build.open(tmp_path / "module").debug
    assert only(debug, "pair_t").size == 16


def test_a_second_run_reads_it_from_the_cache(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = compiler.build(TYPES, "-g").data
    cache = Cache(tmp_path / "cache")
    first = load_build(data, "first", cache).debug
    monkeypatch.setattr("hotupgrade.binary.build.read_debug", lambda *_: pytest.fail("it was read again"))
    assert load_build(data, "second", cache).debug == first


def test_another_debug_information_is_another_entry(compiler: Compiler) -> None:
    """The same code and symbols, other types."""
    texts = [f"struct s {{ {kind} x; }}; struct s *p; int f(void) {{ return 1; }}" for kind in ("int", "unsigned")]
    one, two = (compiler.build(text, "-g", "-Wl,--build-id=0x1234") for text in texts)
    assert one.build_id == two.build_id
    assert one.fingerprint != two.fingerprint


def test_readelf_counts_as_many_types(compiler: Compiler) -> None:
    path = compiler.file(TYPES, "-g")
    said = subprocess.run(["readelf", "--debug-dump=info", path], capture_output=True, text=True, check=True).stdout
    names = re.findall(
        r"DW_TAG_(?:structure|union)_type\)\n +<\w+> +DW_AT_name +:.*?(\w+)\n +<\w+> +DW_AT_byte_size", said
    )
    found = {name.split("::")[-1].split(" ")[-1] for name, _ in Build.open(path).debug.types.items()}
    assert set(names) <= found
    assert len(names) >= 4
