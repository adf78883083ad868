"""What a file says of the debug information that lies elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from hotupgrade.binary.elf import ElfTables, SectionType

MAX_NAME = 4096  # bytes of a name: PATH_MAX
MAX_IDENTITY = 128  # hexadecimal digits of what names a file; a build-id has 40


@dataclass(frozen=True, slots=True)
class DebugLink:
    """``.gnu_debuglink``: the last name of the debug file, and the CRC-32 (that of zlib) of all of it."""

    name: str
    crc: int


@dataclass(frozen=True, slots=True)
class SupplementLink:
    """``.gnu_debugaltlink`` or ``.debug_sup`` (DWARF 5, section 7.3.6): the file that several share (``dwz -m``).

    ``name`` is a path, relative to the folder of the file that says it unless absolute; ``identity`` is what the other
    must have, in hexadecimal: its build-id, or the checksum in its own ``.debug_sup``.
    """

    name: str
    identity: str


def section_content(elf: ElfTables, name: str) -> bytes:
    """What the file stores of a section; nothing for one that is not there, or only by its header."""
    section = elf.sections.get(name)
    if section is None or section.type == SectionType.NOBITS:
        return b""
    return elf.data[section.file_offset : section.file_offset + section.size]


def debug_link(elf: ElfTables) -> DebugLink | None:
    """None: it has no such link, or one that cannot be followed."""
    content = section_content(elf, ".gnu_debuglink")
    name, end = _name(content)
    crc_at = -(-end // 4) * 4  # padded so that the CRC is aligned
    # A link names a file, never one in another folder.
    if not name or "/" in name or name in (".", "..") or crc_at + 4 > len(content):
        return None
    return DebugLink(name, int.from_bytes(content[crc_at : crc_at + 4], "little"))


def supplement_link(elf: ElfTables) -> SupplementLink | None:
    """None: it needs no other file, or does not say which."""
    content = section_content(elf, ".gnu_debugaltlink")
    if content:
        name, end = _name(content)
        return SupplementLink(name, content[end : end + 64].hex()) if name and end < len(content) else None
    said = _debug_sup(section_content(elf, ".debug_sup"))
    return SupplementLink(said.name, said.identity) if said and not said.is_supplement and said.name else None


def supplement_identity(elf: ElfTables) -> str:
    """The checksum that a supplementary file of DWARF 5 says of itself, in hexadecimal; "" if it says none."""
    said = _debug_sup(section_content(elf, ".debug_sup"))
    return said.identity if said and said.is_supplement else ""


@dataclass(frozen=True, slots=True)
class _DebugSup:
    is_supplement: bool
    name: str
    identity: str


def _debug_sup(content: bytes) -> _DebugSup | None:
    """version (2 bytes), whether it is one (1), name (NUL-terminated), length (ULEB128) and bytes of a checksum."""
    if len(content) < 5 or int.from_bytes(content[:2], "little") != 5:
        return None
    name, end = _name(content[3:])
    at = 3 + end
    size = content[at] if end and at < len(content) else 0x80
    if size >= 0x80 or at + 1 + size > len(content):  # no checksum has 128 bytes
        return None
    return _DebugSup(bool(content[2]), name, content[at + 1 : at + 1 + size].hex())


def _name(content: bytes) -> tuple[str, int]:
    """A NUL-terminated path and where it ends; ("", 0) for none."""
    end = content.find(b"\0", 0, MAX_NAME)
    return (content[:end].decode(errors="surrogateescape"), end + 1) if end >= 0 else ("", 0)
