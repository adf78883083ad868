from __future__ import annotations

from hotupgrade.plan.model import Edit, EditKind
from hotupgrade.upgrade.words import pages, reverse, to_words


def edit(address: int, old: bytes, new: bytes, kind: EditKind = EditKind.JUMP) -> Edit:
    return Edit(address, old, new, kind, "f")


def test_two_entries_in_one_word_are_one_edit() -> None:
    old = bytes(range(8))
    _, code = to_words([edit(64, old, b"\xe9" + old[1:]), edit(64, old, old[:5] + b"\xe9" + old[6:])])
    assert len(code) == 1
    assert code[0].new.to_bytes(8, "little") == b"\xe9" + old[1:5] + b"\xe9" + old[6:]


def test_words_that_do_not_change_are_left_out() -> None:
    data, code = to_words([edit(64, bytes(16), bytes(8) + b"12345678")])
    assert data == []
    assert [w.address for w in code] == [72]


def test_constants_come_apart_from_code() -> None:
    data, code = to_words([edit(64, bytes(8), b"12345678", EditKind.CONSTANT), edit(80, bytes(8), b"87654321")])
    assert [w.address for w in data] == [64]
    assert [w.address for w in code] == [80]


def test_reverse_undoes() -> None:
    _, code = to_words([edit(64, bytes(8), b"12345678")])
    assert reverse(reverse(code)) == code
    assert reverse(code)[0].new == 0


def test_pages() -> None:
    _, code = to_words([edit(64, bytes(8), b"12345678"), edit(4096, bytes(8), b"12345678")])
    assert pages(code) == [0, 4096]
