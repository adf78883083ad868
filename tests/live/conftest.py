"""Fixtures of the live tests: everything that is built, once a session; everything that runs, ended after the test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live.harness import Builder, Driver, HotUpgrade, Program
from live.steps import Stepper

LIMIT_S = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.live)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="session")
def workshop() -> Iterator[Path]:
    """A directory that every user can read and only this one can write, as a system's libraries have it."""
    directory = Path(tempfile.mkdtemp(prefix="hotupgrade-live-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def build(workshop: Path) -> Builder:
    if not shutil.which("gcc") or not shutil.which("g++"):
        pytest.fail("gcc and g++ are needed to build the programs under test")
    return Builder(workshop)


@pytest.fixture(scope="session")
def hu(workshop: Path) -> HotUpgrade:
    home = workshop / "home"
    home.mkdir(exist_ok=True)
    return HotUpgrade(home)


Start = Callable[..., Program]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts programs that are ended when the test is over, however it went."""
    programs: list[Program] = []

    def begin(path: Path, *arguments: str | Path, folder: Path | None = None) -> Program:
        programs.append(Program(path, *arguments, folder=folder))
        return programs[-1]

    yield begin
    for program in programs:
        program.kill()


@pytest.fixture(scope="module")
def stepper(hu: HotUpgrade) -> Iterator[Stepper]:
    with Stepper(hu.environment) as stepper:
        yield stepper


@pytest.fixture(scope="module")
def driver(hu: HotUpgrade) -> Iterator[Driver]:
    """The command in one process, for the many runs of it in a module."""
    with Driver(hu) as driver:
        yield driver
