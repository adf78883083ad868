"""The comparison as text and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hotupgrade.vswitch.compare import picture, table
from hotupgrade.vswitch.compare.run import summary
from unit.vswitch.compare.rows import row


def document() -> dict[str, Any]:
    rows = [row(1.5, 10), row(2.5, 30)]
    works = {"kernel datapath": "no", "DPDK": "yes", "offload": "not tried"}
    hot = {"key": "hot", "title": "Hot", "bed": "b", "ring": "512", "works": works, "runs": rows, **summary(rows)}
    control = hot | {"title": "Nothing", "works": dict.fromkeys(works, ""), "tool": None, "inside_us": None}
    meter = {"bed": "one", "pause_ms": 0.0, "gap_ms": 0.3, "break_ms": 0.25, "lost": 0, "sender_gap_ms": 0.2}
    return {
        "settings": {"runs": 2, "pps": 10_000, "flows": 0, "ring": 512},
        "meter": [meter, meter | {"pause_ms": 5.0, "gap_ms": 5.2, "break_ms": 5.1}],
        "ways": [control, hot],
    }


def test_every_way_has_its_cells() -> None:
    found = document()
    for head, cells in (
        (table.TRAFFIC, table.traffic),
        (table.COSTS, table.costs),
        (table.KEPT, table.state),
    ):
        assert {len(line) for line in cells(found)} == {len(head)}
    assert {len(line) for line in table.works([found])} == {len(table.WORKS)}
    (_, hot) = table.traffic(found)
    assert hot == (
        "Hot",
        "2",
        "2.50 / 2.50 / 2.50",
        "0.50 / 0.50 / 0.50",
        "30 / 30 / 30",
        "3.00 / 3.00 / 3.00",
        "20.5 / 20.5 / 20.5",
    )
    (control, hot) = table.costs(found)
    assert hot == ("Hot", "2.0", "1.0", "+4.0", "+2", "+1", "1 MiB, 0.5 s of a core", "nothing")
    assert control[6] == ""


def test_what_is_not_there_is_neither_kept_nor_lost() -> None:
    (_, hot) = table.state(document())
    assert hot == ("Hot", "", "kept", "", "", "")


def test_of_the_control_there_is_nothing_to_say() -> None:
    assert [cells[0] for cells in table.works([document(), document()])] == ["Hot"]


def test_a_page() -> None:
    text = table.markdown(document())
    assert text.count("\n| --- |") == 3
    assert list(table.meter_lines(document())) == [
        "one, no pause: 0.30 ms without a packet, a break of 0.25 ms, 0 lost, the sender's own longest pause 0.20 ms",
        "one, 5.00 ms: 5.20 ms without a packet, a break of 5.10 ms, 0 lost, the sender's own longest pause 0.20 ms",
    ]


def test_pictures(tmp_path: Path) -> None:
    for draw in (picture.draw, picture.draw_series):
        draw(document(), tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_an_overview() -> None:
    with_more = document()
    del with_more["ways"][0]
    lines = table.overview({0: document(), 10_000: with_more}).splitlines()
    assert lines[0].startswith("| way | break, ms: 0 flows | break, ms: 10,000 flows | packets lost: 0 flows |")
    assert lines[2] == "| Nothing | 2.5 (2.5) |  | 30 (30) |  |  |  |"
    assert lines[3] == "| Hot | 2.5 (2.5) | 2.5 (2.5) | 30 (30) | 30 (30) | 20.5 (20.5) | 20.5 (20.5) |"
