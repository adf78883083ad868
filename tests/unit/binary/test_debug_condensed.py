"""What units say alike, described once: exactly what is said entry by entry."""

from __future__ import annotations

import struct
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from hotupgrade.binary.build import Build
from hotupgrade.binary.debug import alike, read, survey
from hotupgrade.binary.debug.constants import At, Encoding, Form, Op, Tag
from hotupgrade.binary.debug.model import Debug
from hotupgrade.binary.debug.read import STUMBLES, Reader
from hotupgrade.binary.debug.sections import Sections, Unusable
from hotupgrade.binary.debug.survey import Unclear
from hotupgrade.binary.debug.units import Units
from hotupgrade.binary.model import Section
from unit.binary.dwarf import Die, Writer, leb, written
from unit.binary.test_debug import CXX, FORMS, TYPES
from unit.conftest import Compiler

HEADER = TYPES.split("int counter = 1;", maxsplit=1)[0].split("enum colour", maxsplit=1)
FIRST = '#include "module.h"\n' + "int counter = 1;" + TYPES.split("int counter = 1;")[1]
SECOND = """
#include "module.h"
struct node; struct only_here { struct node *n; union both b[2]; };
typedef int (*call_t)(struct only_here *, ...);
enum { FLAG_C = 1 };
extern int counter;
int work(struct everything *e, int n, ...);
static inline long doubled(long n) { return 2 * n; }
long more(struct only_here *o, call_t call) { static struct node kept; kept.next = o->n;
    return doubled(call(o, FLAG_C)) + counter + work(0, 1); }
"""
SOURCES = {"first.c": FIRST, "second.c": SECOND, "module.h": HEADER[0] + "enum colour" + HEADER[1]}
#: Of these forms, units refer to entries of other units.
ACROSS = ("type units", "type units of 4", "lto")


def plainly(data: bytes, sections: dict[str, Section]) -> Debug:
    return Reader(Units(Sections(data, sections))).read()


def condensed(data: bytes, sections: dict[str, Section]) -> Debug:
    return Reader(Units(Sections(data, sections))).read_condensed()


def of(compiler: Compiler, *flags: str) -> tuple[bytes, dict[str, Section]]:
    names = {name: text for name, text in SOURCES.items() if name.endswith(".c")}
    (compiler.directory / "module.h").write_text(SOURCES["module.h"])
    build = Build.open(compiler.file(names, f"-I{compiler.directory}", *flags))
    return build.data, dict(build.sections)


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ACROSS])
@pytest.mark.parametrize("batch", [1, survey.BATCH])
def test_units_of_one_header(compiler: Compiler, form: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "BATCH", batch)
    data, sections = of(compiler, *FORMS[form])
    found = condensed(data, sections)
    assert found == plainly(data, sections)
    assert {"first.c", "second.c"} <= set(found.files)
    ((_, files),) = found.types["struct everything"]
    assert len(files) == 2


@pytest.mark.parametrize("form", ACROSS)
def test_what_leads_to_other_units_is_read_entry_by_entry(compiler: Compiler, form: str) -> None:
    data, sections = of(compiler, *FORMS[form])
    with pytest.raises(Unclear):
        condensed(data, sections)


def test_cxx_is_read_entry_by_entry(compiler: Compiler) -> None:
    build = compiler.build({"module.cc": CXX}, "-g")
    with pytest.raises(Unclear):
        condensed(build.data, dict(build.sections))


