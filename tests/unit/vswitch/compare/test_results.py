"""Several invocations make one document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hotupgrade.errors import UsageError
from hotupgrade.vswitch.compare import results
from unit.vswitch.compare import samples
from unit.vswitch.compare.rows import row


def test_pieces_are_put_together_and_new_ones_replace_old_ones(tmp_path: Path) -> None:
    file = tmp_path / "below" / "results.json"
    for part, key, value in (
        ("ways", "0 hot", 1),
        ("ways", "10000 hot", 2),
        ("growth", "flows", 3),
        ("ways", "0 hot", 4),
    ):
        results.save(file, results.merge(results.load(file), part, {key: {"result": value}}))
    assert results.load(file)["parts"] == {
        "ways": {"0 hot": {"result": 4}, "10000 hot": {"result": 2}},
        "growth": {"flows": {"result": 3}},
    }
    assert list(file.parent.iterdir()) == [file]


def test_merging_leaves_what_it_was_given(tmp_path: Path) -> None:
    first = results.merge(results.empty(), "ways", {"0": 1})
    results.merge(first, "ways", {"0": 2, "5": 3})
    assert first["parts"] == {"ways": {"0": 1}}


@pytest.mark.parametrize("version", [1, 2, 3, results.VERSION])
def test_a_document_of_an_earlier_version_is_begun_anew(tmp_path: Path, version: int) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"version": version, "ways": []}))
    assert results.load(file) == results.empty()
    assert results.load(tmp_path / "none") == results.empty()


@pytest.mark.parametrize("text", ["", "[]", "{}", "no JSON"])
def test_somebody_elses_file_is_left_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(UsageError, match="move it away"):
        results.load(file)
    assert file.read_text() == text


def test_the_median_run() -> None:
    runs = [row(3.0), row(1.0), row(2.0)]
    assert results.median_run(runs) is runs[2]


def test_what_is_published_is_all_but_most_series(tmp_path: Path) -> None:
    found = samples.ways()
    way = found["way"]
    way["runs"] = [row(break_ms) for break_ms in (3.0, 1.0, 2.0 + 1e-9)]
    document = results.merge(results.empty(), "ways", {"0 hot": samples.entry(found)})
    document = results.merge(document, "distribution", {"full speed": samples.entry(samples.distributed())})
    results.publish(tmp_path / "page.json", document)
    read = results.load(tmp_path / "page.json")
    entry = read["parts"]["ways"]["0 hot"]
    assert [run["series"] is not None for run in entry["result"]["way"]["runs"]] == [False, False, True]
    assert entry["result"]["way"]["runs"][2]["traffic"]["break_ms"] == 2.0
    assert entry["command"] == "hotupgrade compare"
    assert read["parts"]["distribution"] == results.brief(document)["parts"]["distribution"]
    assert list(read["parts"]) == ["ways", "distribution"]
    assert len((tmp_path / "page.json").read_text().splitlines()) == 8, "an entry a line"
    assert way["runs"][0]["series"], "what was given is left as it is"
