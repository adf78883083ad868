"""Unpacking, within limits."""

from __future__ import annotations

import gzip
import io
import lzma
import random
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hotupgrade.binary.separate.unpack import UnpackError, unpack, unpack_zlib, unpack_zstd, unpacking

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "xz": lzma.compress,
    "zst": zstandard.compress,
    "gz": gzip.compress,
}
SECTIONS = {"zlib": (zlib.compress, unpack_zlib), "zstd": (zstandard.compress, unpack_zstd)}


@pytest.mark.parametrize("kind", PACK)
@given(content=st.binary(max_size=5000))
def test_what_was_packed_comes_out(kind: str, content: bytes) -> None:
    assert unpack(PACK[kind](content), kind, len(content)) == content


@pytest.mark.parametrize("kind", PACK)
def test_a_limit(kind: str) -> None:
    with pytest.raises(UnpackError, match="more than is read"):
        unpack(PACK[kind](bytes(1000)), kind, 999)


@pytest.mark.parametrize("kind", ["xz", "zst", "gz"])
def test_a_bomb_takes_no_room(kind: str) -> None:
    bomb = PACK[kind](bytes(1 << 26))
    assert len(bomb) < 1 << 17
    tracemalloc.start()
    try:
        with pytest.raises(UnpackError):
            unpack(bomb, kind, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24  # the dictionary of "xz -6" has half of that
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["xz", "zst", "gz"])
def test_what_is_cut_off(kind: str) -> None:
    packed = PACK[kind](random.Random(1).randbytes(5000))
    for size in (0, 1, 10, len(packed) // 2, len(packed) - 1):
        stream = unpacking(io.BytesIO(packed[:size]), kind, 1 << 20)
        with pytest.raises(UnpackError):
            stream.exactly(5001)


@pytest.mark.parametrize("kind", ["xz", "zst", "gz"])
@given(noise=st.binary(max_size=200))
def test_noise(kind: str, noise: bytes) -> None:
    try:
        unpack(noise, kind, 1 << 16)
    except UnpackError:
        return


def test_a_dictionary_that_is_too_large() -> None:
    """A header of a few bytes may ask for gigabytes."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    with pytest.raises(UnpackError):
        unpack(lzma.compress(b"x" * 100, filters=filters), "xz", 1 << 20)
    window = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=window).compressobj()
    packed = packer.compress(b"x" * 100) + packer.flush()
    with pytest.raises(UnpackError):
        unpack(packed, "zst", 1 << 20)
    with pytest.raises(UnpackError):
        unpack_zstd(packed, 100)


@pytest.mark.parametrize("kind", SECTIONS)
def test_sections_have_the_size_that_they_say(kind: str) -> None:
    pack, unpacker = SECTIONS[kind]
    content = random.Random(2).randbytes(70_000) * 9
    packed = pack(content)
    assert unpacker(packed, len(content)) == content
    for size in (0, 1, len(content) - 1, len(content) + 1, 1 << 28):
        with pytest.raises(UnpackError, match="another size"):
            unpacker(packed, size)
    with pytest.raises(UnpackError):
        unpacker(b"\xff" * 50, 10)
    assert unpacker(pack(b""), 0) == b""


def test_sections_of_several_frames() -> None:
    assert unpack_zstd(zstandard.compress(b"ab") + zstandard.compress(b"cd"), 4) == b"abcd"


def test_pieces() -> None:
    stream = unpacking(io.BytesIO(gzip.compress(b"abcdef")), "gz", 100)
    assert stream.exactly(2) == b"ab"
    stream.skip(2)
    assert stream.exactly(2) == b"ef"
    with pytest.raises(UnpackError, match="cut off"):
        stream.exactly(1)
    with pytest.raises(UnpackError, match="cut off"):
        stream.skip(1)
