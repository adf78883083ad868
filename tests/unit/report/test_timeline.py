"""The picture: it is drawn for every document, it is to scale, and many threads stay readable."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any

import pytest

from hotupgrade.report import restart_panels, timeline
from hotupgrade.report.restarts import restarts
from unit.report import samples


def size_of(picture: Path) -> tuple[int, int]:
    head = picture.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", head[16:24])
    return width, height


@pytest.mark.parametrize(
    "document",
    [
        samples.upgrade(),
        samples.upgrade(sleepers=0, busy=4),
        samples.upgrade(sleepers=5, busy=0),
        samples.upgrade(stop=6000.0),
        {},
        {"outcome": "refused", "reasons": [{"text": "table changed its size"}]},
        {"threads": [None, 3, {"name": "x"}, samples.thread("y", 1.0, 0.5)], "phases_us": {"stop": "soon"}},
        {"threads": [samples.thread("$alpha_{x}$ & <b>", -2.0, 3.0)]},
        {"phases_us": {"stop": 0.0}},
        samples.upgrade_with_restarts(),
        samples.upgrade_with_restarts(0),
        samples.upgrade_with_restarts() | {"settle_us": None},
        {"threads": [samples.thread("x", 1.0, 2.0) | {"restart": {"state": "arrived", "gap_us": 3.0}}]},
    ],
)
def test_every_document_gets_a_picture(document: dict[str, Any], tmp_path: Path) -> None:
    timeline.draw(document, tmp_path / "below" / "picture.png")
    width, height = size_of(tmp_path / "below" / "picture.png")
    assert width > 1000
    assert height > 150


def test_many_threads_need_no_more_room_than_a_block(tmp_path: Path) -> None:
    timeline.draw(samples.upgrade(sleepers=128), tmp_path / "128.png")
    timeline.draw(samples.upgrade(sleepers=1000, busy=64), tmp_path / "1000.png")
    assert size_of(tmp_path / "128.png")[1] < 1200
    assert size_of(tmp_path / "1000.png")[1] < 1400


def test_a_block_names_the_kinds_and_the_longest_break() -> None:
    bars = timeline._bars(samples.upgrade(sleepers=128))
    lines = timeline._rows(bars)
    assert [len(line.bars) for line in lines] == [1, 128]
    assert timeline._left_words(lines[1]) == "128 threads asleep\nhandler"
    assert "longest 52.0 µs" in timeline._right_words(lines[1])


def test_busy_threads_come_first_and_say_so() -> None:
    lines = timeline._rows(timeline._bars(samples.upgrade()))
    assert lines[0].busy
    assert timeline._right_words(lines[0]) == "18.0 µs  busy, by signal"
    assert timeline._right_words(lines[1]).endswith("asleep, by signal")


def test_phases_follow_one_another_without_prepare_and_cleanup() -> None:
    phases = timeline._phases(samples.upgrade())
    assert [name for name, _, _ in phases] == ["stop", "check", "sync", "replace", "start"]
    assert phases[0][1:] == (0.0, 40.0)
    assert all(before[2] == after[1] for before, after in itertools.pairwise(phases))


def test_a_hairline_is_enlarged_and_a_bar_is_not() -> None:
    busy = [bar for bar in timeline._bars(samples.upgrade(stop=6000.0)) if bar.busy]
    limits = timeline._enlarged(busy, 6015.0)
    assert limits is not None
    assert limits[0] < busy[0].parked < busy[0].released < limits[1]
    assert timeline._enlarged(busy, 60.0) is None
    assert timeline._enlarged([], 6015.0) is None


def test_absent_threads_are_named_not_drawn() -> None:
    document = samples.upgrade()
    document["threads"].append(
        {"tid": 9, "name": "aio", "how": "absent", "busy": False, "parked_us": 0, "released_us": 1}
    )
    document["attempts"] = 3
    assert all(bar.name != "aio" for bar in timeline._bars(document))
    assert "aio" in timeline._footer(document)
    assert "last of 3 stops" in timeline._footer(document)


def test_threads_in_loops_that_changed_say_so() -> None:
    bars = {bar.name: bar for bar in timeline._bars(samples.upgrade_with_restarts(1))}
    words = {name: timeline._right_words(timeline.Row((bar,))) for name, bar in bars.items()}
    assert words == {
        "pmd-c00": "18.0 µs  busy, restarted",
        "main": "60.0 µs  asleep, ran the switch",
        "handler6": "52.0 µs  asleep, restarted",
        "revalidator7": "51.9 µs  asleep, restarted",
        "watchdog": "51.8 µs  asleep, restarts on waking",
    }
    assert "18.0 µs, and 40.0 µs by their restart" in timeline._subtitle(samples.upgrade_with_restarts(1))


def test_restarts_add_panels_of_bounded_height(tmp_path: Path) -> None:
    timeline.draw(samples.upgrade_with_restarts(1), tmp_path / "1.png")
    timeline.draw(samples.upgrade_with_restarts(200), tmp_path / "200.png")
    assert size_of(tmp_path / "1.png")[1] < 1400
    assert size_of(tmp_path / "200.png")[1] < 2400


def test_the_longest_ways_are_shown_in_the_order_in_which_threads_were_asked() -> None:
    document = samples.upgrade_with_restarts(30)
    rows = {row["name"]: row.get("restart") for row in document["threads"]}
    for name in ("pmd-c03", "pmd-c20"):
        rows[name]["gap_us"] = 90.0
    shown = [way.restart.name for way in restart_panels.ways(restarts(document))]
    assert len(shown) == restart_panels.ROWS_AT_MOST
    assert shown[:2] == ["handler6", "revalidator7"]
    assert {"pmd-c03", "pmd-c20"} < set(shown)
    assert shown[2:] == sorted(shown[2:])


def test_losses_have_one_scale_and_do_not_overlap() -> None:
    document = samples.upgrade_with_restarts(3)
    document["threads"][2]["restart"]["gap_us"] = 95.0
    losses = restart_panels.losses(restarts(document))
    assert [loss.restart.name for loss in losses] == ["pmd-c01", "pmd-c00", "pmd-c02"]
    first, second, third = losses[0].columns
    assert first == 0.0
    assert second > 18.0
    assert third > second + 95.0
    assert all(loss.columns == losses[0].columns for loss in losses)


def test_what_a_gap_consists_of_is_all_of_it() -> None:
    for loss in restart_panels.losses(restarts(samples.upgrade_with_restarts(3))):
        parts = list(restart_panels._gap_parts(loss.restart))
        assert [(kind, begin, length) for kind, begin, length in parts] == [("out", 0.0, 30.0), ("in", 30.0, 10.0)]


def test_a_rollback_is_called_one() -> None:
    document = samples.upgrade() | {"command": "rollback"}
    assert timeline._title(document) == "libsample.so.1 rolled back in switch, live"
    assert timeline._title(samples.upgrade()) == "libsample.so.1 upgraded in switch, live"
