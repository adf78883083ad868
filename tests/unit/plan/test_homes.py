"""Homes: the first address that a name had, through any number of builds."""

from __future__ import annotations

import dataclasses

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.plan.compare import compare
from hotupgrade.plan.copies import immovable, present
from hotupgrade.plan.homes import NEW, Homes, Rehomed, find_homes
from hotupgrade.plan.model import Comparison, Image
from unit.conftest import Compiler
from unit.plan.scenes import BASE

SECOND, THIRD = BASE + 0x1000000, BASE + 0x2000000

ONE = "static int state; int get(void) { return state; } int add(int x) { return state += x; }\n"
TWO = ONE + "static int count; int tick(void) { return ++count; } int offered = 9;\n"
THREE = TWO + "int more(void) { return count + 2; }\n"


def row(build: Build, name: str) -> int:
    return build.entities.names.index(name)


def address(build: Build, name: str) -> int:
    return int(build.entities.address[row(build, name)])


def later(build: Build, base: int, *owned: str) -> Image:
    rows = frozenset(row(build, name) for name in owned)
    return Image(build, base, placed=rows, owned=rows)


def homes_of(images: list[Image], new: Build, current: int = 0) -> Homes:
    return find_homes(images, current, new, [compare(image.build, new) for image in images])


def home(homes: Homes, build: Build, name: str) -> tuple[int, int]:
    return int(homes.owner[row(build, name)]), int(homes.address[row(build, name)])


def test_paired_names_live_in_the_first_image(compiler: Compiler) -> None:
    old, new = compiler.build(ONE), compiler.build(TWO)
    homes = homes_of([Image(old, BASE)], new)
    for name in ("state", "get", "add"):
        assert home(homes, new, name) == (0, BASE + address(old, name))
    for name in ("count", "tick", "offered"):
        assert home(homes, new, name) == (NEW, 0)
    assert not homes.unproven.any()


def test_names_that_a_later_image_owned_live_there(compiler: Compiler) -> None:
    first, second, third = (compiler.build(source) for source in (ONE, TWO, THREE))
    images = [Image(first, BASE), later(second, SECOND, "count", "tick")]
    homes = homes_of(images, third, current=1)
    assert home(homes, third, "state") == (0, BASE + address(first, "state"))
    assert home(homes, third, "count") == (1, SECOND + address(second, "count"))
    assert home(homes, third, "tick") == (1, SECOND + address(second, "tick"))
    assert home(homes, third, "offered") == (NEW, 0)  # the second image did not use it
    assert home(homes, third, "more") == (NEW, 0)
    assert not homes.unproven.any()


def test_a_build_that_is_back_has_its_own_homes(compiler: Compiler) -> None:
    first, second, third = (compiler.build(source) for source in (ONE, TWO, THREE))
    images = [Image(first, BASE), later(second, SECOND, "count", "tick"), later(third, THIRD, "more")]
    homes = homes_of(images, second, current=2)
    assert home(homes, second, "count") == (1, SECOND + address(second, "count"))
    assert home(homes, second, "state") == (0, BASE + address(first, "state"))


def test_a_broken_chain_of_a_variable_is_not_guessed(compiler: Compiler) -> None:
    """The running build has it with a home in the first one, but the first one is not paired with the new one."""
    first, second, third = compiler.build(ONE), compiler.build(TWO), compiler.build(THREE)
    images = [Image(first, BASE), later(second, SECOND, "tick", "count")]
    comparisons = [compare(image.build, third) for image in images]
    old_of = comparisons[0].old_of.copy()
    old_of[row(third, "state")] = -1
    comparisons[0] = dataclasses.replace(comparisons[0], old_of=old_of)
    homes = find_homes(images, 1, third, comparisons)
    assert np.flatnonzero(homes.unproven).tolist() == [row(third, "state")]


def test_a_variable_with_two_homes_is_not_guessed(compiler: Compiler) -> None:
    first, second, third = compiler.build(TWO), compiler.build(TWO + "int x;"), compiler.build(THREE)
    images = [Image(first, BASE), later(second, SECOND, "count")]
    homes = homes_of(images, third, current=1)
    assert np.flatnonzero(homes.unproven).tolist() == [row(third, "count")]


def test_ambiguous_variables_are_unproven(compiler: Compiler) -> None:
    old, new = compiler.build(ONE), compiler.build(TWO)
    comparison = dataclasses.replace(compare(old, new), ambiguous_new=frozenset({row(new, "count")}))
    homes = find_homes([Image(old, BASE)], 0, new, [comparison])
    assert np.flatnonzero(homes.unproven).tolist() == [row(new, "count")]


CONSTANTS = """
const int same[3] = {{ 1, 2, 3 }};
const int grows[] = {{ {values} }};
{qualifier} int thaws = 5;
int use(int i) {{ return same[i] + grows[i] + thaws; }}
"""


def test_constants_that_cannot_stay(compiler: Compiler) -> None:
    old = compiler.build(CONSTANTS.format(values="1, 2", qualifier="const"))
    new = compiler.build(CONSTANTS.format(values="1, 2, 3", qualifier=""))
    homes = homes_of([Image(old, BASE)], new)
    assert home(homes, new, "same") == (0, BASE + address(old, "same"))
    assert home(homes, new, "grows") == home(homes, new, "thaws") == (NEW, 0)
    assert set(homes.rehomed) == {Rehomed(row(new, name), 0, row(old, name)) for name in ("grows", "thaws")}
    assert not homes.unproven.any()


def test_thread_locals_live_at_offsets(compiler: Compiler) -> None:
    text = "static __thread int kept = 1; int get(void) { return ++kept; }"
    more = "static __thread long fresh = 2; long fetch(void) { return ++fresh; }"
    first, second, third = (
        compiler.build(source, "-fno-toplevel-reorder") for source in (text, more + text, more + text + "int x;")
    )
    image = dataclasses.replace(later(second, SECOND, "fresh", "fetch"), tls_offsets={row(second, "fresh"): -4000})
    homes = homes_of([Image(first, BASE), image], third, current=1)
    assert home(homes, third, "kept") == (0, 0)
    assert address(third, "kept") == 8
    assert home(homes, third, "fresh") == (1, -4000)


def test_which_copies_an_image_holds(compiler: Compiler) -> None:
    build = compiler.build(ONE)
    everything, nothing = Image(build, BASE), Image(build, BASE, placed=frozenset())
    get, startup = row(build, "get"), row(build, "frame_dummy")
    assert present(everything, 0)[[get, startup]].all()
    assert present(everything, 1)[get]
    assert not present(everything, 1)[startup]
    assert not present(nothing, 1).any()
    assert present(later(build, BASE, "get"), 1).sum() == 1
    assert not present(everything, 0)[row(build, "state")]
    assert immovable(build)[startup]


def test_pairs_of_another_build_are_not_used_for_the_same_build(compiler: Compiler) -> None:
    """A comparison of a build with itself may leave out what it likes."""
    build = compiler.build(ONE)
    comparison: Comparison = compare(build, build)
    empty = dataclasses.replace(comparison, old_of=np.full_like(comparison.old_of, -1))
    homes = find_homes([Image(build, BASE)], 0, build, [empty])
    assert (homes.owner == 0).all()
