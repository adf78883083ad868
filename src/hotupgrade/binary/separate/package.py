"""Debian packages (``-dbgsym``) as files: an ``ar`` archive that holds a compressed ``tar`` (deb(5)).

Read from front to end in one go.  Nothing is unpacked to disk and no program of the package is run; only regular files
that are asked for come into memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hotupgrade.binary.separate.unpack import Stream, UnpackError, unpacking

MAGIC = b"!<arch>\n"
MAX_UNPACKED = 1 << 33  # bytes of a whole package; that of the kernel has 5 GiB
MAX_FILE = 1 << 30  # bytes of one file
MAX_MEMBERS = 1 << 17  # files of a package
MAX_NAME = 4096
_BLOCK = 512
_FILE_TYPES = b"\x000"
_LONG_NAME, _EXTENDED = b"L", b"x"
_SKIPPED = b"123456Kg"  # links, devices, folders; long targets of links; global headers


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a package: its path ("/usr/lib/debug/…") and how many bytes it has."""

    path: str
    size: int


def find_files(
    archive: bytes, wanted: Callable[[Member], bool], check_time: Callable[[], None]
) -> Iterator[tuple[Member, bytes]]:
    """The regular files that are wanted, with their contents, in the order in which they lie there.

    ``check_time`` is called now and then, and raises when it has taken too long.

    Raises:
        UnpackError: this is no package, or it is damaged or too large; the text says so.
    """
    name, content = _data(archive)
    kind = name.removeprefix("data.tar").removeprefix(".")
    stream = unpacking(content, kind, MAX_UNPACKED)
    for member in _members(stream, check_time):
        if wanted(member):
            if member.size > MAX_FILE:
                raise UnpackError(f"{member.path} in it is larger than {MAX_FILE >> 30} GiB")
            yield member, stream.exactly(member.size)
        else:
            _skip(stream, member.size, check_time)
        stream.skip(-member.size % _BLOCK)


def _data(archive: bytes) -> tuple[str, _Part]:
    """The compressed files of a package: the member's name, and its contents."""
    if not archive.startswith(MAGIC):
        raise UnpackError("it is no Debian package")
    at = len(MAGIC)
    for _ in range(16):
        header = archive[at : at + 60]
        if len(header) < 60 or header[58:] != b"`\n":
            break
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), _decimal(header[48:58])
        at += 60
        if name in ("data.tar", "data.tar.xz", "data.tar.zst", "data.tar.gz"):
            if at + size > len(archive):
                raise UnpackError("it is cut off")
            return name, _Part(archive, at, size)
        if name.startswith("data.tar"):
            raise UnpackError(f"it is packed in a way that is not known here ({name}); unpack it with dpkg -x")
        at += size + size % 2
    raise UnpackError("it is no Debian package, or it is damaged")


class _Part(io.BufferedIOBase):
    """Some of a file's bytes as a file, without a copy of them all."""

    def __init__(self, content: bytes, start: int, size: int) -> None:
        self._content = memoryview(content)[start : start + size]
        self._at = 0

    def read(self, size: int | None = -1, /) -> bytes:
        end = len(self._content) if size is None or size < 0 else self._at + size
        found = bytes(self._content[self._at : end])
        self._at += len(found)
        return found


def _decimal(field: bytes) -> int:
    text = field.strip()
    if not text.isdigit():
        raise UnpackError("it is damaged: a size that is no number")
    return int(text)


def _members(stream: Stream, check_time: Callable[[], None]) -> Iterator[Member]:
    """Regular files; the contents of each must have been read, to a whole block, before the next is asked for."""
    path = ""
    for _ in range(MAX_MEMBERS):
        check_time()
        header = stream.exactly(_BLOCK)
        if not any(header):
            return
        _check(header)
        size, kind = _octal(header[124:136]), header[156:157]
        if kind in (_LONG_NAME, _EXTENDED):
            if size > 2 * MAX_NAME:
                raise UnpackError("it is damaged: a name that is too long")
            content = stream.exactly(size)
            stream.skip(-size % _BLOCK)
            path = (_string(content) if kind == _LONG_NAME else _extended_path(content)) or path
        elif kind in _FILE_TYPES:
            yield Member(_absolute(path or _path(header)), size)
            path = ""
        elif kind in _SKIPPED:
            _skip(stream, size + -size % _BLOCK if kind in b"Kg" else 0, check_time)
            path = path if kind in b"Kg" else ""
        else:
            raise UnpackError(f"it holds a file of a kind that is not known here ({kind!r})")
    raise UnpackError(f"it holds more than {MAX_MEMBERS} files")


def _check(header: bytes) -> None:
    """The checksum counts its own field as blanks."""
    if _octal(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 0x20:
        raise UnpackError("it is damaged: a header with a wrong checksum")


def _octal(field: bytes) -> int:
    if field[:1] >= b"\x80":  # GNU: large numbers are binary
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    text = field.split(b"\0")[0].strip()
    try:
        return int(text or b"0", 8)
    except ValueError as error:
        raise UnpackError("it is damaged: a size that is no number") from error


def _path(header: bytes) -> str:
    """The name that a header has itself; only those of POSIX have a folder (prefix) apart."""
    prefix = _string(header[345:500]) if header[257:263] == b"ustar\0" else ""
    name = _string(header[:100])
    return f"{prefix}/{name}" if prefix else name


def _string(field: bytes) -> str:
    return field.split(b"\0")[0].decode(errors="surrogateescape")


def _extended_path(content: bytes) -> str:
    """The path of a pax header, whose records are "LENGTH KEY=VALUE\\n"; "" if it says none."""
    for record in content.split(b"\n"):
        key, _, value = record.partition(b" ")[2].partition(b"=")
        if key == b"path":
            return value.decode(errors="surrogateescape")
    return ""


def _absolute(path: str) -> str:
    """Names in packages begin with "./"."""
    return "/" + path.removeprefix(".").lstrip("/")


def _skip(stream: Stream, size: int, check_time: Callable[[], None]) -> None:
    step = 1 << 24
    for start in range(0, size, step):
        check_time()
        stream.skip(min(step, size - start))
