"""What is answered for many places at once agrees with the answers for each."""

from __future__ import annotations

import numpy as np
import pytest

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import TargetKind
from hotupgrade.plan import meaning as meanings
from hotupgrade.plan.match import match
from hotupgrade.plan.meaning import Meaning
from hotupgrade.plan.shape import shapes_of
from unit.conftest import Compiler

SOURCE = r"""
#include <stdio.h>
#define LONG "0123456789012345678901234567890123456789012345678901234567890123456789"
static const char *const words[] = { "one", "two", "three" };
static const struct { const char *name; int (*call)(const char *); } table[] = { { "put", puts }, { "out", puts } };
static int counter;
double scaled(double x) { return x * 2.5 + FACTOR; }
int many(int n)
{
    switch (n) { case 0: return puts("zero"); case 1: return puts("uno"); case 2: return puts(CHANGED);
    case 3: return puts("tres"); case 4: return puts("\0behind"); case 5: return puts(LONG LONG LONG LONG LONG);
    case 6: return table[counter & 1].call(words[counter % 3]); }
    return puts("more") + counter++;
}
"""


@pytest.fixture(scope="module")
def meaning(compiler: Compiler) -> Meaning:
    flags = ("-g", "-fno-toplevel-reorder")
    old = compiler.build(SOURCE, '-DCHANGED="dos"', "-DFACTOR=0.5", *flags)
    new = compiler.build(SOURCE, '-DCHANGED="deux and a little longer"', "-DFACTOR=0.75", *flags)
    return Meaning(old, new, match(shapes_of(old), shapes_of(new)))


def places(build: Build) -> np.ndarray:
    """All that the code names, what lies near, and the ends of the image."""
    references = build.references
    named = references.target[references.target_kind == TargetKind.ANONYMOUS].astype(np.int64)
    found = np.concatenate([named, named + 1, named + 3, build.boundaries[build.boundaries < build.span]])
    return np.unique(np.concatenate([found, [0, build.span - 1]]))


def pairs(meaning: Meaning) -> tuple[np.ndarray, np.ndarray]:
    ours, theirs = places(meaning.old), places(meaning.new)
    return np.repeat(ours, len(theirs)), np.tile(theirs, len(ours))


def test_same_data(meaning: Meaning) -> None:
    old, new = pairs(meaning)
    sure = meaning.surely_same_data(old, new)
    answers = np.array([meaning.same_data(*pair, 0) for pair in zip(old.tolist(), new.tolist(), strict=True)])
    assert sure.any()
    assert answers[sure].all()
    assert (answers & ~sure).any()  # what is long, or holds pointers


@pytest.mark.parametrize("size", [0, 1, 8, 16, meanings._SHORT, meanings._SHORT + 1])
def test_same_bytes(meaning: Meaning, size: int) -> None:
    old, new = pairs(meaning)
    sure = meaning.surely_same_bytes(old, new, np.full(len(old), size))
    answers = [meaning.same_bytes(*pair, size) for pair in zip(old.tolist(), new.tolist(), strict=True)]
    assert np.array(answers)[sure].all()
    assert sure.any() == (size <= meanings._SHORT)


def test_switch_tables_are_left_to_be_asked_one_by_one(meaning: Meaning) -> None:
    tables = np.array([table.vaddr for table in meaning.old.jump_tables], np.int64)
    assert len(tables)
    assert not meaning.surely_same_anonymous(tables, tables, np.zeros(len(tables), np.int64)).any()
