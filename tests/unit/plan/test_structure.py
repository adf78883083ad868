"""Builds without names, matched by structure: the symbols of the files before they were stripped are the oracle."""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crosscheck.stripped import STRUCTURE, Oracle
from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Flags, Kind
from hotupgrade.errors import Reason
from hotupgrade.plan.compare import compare
from hotupgrade.plan.model import Comparison, Image
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.verdict import verdict
from unit.conftest import Compiler

OBJECTS = (Kind.OBJECT, Kind.RELRO)


@dataclass(frozen=True)
class Pair:
    """Two builds with symbols and without."""

    oracle: Oracle
    bare: Comparison

    @property
    def wrong(self) -> list[str]:
        """What is paired wrongly; not that a function took the place of another, which looks like a change."""
        return self.oracle.wrong(self.bare, strict=False)

    @property
    def changed(self) -> set[str]:
        return self._names(self.bare.replaced)

    @property
    def added(self) -> set[str]:
        return self._names((self.bare.old_of < 0) & (self.bare.new.entities.kind == Kind.FUNCTION))

    @property
    def open(self) -> set[str]:
        return self._names((self.bare.old_of < 0) & np.isin(self.bare.new.entities.kind, OBJECTS))

    def _names(self, flags: Flags) -> set[str]:
        """What the symbols call these rows of the new build."""
        new, found = self.oracle.new, set()
        for row in np.flatnonzero(flags).tolist():
            place = new.row_at(int(self.bare.new.entities.address[row]))
            found.add("?" if place is None else new.entities.names[place])
        return found

    def reasons(self) -> list[Reason]:
        options = PlanOptions(trust_layout=True)
        return verdict([Image(self.bare.old, 0x10000000)], 0, self.bare.new, [self.bare], options)[0]


def strip(path: Path) -> Build:
    target = path.with_name("stripped")
    subprocess.run(["strip", "-o", target, path], check=True)
    return Build.open(target, STRUCTURE)


def pair(compiler: Compiler, old: str, new: str, *flags: str) -> Pair:
    files = [compiler.file(text, *flags) for text in (old, new)]
    named = [Build.open(file) for file in files]
    bare = [strip(file) for file in files]
    assert all(build.bare for build in bare)
    return Pair(Oracle(named[0], named[1], compare(named[0], named[1])), compare(bare[0], bare[1]))


STATE = """
static long total, limit = 5, counts[4];
__attribute__((noinline)) static long step(long x) { return x STEP; }
long put(long x) { counts[x & 3]++; return total += step(x) PUT; }
long get(long x) { return total + counts[x & 3]; }
long cap(long x) { return limit += x; }
"""


def state(step: str = "* 3", put: str = "", more: str = "") -> str:
    return STATE.replace("STEP", step).replace("PUT", put) + more


def test_functions_and_objects(compiler: Compiler) -> None:
    found = pair(compiler, state(), state(step="* 5 + 1", put="+ limit"))
    assert not found.wrong
    assert found.changed == {"put"}
    assert "step" in found.added  # nobody can tell; its only caller changed with it
    assert not found.open
    assert found.reasons() == []


def test_a_function_that_changed_alone(compiler: Compiler) -> None:
    found = pair(compiler, state(), state(step="* 5 + 1"))
    assert not found.wrong
    assert found.changed == {"step"}
    assert not found.added
    assert found.reasons() == []


def test_a_variable_in_between(compiler: Compiler) -> None:
    new = state(put="+ ++fresh").replace("total, limit", "total, fresh = 9, limit")
    found = pair(compiler, state(), new)
    assert not found.wrong
    assert found.open == {"fresh"}
    assert found.reasons() == []  # nothing else could be there


def test_a_variable_that_only_changed_code_uses(compiler: Compiler) -> None:
    text = "static long own; long take(long x) {{ return own += x{0}; }}"
    found = pair(compiler, state(more=text.format("")), state(more=text.format(" * x + 7")))
    assert not found.wrong
    (reason,) = found.reasons()
    assert reason.code == "ambiguous-static"
    assert "an unnamed object of .bss at 0x" in reason.text
    assert "take" in reason.text


def test_a_table_that_may_have_grown(compiler: Compiler) -> None:
    text = """
    static long table[{0}];
    __attribute__((noinline)) static long sum(long *values, long count)
    {{
        long result = 0;
        for (long i = 0; i < count; i++) result += values[i];
        return result;
    }}
    long all(void) {{ return sum(table, {0}); }}
    long *where(void) {{ return table; }}
    """
    found = pair(compiler, state(more=text.format(8)), state(more=text.format(64)))
    assert not found.wrong
    assert {reason.code for reason in found.reasons()} == {"object-resized"}


