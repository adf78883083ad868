"""The page: whole, self-contained, safe, and honest about what went wrong."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hotupgrade.report import page
from unit.report import samples

VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Every element is closed in order; collects attributes that could reach the network, and elements."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert all(address.startswith("data:image/png;base64,") for address in checker.addresses)
    assert "script" not in checker.seen
    assert "link" not in checker.seen
    return checker


@pytest.mark.parametrize(
    "report",
    [
        samples.report(),
        {},
        {"steps": [{}], "facts": [{}], "machine": {}},
        {"steps": [{"title": "x", "document": None}], "facts": [{"name": "x", "ok": "yes"}], "machine": {"a": None}},
        {"steps": [{"document": {"command": "upgrade"}}]},
        {"steps": "no list", "facts": {"no": "list"}, "title": 3, "machine": ["no", "mapping"]},
        {"steps": [{"document": {"command": "upgrade", "modules": [{}], "notes": [{}], "threads": [{}]}}]},
    ],
)
def test_every_report_gets_a_whole_page(report: dict[str, Any]) -> None:
    checked(page.render(report))


def test_the_picture_is_inside(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG not really")
    page.write(samples.report(), picture, tmp_path / "out" / "page.html")
    text = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert base64.b64encode(b"\x89PNG not really").decode() in text
    assert "http" not in text
    checked(text)


def test_a_missing_picture_leaves_a_page(tmp_path: Path) -> None:
    page.write(samples.report(), tmp_path / "none.png", tmp_path / "page.html")
    assert "img" not in checked((tmp_path / "page.html").read_text()).seen


def test_what_a_person_wants_to_know_is_there() -> None:
    words = " ".join(checked(page.render(samples.report())).words)
    for expected in (
        "A switch, upgraded",
        "libsample.so.1",
        "switch (process 4242)",
        "18.0 µs",
        "17.0 µs for a stop that changes nothing",
        "process id",
        "upgrade under load",
        "parse",
        "aaaaaaaaaaaa",
        "7 objects kept",
        "Upgraded while it ran, all 2 facts as expected",
    ):
        assert expected in words


def test_a_fact_that_broke_or_a_step_that_failed_is_the_verdict() -> None:
    broken = samples.report()
    broken["facts"][1]["ok"] = False
    assert "Not as it should be: flows" in page.render(broken)
    failed = samples.report()
    failed["steps"][0]["document"]["ok"] = False
    assert "Not as it should be: upgrade under load" in page.render(failed)


def test_everything_is_escaped() -> None:
    evil = "</pre><script>alert(1)</script>\"'&"
    document = samples.upgrade() | {"name": evil, "outcome": evil, "time": evil}
    document["modules"] = [
        {
            "name": evil,
            "old": {"build_id": evil, "path": evil},
            "functions": {"changed": [evil]},
            "constructors": [evil],
        }
    ]
    document["notes"] = [{"code": evil, "text": evil}]
    report = {
        "title": evil,
        "machine": {evil: evil},
        "facts": [{"name": evil, "before": evil, "after": {evil: evil}, "ok": False}],
        "steps": [{"title": evil, "document": document}],
    }
    text = page.render(report)
    checked(text)
    assert "<script" not in text
