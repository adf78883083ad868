"""The worked example of the documentation, and that it names every key and code."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from hotupgrade.plan.loops import checks, resolve, safepoints
from hotupgrade.plan.loops.model import Door, Pair, SiteKind
from hotupgrade.plan.loops.profile import LoopProfile, Skip
from unit.conftest import Compiler
from unit.plan.loops.workers import resolve as resolved

PAGE = Path(__file__).resolve().parents[4] / "docs" / "loops.md"


def block(language: str) -> str:
    """The first block of code in this language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_the_example(compiler: Compiler, tmp_path: Path) -> None:
    old, new = (compiler.build(block("c"), "-g", f"-DVERSION={n}") for n in (1, 2))
    plan = resolved(tmp_path, block("toml"), new, old).plan
    assert plan.door is Door.FIELDS
    assert plan.pairs == (Pair("buffer_drop", "buffer_make"),)
    kinds = [(site.kind, site.name) for site in plan.sides[0].sites]
    assert sorted(kinds) == [
        (SiteKind.CLEAN, "buffer_drop"),
        (SiteKind.SETUP, "buffer_make"),
        (SiteKind.WORK, "work"),
    ]


def test_every_key_is_described() -> None:
    text = PAGE.read_text()
    for table in (LoopProfile, Skip):
        for field in msgspec.structs.fields(table):
            assert field.encode_name == "skip" or f"| `{field.encode_name}` |" in text, field.encode_name
    for door in Door:
        assert door is Door.FLAG or f"| `{door}` |" in text, door


def test_every_code_is_described() -> None:
    text = PAGE.read_text()
    sources = [Path(module.__file__ or "").read_text() for module in (checks, resolve, safepoints)]
    codes = set(re.findall(r'"((?:loop|bad)-[a-z-]+)"', "".join(sources))) | {"bad-profile"}
    assert len(codes) >= 6
    for code in codes:
        assert f"| `{code}` |" in text, code