def test_two_answers_are_none(compiler: Compiler) -> None:
    """One function of equal shape means another variable than before: who says otherwise is not believed either."""
    text = "static long one, two; long f(long x) {{ return {0} += x; }} long g(long x) {{ return {1} += x; }}"
    more = "long h(long x) { return one -= x; } long i(long x) { return two -= x; }"
    old, new = (state(more=text.format(*names) + more) for names in (("one", "two"), ("two", "one")))
    found = pair(compiler, old, new)
    assert not found.wrong
    assert {"one", "two"} <= found.open
    assert {"f", "g", "h", "i"} <= found.changed


def test_callbacks_that_changed_with_all_that_name_them(compiler: Compiler) -> None:
    """Whoever kept the address of the old one would go on with it."""
    text = """
    long (*hook)(long);
    static long own(long x) {{ return x * 3 {0}; }}
    long set(long x) {{ hook = own; return x {0}; }}
    """
    found = pair(compiler, state(more=text.format("")), state(more=text.format("+ 7 * x * x")))
    assert not found.wrong
    assert {reason.code for reason in found.reasons()} == {"ambiguous-function"}


HANDLERS = """
static long low(long x) {{ return total += x * 3; }}
static long high(long x) {{ return counts[x & 3] += x * 7 {more}; }}
{added}
static long (*const handlers[])(long) = {{{table}}};
long handle(long x) {{ return handlers[x & 1](x); }}
"""


def handlers(more: str = "", added: str = "", table: str = "low, high") -> str:
    return state(more=HANDLERS.format(more=more, added=added, table=table))


def test_a_callback_that_changed(compiler: Compiler) -> None:
    found = pair(compiler, handlers(), handlers(more="- limit"))
    assert not found.wrong
    assert (found.changed, found.added) == ({"high"}, set())
    assert found.reasons() == []


def test_a_callback_in_the_place_of_another(compiler: Compiler) -> None:
    """Whoever kept the address of the one would call the other; which is which, the table alone does not say."""
    fresh = "static long fresh(long x) { return limit -= x; }"
    found = pair(compiler, handlers(), handlers(added=fresh, table="fresh, low"))
    assert not found.wrong
    assert {"fresh", "low"} <= found.added
    assert {reason.code for reason in found.reasons()} == {"ambiguous-function"}


def test_callbacks_that_changed_side_by_side(compiler: Compiler) -> None:
    """Each is more like its own old self than like the other's."""
    before, after = handlers(), handlers(more="- limit").replace("total += x * 3", "total += x * 3 + x * x")
    found = pair(compiler, before, after)
    assert not found.wrong
    assert (found.changed, found.added) == ({"low", "high"}, set())
    assert found.reasons() == []


def test_the_only_table_went(compiler: Compiler) -> None:
    """The new build has no such section at all."""
    found = pair(compiler, handlers(), state())
    assert not found.wrong
    assert not found.open


def test_names_are_worth_more(compiler: Compiler) -> None:
    """With symbols in both builds nothing of this is asked."""
    builds = [compiler.build(text) for text in (state(), state(step="* 5"))]
    assert not any(build.bare or build.unbounded.any() for build in builds)


def test_the_new_build_has_symbols(compiler: Compiler) -> None:
    files = [compiler.file(text) for text in (state(), state(step="* 5"))]
    old, new = strip(files[0]), Build.open(files[1]).stripped
    found = compare(old, new)
    assert {new.entities.names[row] for row in np.flatnonzero(found.replaced)} == {"step"}
    assert (found.new_of[old.entities.kind == Kind.OBJECT] >= 0).all()


def test_cold_parts_and_switches(compiler: Compiler) -> None:
    cases = "".join(f"case {i}: return total * {i + 2};" for i in range(12))
    text = (
        f"void abort(void); long pick(long x) {{ switch (x) {{ {cases} default: if (total > 7) abort(); return 1; }} }}"
    )
    found = pair(compiler, state(more=text), state(more=text.replace("return 1;", "return total - 2;")))
    assert not found.wrong
    assert "pick" in found.changed
    assert any(name.endswith(".cold") for name in found.bare.new.entities.names)


def test_a_build_and_itself(compiler: Compiler) -> None:
    found = pair(compiler, state(), state())
    assert not found.wrong
    assert not found.changed
    assert (found.bare.new_of >= 0).all()


# Programs that nobody wrote


