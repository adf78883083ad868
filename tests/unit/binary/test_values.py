"""What may be held where: joined over two ways it is known less, never wrong."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from iced_x86 import Register

from hotupgrade.binary.values import NOTHING, OTHER, Atom, Origin, State, Value, has, is_only, moved, united, value

BASE = value(Origin.BLOCK, 3)
FRAME = value(Origin.STACK, 0)
ATOMS = st.builds(Atom, st.sampled_from(list(Origin)), st.integers(0, 3), st.integers(-16, 16))
VALUES = st.frozensets(ATOMS, min_size=1, max_size=3)


@given(VALUES, VALUES)
def test_one_of_two(first: Value, second: Value) -> None:
    found = united(first, second)
    assert found == united(second, first)
    assert united(first, first) == first
    # Nothing new comes in but "anything else", which stands for places that are not followed.
    assert found - {NOTHING} <= first | second
    assert united(found, second) == united(found, united(first, second))


@given(VALUES, st.integers(-8, 8))
def test_a_number_moves_addresses_and_nothing_else(held: Value, by: int) -> None:
    after = moved(held, by)
    assert len(after) <= len(held)
    assert {atom.origin for atom in after} <= {atom.origin for atom in held} | {Origin.OTHER}
    if is_only(held, Origin.STACK):
        assert moved(after, -by) == held


def test_an_address_that_is_one_of_two_is_not_followed() -> None:
    assert united(FRAME, moved(FRAME, 8)) == OTHER
    assert united(BASE, OTHER) == BASE | OTHER
    assert has(united(BASE, OTHER), Origin.BLOCK)
    assert not is_only(united(BASE, OTHER), Origin.BLOCK)


def test_joining_knows_what_both_ways_know() -> None:
    one, other = State({Register.RAX: BASE}, {(0, -8): BASE}), State({Register.RAX: BASE}, {})
    kept = one.copy()
    assert one.join(other)
    assert one.get(Register.RAX) == BASE
    assert one.read(moved(FRAME, -8)) == BASE | OTHER
    assert not one.join(other), "nothing new the second time"
    assert kept.read(moved(FRAME, -8)) == BASE, "a copy is one's own"


def test_the_stack_holds_what_was_written_last() -> None:
    state = State({}, {})
    assert state.write(moved(FRAME, -8), BASE, 8)
    assert state.read(moved(FRAME, -8)) == BASE
    assert state.write(moved(FRAME, -16), value(Origin.POINTER), 8)
    assert state.read(moved(FRAME, -8)) == BASE
    for at, width in ((-4, 1), (-12, 8), (-40, 64)):
        other = state.copy()
        assert other.write(moved(FRAME, at), OTHER, width)
        assert other.read(moved(FRAME, -8)) == OTHER, (at, width)


def test_only_whole_words_are_kept() -> None:
    state = State({}, {})
    assert state.write(FRAME, BASE, 4)
    assert state.read(FRAME) == OTHER
    assert not state.write(OTHER, BASE, 8), "nobody knows where it is now"
    assert not state.write(FRAME | moved(FRAME, 8), BASE, 8)


def test_a_frame_of_its_own_is_another_place() -> None:
    state = State({}, {})
    assert state.write(value(Origin.STACK, 0), BASE, 8)
    assert state.read(value(Origin.STACK, 0x1000)) == OTHER
    assert state.size() == 1
    assert not state.is_bare()
    assert State({Register.RSP: FRAME}, {}).is_bare()
