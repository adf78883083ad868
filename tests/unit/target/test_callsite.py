"""What a call passed, read from the instructions before it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hotupgrade.binary.frames import RBP, RSP
from hotupgrade.target.callsite import Passed, Word, passed, words_of

START = 0x7F0000001000


def assembled(folder: Path, text: str) -> tuple[bytes, int]:
    """Code, and the address behind its first ``call`` through a register or memory."""
    (folder / "code.s").write_text(f"{text}\n")
    subprocess.run(["gcc", "-c", "code.s", "-o", "code.o"], cwd=folder, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", "code.o", "code.bin"], cwd=folder, check=True)
    words = ["objdump", "-d", "--no-show-raw-insn", "code.o"]
    lines = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()
    at = next(index for index, line in enumerate(lines) if "call" in line and "*" in line)
    behind = int(lines[at + 1].split(":")[0], 16)
    return (folder / "code.bin").read_bytes(), START + behind


KNOWN = {
    "open vswitch": ("call there\n mov 8(%rsp), %rdi\n call *(%rsp)", (RSP, 0), (RSP, 8)),
    "through a register": ("mov (%rsp), %rax\n mov 8(%rsp), %rdi\n call *%rax", (RSP, 0), (RSP, 8)),
    "the other way round": ("mov 8(%rsp), %rax\n mov (%rsp), %rdi\n call *%rax", (RSP, 8), (RSP, 0)),
    "frame pointer": (
        "mov -32(%rbp), %rdx\n mov -24(%rbp), %rax\n mov %rax, %rdi\n call *%rdx",
        (RBP, -32),
        (RBP, -24),
    ),
    "others between": ("mov 8(%rsp), %rdi\n xor %eax, %eax\n mov %rbx, %rsi\n call *64(%rsp)", (RSP, 64), (RSP, 8)),
    "after a branch": ("je 1f\n nop\n1: mov 8(%rsp), %rdi\n call *(%rsp)", (RSP, 0), (RSP, 8)),
}
UNKNOWN = {
    "a direct call": "mov 8(%rsp), %rdi\n call there\n mov (%rsp), %rax\n nop\n call *(%rax)",
    "no argument": "call *(%rsp)",
    "a register of a caller": "mov %rbx, %rdi\n call *(%rsp)",
    "from elsewhere": "mov 8(%rbx), %rdi\n call *(%rsp)",
    "computed": "mov 8(%rsp), %rdi\n add $8, %rdi\n call *(%rsp)",
    "half of it": "mov 8(%rsp), %edi\n call *(%rsp)",
    "an element": "mov 8(%rsp,%rax,8), %rdi\n call *(%rsp)",
    "before a call": "mov 8(%rsp), %rdi\n call there\n call *(%rsp)",
    "the stack moves": "mov 8(%rsp), %rdi\n sub $16, %rsp\n call *(%rsp)",
    "pushed": "mov 8(%rsp), %rdi\n push %rax\n call *(%rsp)",
    "the word is written": "mov 8(%rsp), %rdi\n mov %rax, 8(%rsp)\n call *(%rsp)",
    "a word may be written": "mov 8(%rsp), %rdi\n mov %rax, (%rbx)\n call *(%rsp)",
    "jumped into": "jmp 1f\n mov 8(%rsp), %rdi\n1: call *(%rsp)",
    "jumped into from behind": "nop\n mov 8(%rsp), %rdi\n1: call *(%rsp)\n jne 1b",
    "jumps that are computed": "mov 8(%rsp), %rdi\n call *(%rsp)\n jmp *%rax",
    "overwritten": "mov 8(%rsp), %rdi\n xor %edi, %edi\n call *(%rsp)",
    "exchanged": "mov 8(%rsp), %rdi\n xchg %rdi, %rbx\n call *(%rsp)",
}


@pytest.mark.parametrize("case", KNOWN)
def test_what_can_be_told(tmp_path: Path, case: str) -> None:
    text, function, argument = KNOWN[case]
    code, back = assembled(tmp_path, f"{text}\n ret")
    assert passed(code, START, back) == Passed(Word(*function), Word(*argument))


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_cannot(tmp_path: Path, case: str) -> None:
    code, back = assembled(tmp_path, f"{UNKNOWN[case]}\n ret")
    assert passed(code, START, back) is None


def test_what_is_no_call(tmp_path: Path) -> None:
    code, back = assembled(tmp_path, "mov 8(%rsp), %rdi\n call *(%rsp)\n nop\n ret")
    assert passed(code, START, back) is not None
    for other in (START, back - 1, back + 1, back + 100):
        assert passed(code, START, other) is None
    assert passed(b"", START, back) is None


def test_where_the_words_are() -> None:
    found = Passed(Word(RSP, 0), Word(RBP, -24))
    assert words_of(found, {RSP: 1000, RBP: 2000}) == [1000, 1976]
    assert words_of(found, {RSP: 1000}) is None
