"""The debug sections of a file, unpacked."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Mapping

from hotupgrade.binary.model import Section

MAX_SECTIONS_SIZE = 1 << 29  # bytes, all debug sections together, unpacked
MAX_SECONDS = 60.0

USED_SECTIONS = (
    ".debug_info",
    ".debug_types",
    ".debug_abbrev",
    ".debug_str",
    ".debug_line_str",
    ".debug_str_offsets",
    ".debug_addr",
    ".debug_ranges",
    ".debug_rnglists",
)

SHF_COMPRESSED = 0x800
_NOBITS = 8
_ZLIB = 1


class Unusable(Exception):
    """There is no debug information here that could be used; the text says why."""


class Corrupt(Unusable):
    def __init__(self, what: str) -> None:
        super().__init__(f"its debug information is corrupt ({what})")


class Sections:
    """Contents by name, empty for a section that is not there; and the limit on the time that reading them takes.

    Raises:
        Unusable: there is too much of it, or it is packed in a way that is not known here.
    """

    def __init__(self, data: bytes, sections: Mapping[str, Section]) -> None:
        self._data = data
        self._sections = sections
        self._room = MAX_SECTIONS_SIZE
        self._deadline = time.monotonic() + MAX_SECONDS
        self.info, self.types, self.abbreviations, *texts = map(self._contents, USED_SECTIONS)
        self.strings, self.line_strings, self.string_offsets, self.addresses, *ranges = texts
        self.ranges, self.range_lists = ranges

    def check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise Unusable(f"its debug information could not be read within {MAX_SECONDS:.0f} seconds")

    def _contents(self, name: str) -> bytes:
        section = self._sections.get(name)
        if section is None or section.type == _NOBITS:
            return b""
        content = self._data[section.file_offset : section.file_offset + section.size]
        if section.flags & SHF_COMPRESSED:
            return self._unpacked(content)
        self._take(len(content))
        return content

    def _unpacked(self, content: bytes) -> bytes:
        if len(content) < 24:
            raise Corrupt("a packed section without a header")
        kind, _, size, _ = struct.unpack_from("<IIQQ", content)
        if kind != _ZLIB:
            raise Unusable("its debug information is packed in another way than by zlib; use objcopy to unpack it")
        self._take(size)
        try:
            # One byte more than it says, to see whether it lies.
            found = zlib.decompressobj().decompress(content[24:], size + 1)
        except zlib.error as error:
            raise Corrupt("a section cannot be unpacked") from error
        if len(found) != size:
            raise Corrupt("a packed section has another size than it says")
        return found

    def _take(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise Unusable(f"its debug information is larger than {MAX_SECTIONS_SIZE >> 20} MiB")
