"""The words that have calls of loops come by the agent, and those that give them back; the stubs in between."""

from __future__ import annotations

import struct
from typing import cast

import iced_x86
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotupgrade.target.process import Process
from hotupgrade.target.request import Forbidden, Word
from hotupgrade.upgrade.ledger import LoopRecord, SideRecord, SiteRecord
from hotupgrade.upgrade.loops import stub_code
from hotupgrade.upgrade.restart import ThreadRestart, failures, side_in_force, with_loops
from hotupgrade.upgrade.sites import armed, given_back

BASE, STUBS = 0x10000, 0x90000


class Memory:
    """A piece of a process: BASE on."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.content[address - BASE : address - BASE + size])

    def apply(self, words: list[Word]) -> None:
        for word in words:
            assert word.address % 8 == 0
            assert self.read(word.address, 8) == word.old.to_bytes(8, "little")
            self.content[word.address - BASE : word.address - BASE + 8] = word.new.to_bytes(8, "little")


def process(memory: Memory) -> Process:
    return cast(Process, memory)


def site(address: int, plain: int, index: int = 0) -> SiteRecord:
    return SiteRecord(address=address, plain=plain, stub=STUBS + 16 * index, index=index, kind="work", pair=0)


def loop(*sites: SiteRecord, sides: list[SideRecord] | None = None) -> LoopRecord:
    return LoopRecord(
        function="loop",
        home=BASE,
        door="fields",
        hold_main=False,
        one_by_one=True,
        sides=sides or [SideRecord(entry=BASE, ranges=[(BASE, BASE + 64)], sleeps=[])],
        sites=list(sites),
        pairs=[],
        limit_us=1000,
    )


@given(st.sets(st.integers(0, 20), min_size=1), st.integers(0, 7), st.binary(min_size=256, max_size=256))
def test_calls_are_armed_and_given_back_byte_for_byte(numbers: set[int], shift: int, noise: bytes) -> None:
    """Wherever a call lies, also over two words, and whatever is next to it."""
    content = bytearray(noise)
    sites = []
    for index, number in enumerate(sorted(numbers)):
        at = 8 * number + shift + 16
        at = max(at, sites[-1].address - BASE + 5) if sites else at
        content[at : at + 5] = b"\xe8" + struct.pack("<i", -7 - number)
        sites.append(site(BASE + at, struct.unpack("<I", struct.pack("<i", -7 - number))[0], index))
    memory, record = Memory(bytes(content)), [loop(*sites)]
    memory.apply(armed(process(memory), record, ()))
    for one in sites:
        displacement = struct.unpack("<i", memory.read(one.address + 1, 4))[0]
        assert one.address + 5 + displacement == one.stub
    assert armed(process(memory), record, ()) == []
    memory.apply(given_back(process(memory), record))
    assert memory.content == content
    assert given_back(process(memory), record) == []


def test_stubs_say_which_call_it_is_and_go_to_the_gate() -> None:
    sites = [site(BASE, 0, 0), site(BASE + 8, 0, 700)]
    code = stub_code(sites, STUBS, 0x7FFF12345678)
    for number, one in enumerate(sites):
        start = STUBS + 16 * number
        push, jump = list(iced_x86.Decoder(64, code[16 * number :], ip=start))[:2]
        assert (push.mnemonic, push.immediate(0)) == (iced_x86.Mnemonic.PUSH, one.index)
        assert jump.mnemonic == iced_x86.Mnemonic.JMP
        slot = jump.ip_rel_memory_address - STUBS
        assert struct.unpack_from("<Q", code, slot)[0] == 0x7FFF12345678


def test_the_side_in_force_is_where_the_home_leads() -> None:
    sides = [SideRecord(entry=entry, ranges=[(entry, entry + 64)], sleeps=[]) for entry in (BASE, BASE + 128)]
    record = loop(sides=sides)
    memory = Memory(b"\x55" * 256)
    assert side_in_force(process(memory), record) == sides[0]
    memory.content[:5] = b"\xe9" + struct.pack("<i", 128 - 5)
    assert side_in_force(process(memory), record) == sides[1]


def test_ranges_of_loops_are_theirs_and_their_entries_are_nobodys() -> None:
    found = with_loops([Forbidden(BASE, BASE + 64, "loop"), Forbidden(BASE + 128, BASE + 160, "other")], [loop()])
    assert found[0] == Forbidden(BASE, BASE + 64, "loop", 1)
    assert found[1].loop == 0
    assert Forbidden(BASE, BASE + 5, "loop") in found


@pytest.mark.parametrize(
    ("thread", "code"),
    [
        (ThreadRestart(1, "f", "fields", "arrived"), None),
        (ThreadRestart(1, "f", "sleep", "sleeping"), None),
        (ThreadRestart(1, "f", "fields", "gone"), None),
        (ThreadRestart(1, "f", "fields", "stayed"), "restart-failed"),
        (ThreadRestart(1, "f", "fields", "arrived", unbalanced=("put",)), "restart-unbalanced"),
    ],
)
def test_failures_are_those_that_an_operator_must_hear_of(thread: ThreadRestart, code: str | None) -> None:
    assert [reason.code for reason in failures(7, [thread])] == ([code] if code else [])
