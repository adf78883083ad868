"""How far the stack pointer of a function is below its frame pointer, against what compilers make."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.target.loops import depth_below_frame_pointer

SOURCE = """
extern long rest(const void *, long, long);
long plain(void *a) { long t = 0; for (;;) t += rest(a, t, 1); }
long few(void *a, long b, long c) { long t = 0; for (;;) { t += rest(a, b, c); b += t * c; c ^= b; } }
long large(void *a) { char room[SIZE]; long t = 0; for (;;) t += rest(room, (long) a, t); }
long variable(void *a, long n) { char room[n]; for (;;) rest(room, (long) a, n); }
"""
WAYS = [
    (compiler, *flags)
    for compiler in ("gcc", "clang")
    for flags in (["-O0"], ["-O2", "-fno-omit-frame-pointer"], ["-Os", "-fno-omit-frame-pointer"])
]


def measured(path: Path, name: str) -> int:
    """As objdump has it: what is pushed and subtracted before the first call."""
    words = ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={name}", str(path)]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    body = text.split("mov    %rsp,%rbp")[1].split("call")[0]
    pushed = 8 * len(re.findall(r"\tpush ", body))
    taken = sum(int(size, 16) for size in re.findall(r"\tsub +\$0x([0-9a-f]+),%rsp", body))
    return pushed + taken + 128 * body.count("add    $0xffffffffffffff80,%rsp")


@pytest.mark.parametrize("size", [8, 100, 5000])
@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_what_compilers_make(tmp_path: Path, way: tuple[str, ...], size: int) -> None:
    if not shutil.which(way[0]):
        pytest.fail(f"{way[0]} is needed to build the modules under test")
    (tmp_path / "frames.c").write_text(SOURCE)
    path = tmp_path / "frames.so"
    words = [*way, "-fPIC", "-shared", f"-DSIZE={size}", str(tmp_path / "frames.c"), "-o", str(path)]
    subprocess.run(words, check=True)
    build = Build.open(path)
    for name in ("plain", "few", "large"):
        row = build.entities.names.index(name)
        code = build.read(int(build.entities.address[row]), min(int(build.entities.size[row]), 96))
        assert depth_below_frame_pointer(code) == measured(path, name), name


@pytest.mark.parametrize(
    "code",
    [
        b"\x53\x48\x89\xfb\xe8\0\0\0\0",  # push %rbx; mov %rdi, %rbx; call: no frame pointer
        b"\x55\x48\x89\xfd\xe8\0\0\0\0",  # push %rbp; mov %rdi, %rbp: a register like others
        b"\x55\x48\x89\xe5\x48\x83\xe4\xe0\xe8\0\0\0\0",  # and $-32, %rsp
        b"\x55\x48\x89\xe5\x48\x29\xc4\xe8\0\0\0\0",  # sub %rax, %rsp
        b"",
    ],
)
def test_what_does_not_tell(code: bytes) -> None:
    assert depth_below_frame_pointer(code) is None
