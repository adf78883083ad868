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
    LoopRecord,
    ModuleRecord,
    PlaceRecord,
    SideRecord,
    SiteRecord,
    Unsettled,
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


def a_loop(**changes: object) -> LoopRecord:
    place = PlaceRecord(offsets=[0, 8], size=1, path="a->b")
    record = LoopRecord(
        function="loop",
        home=4096,
        door="fields",
        hold_main=True,
        one_by_one=True,
        sides=[SideRecord(entry=4096, ranges=[(4096, 4200)], sleeps=[4150])],
        sites=[SiteRecord(address=4100, plain=1, stub=8192, index=3, kind="setup", pair=0, returns=1)],
        pairs=[("put", "take")],
        ask=[(place, 1)],
        clear=[(place, 0)],
        wake=[(4096, place)],
        leaving=place,
        thread=place,
        limit_us=1000,
    )
    return msgspec.structs.replace(record, **changes)


def with_loop(loop: LoopRecord) -> Ledger:
    generation = msgspec.structs.replace(ledger().generations[0], loops=[loop], stubs=[(8192, 4096)])
    unsettled = Unsettled(loops=[loop], stubs=[(8192, 4096)], last=True)
    return msgspec.structs.replace(ledger(), generations=[generation], unsettled=unsettled)


def test_loops_come_back_as_they_were() -> None:
    assert decode(*parts(encode(with_loop(a_loop())))) == with_loop(a_loop())


@pytest.mark.parametrize(
    "changes",
    [
        {"home": 1 << 47},
        {"flag": -1},
        {"wake": [(1 << 60, PlaceRecord(offsets=[0], size=8, path="p"))]},
        {"sites": [SiteRecord(address=0, plain=0, stub=0, index=1 << 40, kind="work", pair=0)]},
        {"sites": [SiteRecord(address=0, plain=0, stub=0, index=0, kind="work", pair=64)]},
        {"ask": [(PlaceRecord(offsets=[0], size=8, path="p"), -1)]},
        {"latch": PlaceRecord(offsets=[], size=8, path="p")},
        {"leaving": PlaceRecord(offsets=[0], size=3, path="p")},
        {"limit_us": 0},
        {"limit_us": 10**9},
    ],
)
def test_a_loop_that_cannot_be_is_no_ledger(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="ledger"):
        decode(*parts(encode(with_loop(a_loop(**changes)))))
