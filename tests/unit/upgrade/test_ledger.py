from __future__ import annotations

import contextlib
import struct
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotupgrade.upgrade.ledger import (
    Generation,
    GenerationModule,
    ImageRecord,
    Ledger,
    ModuleRecord,
    decode,
    encode,
    pack_words,
    unpack_words,
)

WORD = st.integers(0, 2**64 - 1)


def image(build_id: str) -> ImageRecord:
    return ImageRecord(
        build_id=build_id,
        path="/x",
        base=4096,
        start=0,
        size=0,
        placed=None,
        owned=[],
        tls_offsets={1: -8},
        exports={"f": 1},
        pages=0,
    )


def ledger() -> Ledger:
    return Ledger(
        modules=[ModuleRecord(name="libx.so", base=4096, images=[image("aa"), image("bb")], current=1)],
        generations=[
            Generation(
                number=1,
                time="now",
                modules=[GenerationModule(name="libx.so", build_id="bb", path="/x", previous=0, image=1)],
                data=b"",
                code=pack_words([(8, 1, 2)]),
                forbidden=[(1, 2, "f")],
            )
        ],
    )


def parts(raw: bytes) -> tuple[bytes, bytes]:
    return raw[:24], raw[24:]


def test_a_ledger_comes_back_as_it_was() -> None:
    assert decode(*parts(encode(ledger()))) == ledger()


@given(st.lists(st.tuples(WORD, WORD, WORD)))
def test_words_come_back_as_they_were(words: list[tuple[int, int, int]]) -> None:
    assert unpack_words(pack_words(words)) == words


@given(st.data())
def test_a_damaged_ledger_is_an_error_of_ours_and_nothing_else(data: st.DataObject) -> None:
    raw = bytearray(encode(ledger()))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ValueError):
        assert decode(*parts(bytes(raw))) == ledger()


def sealed(body: bytes) -> tuple[bytes, bytes]:
    packed = zlib.compress(body)
    return struct.pack("<QQQ", 0x3172656764656C75, len(packed), zlib.crc32(packed)), packed


def test_an_index_beyond_the_images_is_refused() -> None:
    bad = msgspec.structs.replace(ledger().modules[0], current=7)
    with pytest.raises(ValueError, match="image"):
        decode(*sealed(msgspec.msgpack.encode(msgspec.structs.replace(ledger(), modules=[bad]))))


def test_half_an_edit_is_refused() -> None:
    bad = msgspec.structs.replace(ledger().generations[0], code=b"123")
    with pytest.raises(ValueError, match="part of an edit"):
        decode(*sealed(msgspec.msgpack.encode(msgspec.structs.replace(ledger(), generations=[bad]))))


def test_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version"):
        decode(*sealed(msgspec.msgpack.encode(Ledger(version=99))))
