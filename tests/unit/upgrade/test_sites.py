"""Calls that stand so near to the entry of their loop that a jump there takes bytes of them."""

from __future__ import annotations

import struct
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotupgrade.plan.entries import jump
from hotupgrade.target.process import Process
from hotupgrade.target.request import Word
from hotupgrade.upgrade.ledger import LoopRecord, SideRecord, SiteRecord
from hotupgrade.upgrade.sites import armed, given_back
from hotupgrade.upgrade.words import reverse

BASE, STUB, ELSEWHERE, PLAIN = 0x10000, 0x90000, 0x50000, 0xFFFFFF11


class Memory:
    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.content[address - BASE : address - BASE + size])

    def apply(self, words: list[Word]) -> None:
        """As a stop does it: nothing is written if one word is not what is expected."""
        assert [w.address for w in words] == sorted({w.address for w in words})
        for word in words:
            assert self.read(word.address, 8) == word.old.to_bytes(8, "little")
        for word in words:
            self.content[word.address - BASE : word.address - BASE + 8] = word.new.to_bytes(8, "little")


def scene(entry: int, distance: int, noise: bytes) -> tuple[Memory, Process, list[LoopRecord], list[Word]]:
    """A function at an offset with a call soon after its entry; and the words that redirect it."""
    content = bytearray(noise)
    content[entry] = 0x53  # push %rbx: no jump
    at = entry + distance
    content[at : at + 5] = b"\xe8" + struct.pack("<I", PLAIN)
    before = bytes(content)
    content[entry : entry + 5] = jump(BASE + entry, ELSEWHERE)
    words = []
    for offset in range(0, len(content), 8):
        old, new = before[offset : offset + 8], bytes(content[offset : offset + 8])
        if old != new:
            words.append(Word(BASE + offset, int.from_bytes(old, "little"), int.from_bytes(new, "little")))
    site = SiteRecord(address=BASE + at, plain=PLAIN, stub=STUB, index=0, kind="setup", pair=0)
    record = LoopRecord(
        function="loop",
        home=BASE + entry,
        door="fields",
        hold_main=False,
        one_by_one=True,
        sides=[SideRecord(entry=BASE + entry, ranges=[(BASE + entry, BASE + entry + 64)], sleeps=[])],
        sites=[site],
        pairs=[("", "attach")],
        limit_us=1000,
    )
    memory = Memory(before)
    return memory, cast(Process, memory), [record], words


@pytest.mark.parametrize("distance", range(1, 12))
@given(entry=st.integers(0, 16), noise=st.binary(min_size=64, max_size=64))
def test_there_and_back(distance: int, entry: int, noise: bytes) -> None:
    memory, process, loops, words = scene(entry, distance, noise)
    plain = bytes(memory.content)
    site = loops[0].sites[0]
    redirected = Memory(plain)
    redirected.apply(words)
    for _ in range(2):
        # The upgrade: the function is left for ever, so its call may be what it likes, but the jump must be whole.
        memory.apply(armed(process, loops, words))
        assert memory.read(BASE + entry, 5) == redirected.read(BASE + entry, 5)
        memory.apply(given_back(process, loops))
        assert memory.content == redirected.content
        # The rollback: it is entered again, and its call comes by.
        memory.apply(armed(process, loops, reverse(words)))
        assert memory.read(BASE + entry, distance) == plain[entry : entry + distance]
        assert struct.unpack("<i", memory.read(site.address + 1, 4))[0] + site.address + 5 == STUB
        memory.apply(given_back(process, loops))
        assert memory.content == plain


@pytest.mark.parametrize("distance", range(1, 12))
@given(entry=st.integers(0, 16), noise=st.binary(min_size=64, max_size=64))
def test_the_rollback_is_taken_back_before_it_has_settled(distance: int, entry: int, noise: bytes) -> None:
    memory, process, loops, words = scene(entry, distance, noise)
    memory.apply(armed(process, loops, words))
    memory.apply(given_back(process, loops))
    redirected = bytes(memory.content)
    memory.apply(armed(process, loops, reverse(words)))
    memory.apply(armed(process, loops, words))
    memory.apply(given_back(process, loops))
    assert memory.content == redirected


@given(entry=st.integers(0, 16), noise=st.binary(min_size=64, max_size=64))
def test_other_bytes_must_be_what_the_plan_says(entry: int, noise: bytes) -> None:
    memory, process, loops, words = scene(entry, 6, noise)
    memory.content[entry] ^= 0xFF
    with pytest.raises(AssertionError):
        memory.apply(armed(process, loops, words))