def test_small_files_are_read_entry_by_entry(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    data, sections = of(compiler, "-g")
    monkeypatch.setattr(Reader, "read_condensed", lambda _: pytest.fail("this would take longer"))
    assert read.read_debug(data, sections) == plainly(data, sections)


def test_too_much_to_be_held_at_once(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "MAX_TOGETHER", 100)
    with pytest.raises(Unclear):
        condensed(*of(compiler, "-g"))


# Units that nobody compiled

NAMES = ("a", "b", "c", "node", "a name that is not short")
LINES = st.integers(1, 300)
_KINDS = {"struct": Tag.STRUCTURE, "union": Tag.UNION, "enum": Tag.ENUMERATION}
_LAYERS = {
    "pointer": Tag.POINTER, "const": Tag.CONST, "volatile": Tag.VOLATILE, "atomic": Tag.ATOMIC, "typedef": Tag.TYPEDEF,
}  # fmt: skip
names = st.sampled_from(NAMES)
indices = st.integers(0, 30)
numbers = st.one_of(st.integers(0, 3), st.sampled_from((127, 128, 255, 256, 70000)))
signed = st.one_of(st.integers(-3, 3), st.sampled_from((-(1 << 63), (1 << 63) - 1, -129, 1 << 40)))
maybe_index = st.one_of(st.none(), indices)
members = st.lists(st.tuples(names, maybe_index, numbers, st.sampled_from((0, 0, 0, 3))), max_size=3)
enumerators = st.lists(st.tuples(names, signed), max_size=3)
plans = st.one_of(
    st.tuples(st.just("base"), names, st.sampled_from((1, 4, 8)), st.sampled_from((Encoding.SIGNED, Encoding.FLOAT))),
    st.tuples(st.sampled_from(tuple(_LAYERS)), names, maybe_index),
    st.tuples(st.sampled_from(("struct", "union")), st.one_of(st.none(), names), numbers, members, st.booleans()),
    st.tuples(st.just("enum"), st.one_of(st.none(), names), numbers, enumerators, st.just(0)),
    st.tuples(st.just("array"), maybe_index, st.lists(st.one_of(st.none(), numbers), max_size=2)),
    st.tuples(st.just("subroutine"), maybe_index, st.lists(maybe_index, max_size=3), st.booleans()),
    st.tuples(
        st.just("function"), names, maybe_index, st.lists(maybe_index, max_size=3),
        st.sampled_from(("declared", "inline", "here", "out of line")), st.booleans(),
    ),
    st.tuples(st.just("variable"), names, maybe_index, st.sampled_from(("fixed", "frame", "local", "nowhere"))),
)  # fmt: skip


class _Unit:
    """One unit of a list of plans.  ``odd`` varies how the same things are written."""

    def __init__(self, file: str, listed: list[tuple[Any, ...]], odd: int) -> None:
        self._odd = odd
        self._dies = [Die(0) for _ in listed]
        self._listed = listed
        self.root = Die(Tag.COMPILE_UNIT, [(At.NAME, Form.STRING, f"dir/{file}")], self._dies)
        self._functions = [die for die, plan in zip(self._dies, listed, strict=True) if plan[0] == "function"]
        for number, (die, plan) in enumerate(zip(self._dies, listed, strict=True)):
            getattr(self, f"_{'kind' if plan[0] in _KINDS else 'layer' if plan[0] in _LAYERS else plan[0]}")(die, plan)
            die.attributes.append((0x3A, Form.IMPLICIT_CONST, odd) if odd % 2 else (0x3A, Form.DATA1, odd))
            if number % 3 == odd % 3:
                die.attributes.append((0x3B, Form.DATA2, 5))

    def _type(self, index: int | None) -> list[tuple[int, int, Any]]:
        """Only types are what a type attribute may name."""
        types = [
            die for die, plan in zip(self._dies, self._listed, strict=True) if plan[0] not in ("function", "variable")
        ]
        return [(At.TYPE, Form.REF4, types[index % len(types)])] if index is not None and types else []

    def _name(self, name: str | None) -> list[tuple[int, int, Any]]:
        if name is None:
            return []
        return [(At.NAME, Form.STRING if len(name) < 4 or self._odd == 2 else Form.STRP, name)]

    def _number(self, attribute: int, value: int) -> tuple[int, int, Any]:
        if self._odd == 3:
            return attribute, Form.UDATA, value
        form = Form.DATA1 if value < 256 else Form.DATA2 if value < 1 << 16 else Form.DATA4
        return attribute, form, value

    def _base(self, die: Die, plan: tuple[Any, ...]) -> None:
        die.tag = Tag.BASE
        die.attributes = [self._number(At.BYTE_SIZE, plan[2]), self._number(At.ENCODING, plan[3]), *self._name(plan[1])]

    def _layer(self, die: Die, plan: tuple[Any, ...]) -> None:
        die.tag = _LAYERS[plan[0]]
        die.attributes = [*(self._name(plan[1]) if plan[0] == "typedef" else []), *self._type(plan[2])]

    def _kind(self, die: Die, plan: tuple[Any, ...]) -> None:
        kind, name, size, parts, declared = plan
        die.tag = _KINDS[kind]
        die.attributes = self._name(name)
        if declared:
            die.attributes.append((At.DECLARATION, Form.FLAG_PRESENT, True))
            return
        die.attributes.append(self._number(At.BYTE_SIZE, size))
        if kind == "enum":
            die.children = [
                Die(Tag.ENUMERATOR, [*self._name(name), (At.CONST_VALUE, Form.SDATA, value)]) for name, value in parts
            ]
            return
        for name, index, at, bits in parts:
            member = Die(Tag.MEMBER, [*self._name(name), *self._type(index)])
            if bits:
                member.attributes += [self._number(At.BIT_SIZE, bits), self._number(At.DATA_BIT_OFFSET, at)]
            else:
                member.attributes.append(self._number(At.DATA_MEMBER_LOCATION, at))
            die.children.append(member)

    def _array(self, die: Die, plan: tuple[Any, ...]) -> None:
        die.tag, die.attributes = Tag.ARRAY, self._type(plan[1])
        for bound in plan[2]:
            die.children.append(Die(Tag.SUBRANGE, [] if bound is None else [self._number(At.UPPER_BOUND, bound)]))

    def _subroutine(self, die: Die, plan: tuple[Any, ...]) -> None:
        die.tag, die.attributes = Tag.SUBROUTINE_TYPE, self._type(plan[1])
        die.children = [Die(Tag.PARAMETER, self._type(index)) for index in plan[2]]
        die.children += [Die(Tag.UNSPECIFIED_PARAMETERS)] if plan[3] else []

    def _function(self, die: Die, plan: tuple[Any, ...]) -> None:
        _, name, index, parameters, way, external = plan
        die.tag = Tag.SUBPROGRAM
        die.attributes = [(At.EXTERNAL, Form.FLAG_PRESENT, True)] if external else []
        die.children = [Die(Tag.PARAMETER, [*self._name(name), *self._type(each)]) for each in parameters]
        if way == "out of line" and die is not self._functions[0]:
            # Something in it that nobody looks at, with children, and with a variable that has a place.
            variable = Die(Tag.VARIABLE, [*self._name(name), *self._type(index), _place(0x500)])
            inner = Die(Tag.INLINED_SUBROUTINE, [(At.ABSTRACT_ORIGIN, Form.REF4, self._functions[0])], [variable])
            block = Die(Tag.LEXICAL_BLOCK, [], [inner, Die(variable.tag, list(variable.attributes))])
            die.attributes += [(At.ABSTRACT_ORIGIN, Form.REF4, self._functions[0]), (At.LOW_PC, Form.ADDR, 0x100)]
            die.children.append(block)
            return
        die.attributes += [*self._name(name), *self._type(index)]
        if way == "declared":
            die.attributes.append((At.DECLARATION, Form.FLAG_PRESENT, True))
        elif way == "inline":
            die.attributes.append((At.INLINE, Form.DATA1, 3))
        else:
            die.attributes += [(At.LOW_PC, Form.ADDR, 0x100), (At.HIGH_PC, Form.DATA8, 16)]
            die.attributes.append((0x40, Form.EXPRLOC, b"\x9c"))  # frame base

    def _variable(self, die: Die, plan: tuple[Any, ...]) -> None:
        _, name, index, way = plan
        die.tag, die.attributes = Tag.VARIABLE, [*self._name(name), *self._type(index)]
        if way in ("fixed", "local"):
            die.attributes.append(_place(0x1000 + 8 * len(name)))
        elif way == "frame":
            die.attributes.append((At.LOCATION, Form.EXPRLOC, b"\x91\x60"))
        if way == "local":
            inner = Die(die.tag, die.attributes)
            die.tag, die.children = Tag.SUBPROGRAM, [inner]
            die.attributes = [*self._name("f"), (At.LOW_PC, Form.ADDR, 0x200)]


def _place(address: int) -> tuple[int, int, bytes]:
    return At.LOCATION, Form.EXPRLOC, bytes([Op.ADDR]) + struct.pack("<Q", address)


@st.composite
def units(draw: st.DrawFn) -> tuple[bytes, dict[str, Section]]:
    """Units that have a header in common, each with a little of its own."""
    header = draw(st.lists(plans, min_size=1, max_size=12))
    roots = []
    for _ in range(draw(st.integers(1, 4))):
        own = draw(st.lists(plans, max_size=3))
        file = draw(st.sampled_from(("a.c", "b.c")))
        roots.append(_Unit(file, [*header, *own], draw(st.integers(0, 3))).root)
    return written(roots)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(file=units(), batch=st.sampled_from((1, 30, survey.BATCH)))
def test_it_is_what_is_said_entry_by_entry(file: tuple[bytes, dict[str, Section]], batch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "BATCH", batch)
        try:
            found = condensed(*file)
        except Unclear:
            event("unclear")
            return
    event("clear")
    assert found == plainly(*file)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(file=units(), data=st.data())
def test_spoiled_bytes(file: tuple[bytes, dict[str, Section]], data: st.DataObject) -> None:
    """Whatever the bytes are: the same, or no answer, so that entry by entry it is seen what is wrong."""
    content, sections = bytearray(file[0]), file[1]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.one_of(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)), st.integers(0, 255)))
    try:
        found = condensed(bytes(content), sections)
    except (Unclear, Unusable, *STUMBLES):
        return
    assert found == plainly(bytes(content), sections)


