"""Compressed contents, unpacked up to a limit.  What would be larger is an error before it is in memory."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import IO, cast

import zstandard

MAX_DICTIONARY = 1 << 27  # bytes that a decompressor may keep beside its output; "xz -9" asks for 64 MiB
_CHUNK = 1 << 18

_ERRORS = (lzma.LZMAError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile, EOFError, MemoryError, ValueError)


Source = io.BufferedIOBase


class UnpackError(Exception):
    """It cannot be unpacked; the text says why."""


class Stream:
    """Bytes that come one after the other, with a limit on how many there may be altogether."""

    def __init__(self, read: Callable[[int], bytes], limit: int) -> None:
        self._read = read
        self._left = limit

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes, none at the end.

        Raises:
            UnpackError: the input is damaged or cut off, or there is more than the limit.
        """
        try:
            found = self._read(size)
        except _ERRORS as error:
            raise UnpackError("what is packed in it is damaged") from error
        self._left -= len(found)
        if self._left < 0:
            raise UnpackError("it unpacks to more than is read")
        return found

    def exactly(self, size: int) -> bytes:
        """``size`` bytes.

        Raises:
            UnpackError: see ``read``; or there are fewer.
        """
        parts, left = [], size
        while left:
            part = self.read(min(left, _CHUNK))
            if not part:
                raise UnpackError("it is cut off")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        while size:
            part = self.read(min(size, _CHUNK))
            if not part:
                raise UnpackError("it is cut off")
            size -= len(part)


def unpacking(source: Source, kind: str, limit: int) -> Stream:
    """What a compressed stream unpacks to; ``kind`` is a key of ``KINDS``."""
    return Stream(KINDS[kind](source), limit)


def unpack(content: bytes, kind: str, limit: int) -> bytes:
    """All that a compressed content unpacks to.

    Raises:
        UnpackError: it is damaged, or larger than ``limit`` bytes.
    """
    stream, parts = unpacking(io.BytesIO(content), kind, limit), list[bytes]()
    while part := stream.read(_CHUNK):
        parts.append(part)
    return b"".join(parts)


def unpack_zlib(content: bytes, size: int) -> bytes:
    """``size`` bytes.

    Raises:
        UnpackError: it is damaged, or is more or less than that.
    """
    try:
        # One byte more than it says, to see whether it lies.
        found = zlib.decompressobj().decompress(content, size + 1)
    except zlib.error as error:
        raise UnpackError("a section cannot be unpacked") from error
    return _of_size(found, size)


def unpack_zstd(content: bytes, size: int) -> bytes:
    """The same for zstd, of one frame or several; piece by piece, as room for all of it would be taken beforehand."""
    read, parts, left = _zstd(io.BytesIO(content)), list[bytes](), size + 1
    try:
        while left and (part := read(min(left, _CHUNK))):
            parts.append(part)
            left -= len(part)
    except _ERRORS as error:
        raise UnpackError("a section cannot be unpacked") from error
    return _of_size(b"".join(parts), size)


def _of_size(found: bytes, size: int) -> bytes:
    if len(found) != size:
        raise UnpackError("a packed section has another size than it says")
    return found


def _zstd(source: Source) -> Callable[[int], bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_DICTIONARY)
    return decompressor.stream_reader(cast(IO[bytes], source), read_across_frames=True, closefd=False).read


def _gzip(source: Source) -> Callable[[int], bytes]:
    return gzip.GzipFile(fileobj=source, mode="rb").read


def _xz(source: Source) -> Callable[[int], bytes]:
    """Not LZMAFile, which knows no limit on memory."""
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_DICTIONARY + (1 << 20))

    def read(size: int) -> bytes:
        while not decompressor.eof:
            given = source.read(_CHUNK) if decompressor.needs_input else b""
            if decompressor.needs_input and not given:
                raise EOFError
            if found := decompressor.decompress(given, size):
                return found
        return b""

    return read


KINDS: Mapping[str, Callable[[Source], Callable[[int], bytes]]] = MappingProxyType(
    {"": lambda source: source.read, "xz": _xz, "zst": _zstd, "gz": _gzip}
)