@dataclass(frozen=True)
class Variable:
    name: str
    length: int  # 0: no array
    initial: int

    @property
    def declared(self) -> str:
        array = f"[{self.length}]" if self.length else ""
        initial = f" = {{{self.initial}}}" if self.initial else ""
        return f"static long {self.name}{array}{initial};"

    def step(self, number: int) -> str:
        if self.length:
            return f"{self.name}[x & {self.length - 1}] += x * {number};"
        return f"{self.name} = {self.name} * {number} + x;"


@dataclass(frozen=True)
class Function:
    name: str
    local: bool
    body: tuple[tuple[str, int], ...]  # name of a variable or of an earlier function, and a number
    taken: bool = False  # its address is in a table


@dataclass(frozen=True)
class Source:
    variables: tuple[Variable, ...]
    functions: tuple[Function, ...]

    def text(self) -> str:
        known = {variable.name: variable for variable in self.variables}
        lines = [variable.declared for variable in self.variables]
        earlier: set[str] = set()
        for function in self.functions:
            scope = "__attribute__((noinline)) static" if function.local else ""
            steps = "".join(
                known[name].step(number) if name in known else f"x += {name}(x + {number});"
                for name, number in function.body
                if name in known or name in earlier
            )
            lines.append(f"{scope} long {function.name}(long x) {{ {steps} return x; }}")
            earlier.add(function.name)
        uses = "".join(f"x ^= {f.name}(x);" for f in self.functions if f.local and not f.taken)
        lines.append(f"long use(long x) {{ {uses} return x; }}")
        table = "".join(f"{f.name}, " for f in self.functions if f.taken)
        lines.append(f"static long (*const table[])(long) = {{{table}0}};")
        lines.append("long call(long i, long x) { return table[i](x); }")
        return "\n".join(lines)


def program(rng: random.Random) -> Source:
    variables = tuple(
        Variable(f"v{i}", rng.choice([0, 0, 2, 4, 8]), rng.choice([0, 0, 0, i + 1])) for i in range(rng.randint(3, 10))
    )
    functions: list[Function] = []
    for i in range(rng.randint(3, 12)):
        names = [v.name for v in variables] * 2 + [f.name for f in functions if f.local]
        body = tuple((rng.choice(names), rng.randint(2, 99)) for _ in range(rng.randint(1, 4)))
        functions.append(Function(f"f{i}", rng.random() < 0.6, body, taken=rng.random() < 0.3))
    return Source(variables, tuple(functions))


EDITS = (
    *("add statement", "drop statement", "add variable", "drop variable"),
    *("add function", "drop function", "replace function", "move"),
)


def edited(source: Source, rng: random.Random) -> Source:
    """Some of what people do: statements and functions come and go, and so do variables with what uses them."""
    for _ in range(rng.randint(1, 3)):
        variables, functions = list(source.variables), list(source.functions)
        edit, index = rng.choice(EDITS), rng.randrange(len(functions))
        chosen = functions[index]
        if edit == "add statement":
            functions[index] = replace(chosen, body=(*chosen.body, (rng.choice(variables).name, rng.randint(2, 99))))
        elif edit == "drop statement" and len(chosen.body) > 1:
            functions[index] = replace(chosen, body=chosen.body[1:])
        elif edit == "add variable":
            fresh = Variable(f"n{rng.randrange(10**6)}", rng.choice([0, 4]), rng.choice([0, 3]))
            variables.insert(rng.randint(0, len(variables)), fresh)
            functions[index] = replace(chosen, body=(*chosen.body, (fresh.name, 5)))
        elif edit == "drop variable" and len(variables) > 2:
            variables.remove(rng.choice(variables))
        elif edit == "add function":
            body = ((rng.choice(variables).name, rng.randint(2, 99)),)
            fresh_function = Function(f"g{rng.randrange(10**6)}", rng.random() < 0.5, body, taken=rng.random() < 0.3)
            functions.insert(rng.randint(0, len(functions)), fresh_function)
        elif edit == "drop function" and len(functions) > 2:
            functions.pop(index)
        elif edit == "replace function":
            body = tuple((rng.choice(variables).name, rng.randint(2, 99)) for _ in chosen.body)
            functions[index] = replace(chosen, name=f"g{rng.randrange(10**6)}", body=body)
        elif edit == "move":
            variables.append(variables.pop(rng.randrange(len(variables))))
        source = Source(tuple(variables), tuple(functions))
    return source


@pytest.mark.timeout(600)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1))
def test_no_pair_is_wrong(compiler: Compiler, seed: int) -> None:
    rng = random.Random(seed)
    source = program(rng)
    found = pair(compiler, source.text(), edited(source, rng).text())
    assert not found.wrong