def unit(file: str, *listed: Die) -> Die:
    return Die(Tag.COMPILE_UNIT, [(At.NAME, Form.STRING, file)], list(listed))


def test_two_alike_types_that_only_typedefs_name() -> None:
    def pair(name: str) -> list[Die]:
        kind = Die(Tag.STRUCTURE, [(At.BYTE_SIZE, Form.DATA1, 8)])
        return [kind, Die(Tag.TYPEDEF, [(At.NAME, Form.STRP, name), (At.TYPE, Form.REF4, kind)])]

    file = written([unit("a.c", *pair("one_t"), *pair("other_t")), unit("b.c", *pair("other_t"))])
    found = condensed(*file)
    assert found == plainly(*file)
    assert set(found.types) == {"one_t", "other_t"}


def test_constants_are_in_the_order_of_their_file() -> None:
    def constant(value: int) -> Die:
        return Die(
            Tag.ENUMERATION,
            [(At.BYTE_SIZE, Form.DATA1, 4)],
            [Die(Tag.ENUMERATOR, [(At.NAME, Form.STRP, "LIMIT"), (At.CONST_VALUE, Form.DATA1, value)])],
        )

    file = written([unit("a.c", constant(1)), unit("b.c", constant(2)), unit("b.c", constant(1))])
    found = condensed(*file)
    assert found == plainly(*file)
    assert found.constants == [("LIMIT", "a.c", True, [1]), ("LIMIT", "b.c", True, [2, 1])]


