"""Package first, upgrade after: without a file, what has taken the place of the process's files on disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from live.conftest import Start
from live.harness import DONE, REFUSED, Builder, HotUpgrade, Program


class Installed:
    """A program and its libraries in a directory of their own, to be replaced as package managers do."""

    def __init__(self, build: Builder, directory: Path, subjects: list[str], libraries: list[str]) -> None:
        self._build, self._directory, self._subjects = build, directory, subjects
        self._libraries = libraries
        directory.chmod(0o755)
        self.program = directory / "program"
        self.install(*libraries, version=1)
        linked = [directory / f"lib{name}.so.1" for name in libraries]
        shutil.copy2(build.executable(subjects, 1, uses=linked), self.program)

    def install(self, *libraries: str, version: int, program: bool = False) -> None:
        for name in libraries:
            self._replace(self._build.library(name, version), f"lib{name}.so.1")
        if program:
            linked = [self._directory / f"lib{name}.so.1" for name in self._libraries]
            self._replace(self._build.executable(self._subjects, version, uses=linked), "program")

    def _replace(self, file: Path, name: str) -> None:
        """A new file takes the place of the old one: who has mapped that keeps it."""
        part = self._directory / f"{name}.new"
        shutil.copy2(file, part)
        part.rename(self._directory / name)


@pytest.fixture
def place(workshop: Path, request: pytest.FixtureRequest) -> Path:
    directory = workshop / f"installed-{request.node.name.replace('[', '-').rstrip(']')}"
    directory.mkdir()
    return directory


def answers(program: Program) -> tuple[int, int]:
    """The versions of the program's own code and of its library."""
    return program.call("my_version"), program.call("sum")


def test_everything_that_was_installed(build: Builder, start: Start, hu: HotUpgrade, place: Path) -> None:
    installed = Installed(build, place, ["interposes"], ["lists", "once"])
    program = start(installed.program)
    program.call("add", 5)
    for answer in (hu.check(program.pid), hu.upgrade(program.pid)):
        assert (answer.code, answer.outcome, answer.document["modules"]) == (DONE, "nothing-to-do", [])

    installed.install("lists", version=2, program=True)
    checked = hu.check(program.pid).document
    assert {module["name"] for module in checked["modules"]} == {"program", "liblists.so.1"}
    document = hu.upgraded(program)
    assert {module["name"] for module in document["modules"]} == {"program", "liblists.so.1"}
    assert answers(program) == (2, 10)
    assert hu.upgrade(program.pid).outcome == "nothing-to-do"

    hu.rolled_back(program)
    assert answers(program) == (1, 5)
    hu.upgraded(program)
    assert answers(program) == (2, 10)

    installed.install("lists", version=1)
    hu.upgraded(program)
    assert answers(program) == (2, 5)


@pytest.mark.parametrize("library", ["resized", "nonsense"])
def test_all_or_nothing_unless_one_says_so(
    build: Builder, start: Start, hu: HotUpgrade, place: Path, library: str
) -> None:
    installed = Installed(build, place, ["interposes"], ["lists", "resized"])
    program = start(installed.program)
    program.call("add", 5)
    program.call("put", 6)
    installed.install("lists", version=2, program=True)
    if library == "resized":
        installed.install("resized", version=2)
    else:
        (place / "new").write_text("this is no library\n")
        (place / "new").rename(place / "libresized.so.1")
    for answer in (hu.check(program.pid), hu.upgrade(program.pid)):
        assert answer.code == REFUSED, str(answer)
        assert ("growing_table" if library == "resized" else "libresized.so.1") in answer.about()
    assert answers(program) == (1, 5)

    document = hu.upgraded(program, "--skip-refused")
    assert {module["name"] for module in document["modules"]} == {"program", "liblists.so.1"}
    assert [module["name"] for module in document["skipped"]] == ["libresized.so.1"]
    assert document["skipped"][0]["reasons"]
    assert answers(program) == (2, 10)
    assert program.call("get", 6) == 6
    alone = hu.upgrade(program.pid, "--skip-refused")
    assert (alone.code, len(alone.document["skipped"])) == (REFUSED, 1), "nothing is left to be done"
    shown = hu("check", program.pid, "--skip-refused")
    assert "left out: libresized.so.1" in shown.out + shown.err


def test_a_link_that_leads_to_another_file(build: Builder, start: Start, hu: HotUpgrade, place: Path) -> None:
    """``liblists.so.1`` is a link to ``liblists.so.1.0``, and after the upgrade to ``liblists.so.1.1``."""
    installed = Installed(build, place, ["interposes"], ["lists"])
    link = place / "liblists.so.1"
    link.rename(place / "liblists.so.1.0")
    link.symlink_to("liblists.so.1.0")
    program = start(installed.program)
    program.call("add", 5)
    shutil.copy2(build.library("lists", 2), place / "liblists.so.1.1")
    link.unlink()
    gone = hu.check(program.pid)
    assert (gone.code, gone.document["modules"]) == (DONE, []), "the file that is mapped is there still"
    (place / "liblists.so.1.0").unlink()
    gone = hu.check(program.pid)
    assert [note["code"] for note in gone.document["notes"]] == ["file-gone"]
    link.symlink_to("liblists.so.1.1")
    hu.upgraded(program)
    assert answers(program) == (1, 10)


def test_a_process_that_sees_other_files(build: Builder, start: Start, hu: HotUpgrade) -> None:
    unshare = shutil.which("unshare")
    if os.geteuid() or unshare is None:
        pytest.skip("root and unshare are needed to make a mount namespace")
    program = start(Path(unshare), "--mount", build.executable(["basic"], 1))
    answer = hu.upgrade(program.pid)
    assert (answer.code, answer.codes()) == (REFUSED, {"other-files"}), str(answer)
    hu.upgraded(program, build.executable(["basic"], 2))
    assert program.call("version") == 2
