"""The page has what was run, and nothing else."""

from __future__ import annotations

from hotupgrade.vswitch.compare import page, results
from unit.vswitch.compare.samples import Document, applications, distributed, entry, point, ways


def test_nothing_was_run() -> None:
    text = page.markdown(results.empty())
    assert "## " not in text
    assert "make compare" in text


def test_only_what_was_run_is_there() -> None:
    parts: dict[str, Document] = {
        "ways": {
            "0 hot": entry(ways()),
            "0 restart": entry(ways(key="restart", title="Restart")),
            "10000 hot": entry(ways(10_000), "hotupgrade compare --part ways"),
        },
        "applications": {"idle": entry(applications())},
        "growth": {"flows": entry({"title": "OpenFlow flows", "points": [point(10, 20.0), point(100_000, 30.0)]})},
        "distribution": {"full speed": entry(distributed())},
    }
    titles = {
        "ways": "## The ways",
        "applications": "## Applications",
        "growth": "## How the break of a hot upgrade grows",
        "distribution": "## Predictability",
    }
    for wanted in (*({part} for part in parts), set(parts)):
        document = results.empty()
        for part in wanted:
            document = results.merge(document, part, parts[part])
        text = page.markdown(document, {"comparison": "images/comparison.png"})
        assert {part for part, title in titles.items() if title in text} == wanted
        assert "## What these figures are not" in text
        assert "a virtual machine with 2 cores (Some Processor), 24 GiB, Linux 6.1.0" in text
        assert "Open vSwitch 3.1.0 with DPDK 22.11.7" in text
        assert ("images/comparison.png" in text) == ("ways" in wanted)
    assert "| ways, 0 flows | 2026-01-02T03:04:05Z | 20 | 0.2 | 2.5 | `hotupgrade compare` |" in text
    assert "| ways, 10,000 flows | 2026-01-02T03:04:05Z | 10 |" in text
    assert text.index("| Restart | 1 |") < text.index("| Hot upgrade | 1 |"), "the usual order"
    assert text.count("- Hot upgrade: A note.") == 1
    assert text.count("- bed, 5.00 ms: 5.10 ms without a packet") == 2, "once for each number of flows"
    assert "as the secondary process of DPDK does not start: DPDK said no" in text
    assert "`hotupgrade compare --part ways`" in text
    assert "| Hot upgrade | 2 | 995 (990 to 1,000) |" in text
    assert "not possible: it / broke |" in text
    assert "| 100,000 | 100,001 | 1 | 20.0 / 20.0 | 30.0 / 30.0 | × 1.50 (1.50 to 1.50) | no | 1.0 | 0 |  |" in text
    assert "| hot upgrade | 812.5 | 203.1 | 203.1 | 203.1 | 203.1 | 790.0 | not known | 2 | 4000 |" in text
    assert "1.23 % of the polling thread's core, in 4,321 preemptions; 0.50 % of 1,000 spans" in text
    assert all(line.count("|") == text.splitlines()[index - 1].count("|") for index, line in lines_of_tables(text))


def lines_of_tables(text: str) -> list[tuple[int, str]]:
    """Every line of a table but its first: as wide as the one before."""
    lines = text.splitlines()
    return [
        (index, line) for index, line in enumerate(lines) if line.startswith("|") and lines[index - 1].startswith("|")
    ]


def test_what_could_not_be_had_is_said() -> None:
    failed = {"title": "ports", "points": [point(10, 20.0), {"wanted": 1000, "failed": "no more | devices"}]}
    text = page.markdown(results.merge(results.empty(), "growth", {"ports": entry(failed)}))
    assert "| 1,000 |  | 0 | not possible: no more / devices |" in text
    assert text.count("1.00 (1.00 to 1.00)") == 2, "the other point is there"