def test_numbers_of_ten_bytes() -> None:
    def constant(value: int) -> Die:
        name, number = (At.NAME, Form.STRP, "LIMIT"), (At.CONST_VALUE, Form.SDATA, value)
        return Die(Tag.ENUMERATION, [(At.NAME, Form.STRP, "limits")], [Die(Tag.ENUMERATOR, [number, name])])

    values = (-(1 << 63), (1 << 63) - 1, -1, 127, -64, 64)
    file = written([unit("a.c", *map(constant, values))])
    found = condensed(*file)
    assert found == plainly(*file)
    assert len(found.definitions) == len(values)


def test_a_type_that_holds_itself_is_unclear() -> None:
    array = Die(Tag.ARRAY)
    array.attributes.append((At.TYPE, Form.REF4, array))
    with pytest.raises(Unclear):
        condensed(*written([unit("a.c", array)]))


def test_many_layers_are_unclear() -> None:
    layers = [Die(Tag.POINTER)]
    for _ in range(alike.MAX_LAYERS):
        layers.append(Die(Tag.POINTER, [(At.TYPE, Form.REF4, layers[-1])]))
    with pytest.raises(Unclear):
        condensed(*written([unit("a.c", *layers)]))


def test_units_that_share_a_table_of_abbreviations() -> None:
    """Its size counts once, however many use it."""
    writer = Writer()
    writer.add(unit("a.c", *(Die(Tag.VARIABLE, [(0x2300 + number, Form.DATA1, 0)]) for number in range(3000))))
    for _ in range(3000):
        writer.info += struct.pack("<IHBBI", 12, 5, 1, 8, 0) + b"\1a\0\0"
    data, sections = writer.file()
    begin = time.process_time()
    assert condensed(data, sections) == plainly(data, sections)
    assert time.process_time() - begin < 5


def test_codes_that_nobody_counted() -> None:
    writer = Writer()
    writer.add(unit("a.c"))
    body = bytes(writer.info[4:12]) + leb(0x3000) + bytes(writer.info[13:])
    writer.info[:] = struct.pack("<I", len(body)) + body
    writer.abbreviations[:1] = leb(0x3000)
    file = writer.file()
    assert plainly(*file).files == ["a.c"]
    with pytest.raises(Unclear):
        condensed(*file)


def test_more_abbreviations_than_compilers_need(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "MAX_SHAPES", 10)
    with pytest.raises(Unclear):
        condensed(*of(compiler, "-g"))
