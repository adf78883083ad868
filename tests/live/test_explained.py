"""What ``check --explain`` says of a change that no comparison can judge: as the documentation shows it."""

from __future__ import annotations

import re
from pathlib import Path

from live.conftest import Start
from live.harness import DONE, Builder, HotUpgrade

PAGE = Path(__file__).parents[2] / "docs/verdict.md"


def hints(text: str) -> str:
    """From the first heading of the hints on."""
    return text[text.index("changed functions that free") :].strip()


def test_the_documentation_shows_what_the_command_says(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("connections", 1)))
    assert program.call("open_connection", 3) == 33
    answer = hu("check", program.pid, build.library("connections", 2), "--explain")
    assert answer.code == DONE, str(answer)
    shown = re.search(r"^\$ hotupgrade check.*?^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert hints(answer.out) == hints(shown[0].removesuffix("```"))
    assert "upgradable" in answer.out


def test_hints_are_notes_of_an_upgrade_too(build: Builder, start: Start, hu: HotUpgrade) -> None:
    program = start(build.host(build.library("connections", 1)))
    document = hu.check(program.pid, build.library("connections", 2), "--explain").document
    kinds = [concern["kind"] for concern in document["explained"]["concerns"]]
    assert kinds == ["ownership", "creation", "initial-value", "constant", "text", "text"]
    assert document["explained"]["concerns"][0]["subject"] == "connection_drop"
    notes = {note["code"]: note for note in hu.upgraded(program, build.library("connections", 2))["notes"]}
    assert notes.keys() == {"initial-changed", "duties-changed", "applies-from-now-on"}
    assert "free()" in notes["duties-changed"]["text"]
    # With nothing open, it is as good as its word.
    assert program.call("open_connection", 1) == 61
    assert program.call("close_connection", 0) == 0
    assert program.quit() == ""
