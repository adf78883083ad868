"""What is made of the tool's own documents: parts of a break, ratios, and what may be said of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.compare import apart, growth

PHASE = st.floats(0, 500)


@given(PHASE, PHASE, PHASE, PHASE, PHASE, PHASE, st.floats(0, 1))
def test_the_parts_of_a_break_are_the_break(
    sleepers: float, check: float, busy: float, sync: float, replace: float, start: float, left: float
) -> None:
    phases = {"prepare": 1e6, "stop": sleepers + busy, "check": check, "sync": sync, "replace": replace, "start": start}
    parked = sleepers + check
    replaced = parked + busy + sync + replace
    thread = {"parked_us": parked, "released_us": replaced + left * start}
    found = apart.parts(phases, thread)
    assert list(found) == list(apart.PARTS)
    assert sum(found.values()) == pytest.approx(thread["released_us"] - thread["parked_us"], abs=1e-6)
    assert found["wait"] == pytest.approx(busy, abs=1e-6)
    assert found["go"] == pytest.approx(left * start, abs=1e-6)


def rows(loaded: float, empty: float) -> list[dict[str, object]]:
    return [
        {
            "switch": name,
            "kind": kind,
            "break_us": base + turn % 5 / 10,
            "preempted_us": 0.0,
            "leader_preempted_us": float(turn % 2),
        }
        for turn in range(20)
        for name, base in (("loaded", loaded), ("empty", empty))
        for kind in ("upgrade", "roll_back")
    ]


@pytest.mark.parametrize(("loaded", "words"), [(20.0, "yes"), (21.0, "yes"), (26.0, "no")])
def test_whether_the_promise_holds(loaded: float, words: str) -> None:
    found = growth.summary(rows(loaded, 20.0))
    assert found["upgrade"]["ratio"] == pytest.approx(loaded / 20, rel=0.01)
    assert found["upgrade"]["loaded"]["count"] == 20
    assert found["upgrade"]["undisturbed"]["count"] == 10
    assert growth.holds(found["upgrade"]) == words


@pytest.mark.parametrize(
    ("ratio", "low", "high", "words"),
    [(1.05, 1.0, 1.3, "yes, not for certain"), (1.15, 1.0, 1.3, "no, not for certain"), (1.0, 0.9, 1.1, "yes")],
)
def test_what_cannot_be_told_is_said(ratio: float, low: float, high: float, words: str) -> None:
    assert growth.holds({"ratio": ratio, "low": low, "high": high}) == words


@pytest.mark.parametrize(("loaded", "rounds"), [(20.0, 1), (30.0, 1), (22.0, 3)], ids=["holds", "does not", "unclear"])
def test_there_are_more_runs_where_few_cannot_tell(loaded: float, rounds: int) -> None:
    settings = growth.Settings(runs=20, rounds=3)
    all_rows = rows(loaded, 20.0)
    found = growth.repeated(lambda turn: all_rows[4 * turn : 4 * turn + 4], settings)
    assert found == all_rows * rounds


def test_only_polling_threads_count() -> None:
    threads = [
        {"name": "pmd-c01/id:9", "how": "signal", "busy": True, "break_us": 20.0},
        {"name": "pmd-c00/id:8", "how": "signal", "busy": True, "break_us": 22.0},
        {"name": "revalidator7", "how": "signal", "busy": True, "break_us": 900.0},
        {"name": "pmd-c02/id:7", "how": "absent", "busy": False, "break_us": 0.0},
    ]
    assert [row["break_us"] for row in apart.polling({"threads": threads})] == [20.0, 22.0]
    with pytest.raises(HotUpgradeError, match="no polling thread"):
        apart.polling({"threads": threads[2:]})


def test_breaks_without_a_preemption() -> None:
    taken = [(1.0, 0.0, 0.0), (2.0, 0.5, 0.0), (3.0, 0.0, 0.5), (4.0, None, None)]
    rows = [{"break_us": value, "preempted_us": one, "leader_preempted_us": other} for value, one, other in taken]
    assert apart.undisturbed(rows) == [1.0, 4.0], "what is not known is not left out"
