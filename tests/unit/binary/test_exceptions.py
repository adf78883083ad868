"""Language-specific data of C++ functions."""

from __future__ import annotations

from unit.conftest import Compiler

TEXT = """
extern "C" void may_throw(int); extern "C" void cleans(void *);
struct guard { ~guard() { cleans(this); } };
struct a { virtual ~a(); }; a::~a() {}
struct b { virtual ~b(); }; b::~b() {}
extern "C" int two(int x) { try { may_throw(x); } catch (a &) { return 1; } catch (b &) { return 2; } return 0; }
extern "C" int all(int x) { try { may_throw(x); } catch (...) { return 1; } return 0; }
extern "C" int clean(int x) { guard g; may_throw(x); return x; }
extern "C" int none(int x) { return x; }
"""


def test_what_each_function_catches(compiler: Compiler) -> None:
    build = compiler.build({"module.cc": TEXT})
    tables = {build.entities.names[build.row_at(vaddr) or 0]: table for vaddr, table in build.exception_tables.items()}
    assert set(tables) >= {"two", "all", "clean"}
    assert "none" not in tables
    assert None not in tables.values()
    caught = {}
    for name, table in tables.items():
        assert table is not None
        words = [build.row_at(vaddr) for vaddr in table.types if vaddr]
        caught[name] = [build.entities.names[row] for row in words if row is not None] + [0] * table.types.count(0)
    # The first type tested is the last in the table or the first, as the compiler likes.
    assert sorted(map(str, caught["two"])) == ["DW.ref._ZTI1a", "DW.ref._ZTI1b"]
    assert caught["all"] == [0]
    assert caught["clean"] == []


def test_plain_c_has_none(compiler: Compiler) -> None:
    assert compiler.build("int f(int x) { return x; }").exception_tables == {}
