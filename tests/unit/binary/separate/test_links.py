"""What sections say of other files, right or wrong."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotupgrade.binary.elf import ElfFile, ElfTables
from hotupgrade.binary.model import Section
from hotupgrade.binary.separate.links import (
    DebugLink,
    SupplementLink,
    debug_link,
    supplement_identity,
    supplement_link,
)
from unit.binary.separate.stripped import SOURCES, strip
from unit.conftest import Compiler


def holding(**contents: bytes) -> ElfTables:
    """A file with nothing but these sections."""
    data, sections = b"", {}
    for name, content in contents.items():
        sections[f".{name}"] = Section(f".{name}", 0, len(content), len(data), 1, 0, 0)
        data += content
    return cast(ElfTables, SimpleNamespace(data=data, sections=sections))


def test_a_link_of_binutils(compiler: Compiler, tmp_path: Path) -> None:
    module, debug = strip(compiler.file(SOURCES, "-g"), tmp_path)
    assert debug_link(ElfFile(module.read_bytes(), "it")) == DebugLink(debug.name, zlib.crc32(debug.read_bytes()))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"name",
        b"\0\0\0\0\1\2\3\4",
        b"name\0\0\0\0\1\2\3",
        b"../name\0\1\2\3\4",
        b"/etc/passwd\0\1\2\3\4",
        b"..\0\0\1\2\3\4",
        b"." * 5000 + b"\0\1\2\3\4",
    ],
)
def test_links_that_lead_nowhere(content: bytes) -> None:
    assert debug_link(holding(gnu_debuglink=content)) is None


def test_links_to_shared_files() -> None:
    assert supplement_link(holding(gnu_debugaltlink=b"../x\0\xab\xcd")) == SupplementLink("../x", "abcd")
    assert supplement_link(holding(debug_sup=b"\5\0\0x\0\2\xab\xcd")) == SupplementLink("x", "abcd")
    assert supplement_link(holding(debug_sup=b"\5\0\1\0\2\xab\xcd")) is None
    assert supplement_identity(holding(debug_sup=b"\5\0\1\0\2\xab\xcd")) == "abcd"
    assert supplement_identity(holding(debug_sup=b"\5\0\0x\0\2\xab\xcd")) == ""
    assert supplement_link(holding()) is None


@pytest.mark.parametrize(
    "content", [b"", b"x", b"x\0", b"\0ab", b"\5\0\0x", b"\5\0\0x\0", b"\5\0\0x\0\2\xab", b"\4\0\0x\0\1\xab"]
)
def test_links_to_shared_files_that_are_damaged(content: bytes) -> None:
    assert supplement_link(holding(debug_sup=content)) is None
    assert not content.startswith(b"x") or supplement_link(holding(gnu_debugaltlink=content)) is None


@given(st.binary(max_size=64))
def test_any_bytes(content: bytes) -> None:
    for name in ("gnu_debuglink", "gnu_debugaltlink", "debug_sup"):
        file = holding(**{name: content})
        link = debug_link(file)
        assert link is None or "/" not in link.name
        supplement_link(file)
        supplement_identity(file)


@given(st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name), st.integers(0, 2**32 - 1))
def test_any_name(name: bytes, crc: int) -> None:
    padded = name + b"\0" * (4 - len(name) % 4)
    found = debug_link(holding(gnu_debuglink=padded + struct.pack("<I", crc)))
    usable = b"/" not in name and name not in (b".", b"..")
    assert found == (DebugLink(name.decode(errors="surrogateescape"), crc) if usable else None)
