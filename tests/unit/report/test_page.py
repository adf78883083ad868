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


def words_of(document: dict[str, Any]) -> str:
    return " ".join(checked(page.render({"steps": [{"title": "x", "document": document}]})).words)


def test_thread_by_thread_what_became_of_it_and_what_it_cost() -> None:
    words = words_of(samples.upgrade_with_restarts(1))
    for expected in (
        "3 threads restarted, 1 restarts when its sleep ends; a busy one lost at most 40.0 µs by it.",
        "restarted by its own door:  poll",
        "skipped for this restart:  cache_uninit, detach",
        "restarted by its group's latch:  handle",
        "110 µs, asleep",
        "restarts when its sleep ends:  watch",
        "only parked",
        "lost besides by a busy thread that was restarted",
        "by the settling stop",
    ):
        assert expected in words


def test_without_restarts_all_were_only_parked() -> None:
    words = words_of(samples.upgrade())
    assert "4 threads, all only parked" in words
    assert "restarted" not in words


def test_what_the_machine_took_is_told_apart() -> None:
    document = samples.upgrade_with_restarts(1)
    document["threads"][1]["restart"]["taken_us"] = [[615.0, 630.0]]
    assert "40.0 µs, of which the machine took 15.0 µs" in words_of(document)


def test_very_many_threads_are_behind_a_fold() -> None:
    checker = checked(page.render({"steps": [{"title": "x", "document": samples.upgrade_with_restarts(60)}]}))
    words = " ".join(checker.words)
    assert "62 threads restarted" in words
    assert "pmd-c59" in words


def test_every_switch_says_what_restarts_cost() -> None:
    words = words_of(samples.upgrade_with_restarts(1))
    assert "18.0 µs 40.0 µs 116 µs 60.0 µs" in words


def test_a_thread_that_did_not_leave_is_marked() -> None:
    document = samples.upgrade_with_restarts(1)
    document["threads"][1]["restart"]["state"] = "stayed"
    assert '<td class="bad">did not leave its loop' in page.render({"steps": [{"document": document}]})


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
    document["threads"] = [
        {"name": evil, "tid": evil, "restart": {"function": evil, "door": evil, "state": evil, "skipped": [evil]}},
        {"name": evil, "how": evil, "restart": {"state": "arrived", "door": evil}},
    ]
    report = {
        "title": evil,
        "machine": {evil: evil},
        "facts": [{"name": evil, "before": evil, "after": {evil: evil}, "ok": False}],
        "steps": [{"title": evil, "document": document}],
    }
    text = page.render(report)
    checked(text)
    assert "<script" not in text
