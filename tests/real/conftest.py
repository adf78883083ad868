"""Fixtures of the tests with real programs: a folder and a port of their own; what runs is ended."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live.harness import HotUpgrade
from real.harness import Builds, Server

LIMIT_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LIMIT_S, func_only=True))


@pytest.fixture(scope="session")
def builds() -> Callable[[str], Builds]:
    """Builds of a package by name, made when they are not there."""
    found: dict[str, Builds] = {}

    def of(name: str) -> Builds:
        if name not in found:
            found[name] = Builds.of(name)
        return found[name]

    return of


@pytest.fixture(scope="session")
def hu() -> Iterator[HotUpgrade]:
    home = Path(tempfile.mkdtemp(prefix="hotupgrade-real-"))
    yield HotUpgrade(home)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that a server under another user can enter."""
    folder = Path(tempfile.mkdtemp(prefix="hotupgrade-real-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def serve(place: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers that are ended when the test is over."""
    servers: list[Server] = []

    def begin(*words: str | Path, library_path: Path | None = None) -> Server:
        servers.append(Server(place, words, library_path=library_path))
        return servers[-1]

    yield begin
    for server in servers:
        server.kill()
