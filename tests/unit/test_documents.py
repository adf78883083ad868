"""What the documents point to is there: files, headings, tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NAMES = [document.name for document in DOCUMENTS]

TEST = re.compile(r"`([\w/]*(?:test_\w+|soak\w*|kills|steps)\.py)?(?:::(test_\w+))?`")
FILE = re.compile(r"`((?:benchmarks|scripts|src|tests)/[\w./-]+)`")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


def source_of(name: str) -> Path | None:
    """``test_x.py`` is in ``tests/live`` unless a folder is said."""
    candidates = (ROOT / name, TESTS / name, TESTS / "live" / name)
    return next((path for path in candidates if path.is_file()), None)


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_tests_that_are_named_exist(document: Path) -> None:
    file = ""
    for name, test in TEST.findall(document.read_text()):
        if not name and not test:
            continue
        file = name or file
        path = source_of(file)
        assert path is not None, f"{document.name} names {file}, which is not there"
        if test:
            assert f"def {test}(" in path.read_text(), f"{document.name} names {file}::{test}, which is not there"


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in LINK.findall(document.read_text()):
        if "://" in target:
            continue
        path = document if not target else document.parent / target
        assert path.exists(), f"{document.name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(path), f"{document.name} links to #{anchor} of {path.name}, which is not there"


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_files_that_are_named_exist(document: Path) -> None:
    missing = [name for name in FILE.findall(document.read_text()) if not (ROOT / name).exists()]
    assert not missing, f"{document.name} names {missing}, which are not there"
