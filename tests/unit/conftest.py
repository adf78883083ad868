"""Fixtures of the unit tests: small modules, compiled once a session."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from hotupgrade.binary.build import Build

SHARED = ("-shared", "-fPIC")
PIE = ("-pie", "-fPIE")
COMMON = ("-O2", "-g0", "-Wl,--build-id=sha1", "-Wl,-z,noexecstack")


class Compiler:
    """Compiles C (or C++, assembler) texts to modules; the same request is compiled once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def file(self, sources: str | Mapping[str, str], *flags: str, executable: bool = False, driver: str = "") -> Path:
        """``sources`` is one C text, or texts by file name, whose suffix says the language.

        ``driver`` is gcc or g++, as the language asks for, unless something else is wanted.
        """
        texts = {"module.c": sources} if isinstance(sources, str) else dict(sources)
        request = repr((sorted(texts.items()), list(texts), flags, executable, driver))
        place = self.directory / hashlib.sha256(request.encode()).hexdigest()[:16]
        result = place / "module"
        if result.exists():
            return result
        place.mkdir()
        for name, text in texts.items():
            (place / name).write_text(text)
        driver = driver or ("g++" if any(name.endswith((".cc", ".cpp")) for name in texts) else "gcc")
        kind = PIE if executable else SHARED
        # Relative names, so that two builds differ in nothing but what the test wants.
        command = [driver, *COMMON, *kind, *texts, "-o", "module", *flags]
        subprocess.run(command, cwd=place, check=True, capture_output=True, text=True)
        return result

    def build(self, sources: str | Mapping[str, str], *flags: str, executable: bool = False) -> Build:
        return Build.open(self.file(sources, *flags, executable=executable))


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    if not shutil.which("gcc"):
        pytest.fail("gcc is needed to build the modules under test")
    return Compiler(tmp_path_factory.mktemp("modules"))
