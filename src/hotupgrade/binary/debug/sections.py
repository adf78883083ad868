"""The debug sections of a file, unpacked."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Mapping

from hotupgrade.binary.model import Section
from hotupgrade.binary.separate.unpack import UnpackError, unpack_zlib, unpack_zstd

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


def old_name(name: str) -> str:
    """What a section is called when it is packed in the old way."""
    return f".z{name[1:]}"


def debug_sections(sections: Mapping[str, Section]) -> Iterator[Section]:
    """Those that are read, and have contents."""
    for name in USED_SECTIONS:
        for known in (name, old_name(name)):
            if (section := sections.get(known)) and section.type != _NOBITS:
                yield section


SHF_COMPRESSED = 0x800
_NOBITS = 8
_UNPACKERS = {1: unpack_zlib, 2: unpack_zstd}  # ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD

_OLD_MAGIC = b"ZLIB"  # of a section .zdebug_…, before sections could say that they are packed


#: Contents and sections of a file that others share debug information in.
Supplement = tuple[bytes, Mapping[str, Section]]


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
        self._deadline = time.process_time() + MAX_SECONDS
        self.info, self.types, self.abbreviations, *texts = map(self._contents, USED_SECTIONS)
        self.strings, self.line_strings, self.string_offsets, self.addresses, *ranges = texts
        self.ranges, self.range_lists = ranges

    def check_time(self) -> None:
        if time.process_time() > self._deadline:  # the processor's: a busy machine makes no build unusable
            raise Unusable(f"its debug information could not be read within {MAX_SECONDS:.0f} seconds")

    def _contents(self, name: str) -> bytes:
        section = self._sections.get(name)
        if section is None or section.type == _NOBITS:
            return self._old_contents(name)
        content = self._data[section.file_offset : section.file_offset + section.size]
        if section.flags & SHF_COMPRESSED:
            return self._unpacked(content)
        self._take(len(content))
        return content

    def _old_contents(self, name: str) -> bytes:
        """Of a section that was packed as binutils did until 2.26: "ZLIB", the size (8 bytes, big-endian)."""
        section = self._sections.get(old_name(name))
        if section is None or section.type == _NOBITS:
            return b""
        content = self._data[section.file_offset : section.file_offset + section.size]
        if not content.startswith(_OLD_MAGIC) or len(content) < 12:
            raise Corrupt("a packed section without a header")
        return self._unpack(unpack_zlib, content[12:], int.from_bytes(content[4:12], "big"))

    def _unpacked(self, content: bytes) -> bytes:
        if len(content) < 24:
            raise Corrupt("a packed section without a header")
        kind, _, size, _ = struct.unpack_from("<IIQQ", content)
        if kind not in _UNPACKERS:
            raise Unusable("its debug information is packed in a way that is not known; use objcopy to unpack it")
        return self._unpack(_UNPACKERS[kind], content[24:], size)

    def _unpack(self, unpacker: Callable[[bytes, int], bytes], content: bytes, size: int) -> bytes:
        self._take(size)
        try:
            return unpacker(content, size)
        except UnpackError as error:
            raise Corrupt(str(error)) from error

    def _take(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise Unusable(f"its debug information is larger than {MAX_SECTIONS_SIZE >> 20} MiB")
