"""Reading documents that may lack anything."""

from __future__ import annotations

import pytest

from hotupgrade.report.document import duration, names, number, plural, rows, section, text


@pytest.mark.parametrize(
    ("microseconds", "words"),
    [
        (None, "not known"),
        (0.2, "0.2 µs"),
        (18.24, "18.2 µs"),
        (312.4, "312 µs"),
        (999.7, "1.0 ms"),
        (4_200.0, "4.2 ms"),
        (999_960.0, "1.00 s"),
        (1_840_000.0, "1.84 s"),
    ],
)
def test_a_duration_is_said_in_the_unit_a_person_would_choose(microseconds: float | None, words: str) -> None:
    assert duration(microseconds) == words


@pytest.mark.parametrize("nonsense", [None, 3, "words", [], {}, {"a": None}, {"a": [1, 2]}, {"a": {"b": "text"}}])
def test_what_is_missing_is_not_known(nonsense: object) -> None:
    assert number(nonsense, "a", "b") is None
    assert section(nonsense, "a", "c") == {}
    assert rows(nonsense, "a") == []


def test_numbers_that_are_none() -> None:
    assert number({"a": True}, "a") is None
    assert number({"a": float("nan")}, "a") is None
    assert number({"a": float("inf")}, "a") is None
    assert number({"a": 3}, "a") == 3.0


def test_names_are_a_list_and_never_letters_of_a_word() -> None:
    assert names({"a": ["x", "y"]}, "a") == ["x", "y"]
    assert names({"a": "xy"}, "a") == []
    assert names({"a": 3}, "a") == []


def test_text_reads_values_aloud() -> None:
    assert text({"a": True}, "a") == "yes"
    assert text({"a": 12345}, "a") == "12,345"
    assert text({"a": [1, 2]}, "a") == "1, 2"
    assert text({}, "a", default="?") == "?"


def test_plural() -> None:
    assert (plural(1, "edit"), plural(2, "edit"), plural(None, "edit")) == ("1 edit", "2 edits", "")
    assert plural(2, "entry", "entries") == "2 entries"
