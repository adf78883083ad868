"""A comparison from the cache is the comparison."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from hotupgrade.binary.build import Build
from hotupgrade.binary.cache import Cache, cache_key, entry, load_build
from hotupgrade.plan import cache as module
from hotupgrade.plan.cache import compare_cached, concerns_cached
from hotupgrade.plan.compare import compare
from hotupgrade.plan.concerns import concerns
from hotupgrade.plan.model import Comparison
from unit.conftest import Compiler

TEXT = """
extern int g(int); extern int puts(const char *);
int size[{0}]; int start = {0}; __thread int t = {0};
static int __attribute__((noinline)) leaf(int x) {{ return g(x) + {0}; }}
int top(int x) {{ static int n; return leaf(x) + n++ + size[x] + t + g(x); }}
int caller(int x) {{ return leaf(x) * 2 + g(x); }}
int line(void) {{ return puts("file.c:{0}"); }}
int gone{0}(int x) {{ return leaf(x) - g(x); }}
int same(int x) {{ return start + g(x); }}
"""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def builds(compiler: Compiler, cache: Cache) -> tuple[Build, Build]:
    texts = (TEXT.format(3), "__thread int more = 1;" + TEXT.format(4))
    old, new = (load_build(compiler.file(text).read_bytes(), "x", cache) for text in texts)
    return old, new


def values(comparison: Comparison) -> dict[str, object]:
    found: dict[str, object] = {}
    for field in fields(comparison):
        value = getattr(comparison, field.name)
        if isinstance(value, np.ndarray):
            value = (value.dtype, value.tolist())
        found[field.name] = value
    return {**found, "old": None, "new": None}


def refuse(*_: object) -> Comparison:
    raise AssertionError("compared again")


def test_it_comes_back_whole(builds: tuple[Build, Build], cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = compare(*builds)
    assert plain.dragged
    assert plain.resized
    assert plain.initial_changed
    assert plain.notes
    assert not plain.tls_equal
    first = compare_cached(*builds, cache)
    monkeypatch.setattr(module, "compare", refuse)
    second = compare_cached(*builds, cache)
    assert values(first) == values(second) == values(plain)
    assert second.old is builds[0]
    assert second.new is builds[1]


def test_the_other_direction_is_another_comparison(builds: tuple[Build, Build], cache: Cache) -> None:
    compare_cached(*builds, cache)
    back = compare_cached(builds[1], builds[0], cache)
    assert values(back) == values(compare(builds[1], builds[0]))


def test_what_does_not_fit_is_compared_again(builds: tuple[Build, Build], cache: Cache) -> None:
    wanted = values(compare_cached(*builds, cache))
    key = cache_key("comparison", *builds)
    good = cache.get(key)
    assert good is not None
    arrays = {name: good.array(name).copy() for name in good.columns}
    for name in ("old_of", "new_of", "same", "plain_old"):
        cache.put(entry(key, {**arrays, name: arrays[name][:-1]}, good.texts))
        assert values(compare_cached(*builds, cache)) == wanted
    cache.put(entry(key, {**arrays, "old_of": arrays["old_of"] + 1000}, good.texts))
    assert values(compare_cached(*builds, cache)) == wanted
    cache.put(entry(key, arrays, [["one"]]))
    assert values(compare_cached(*builds, cache)) == wanted
    cache.put(entry(key, {}, []))
    assert values(compare_cached(*builds, cache)) == wanted


def test_concerns_come_back_too(builds: tuple[Build, Build], cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = compare(*builds)
    fresh = concerns(comparison)
    assert fresh
    assert concerns_cached(comparison, cache) == fresh
    monkeypatch.setattr(module, "concerns", refuse)
    assert concerns_cached(comparison, cache) == fresh
    cache.put(entry(cache_key("concerns", *builds), {}, [["no such kind", "", ""]]))
    with pytest.raises(AssertionError, match="compared again"):
        concerns_cached(comparison, cache)
