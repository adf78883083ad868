"""The safe point of ``hotupgrade.h``: what it costs, and that every compiler's form of it is found."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import iced_x86
import pytest

import hotupgrade
from hotupgrade.binary.build import Build
from hotupgrade.plan.compare import compare
from hotupgrade.plan.loops.model import Door
from hotupgrade.plan.loops.resolve import resolve_loops
from hotupgrade.plan.model import Image

INCLUDE = Path(hotupgrade.__file__).parent / "include"
FLAGS = (
    "-O2",
    "-g",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wshadow",
    "-Werror",
    "-Wl,--build-id=sha1",
)
LOOP = """
#include <hotupgrade.h>
#include <stdlib.h>
#ifdef __cplusplus
extern "C" {
#endif
extern int work(void *);
#ifdef __cplusplus
}
#endif
static void *worker_main(void *argument)
{
    for (;;) {
        HOTUPGRADE_SAFE_POINT(NULL);
        work(argument);
        work(argument);
        if (TURNS > 3) {
            work(argument);
        }
    }
}
void *(*start)(void *) = worker_main;
"""
WITHOUT_RESULT = """
#include <hotupgrade.h>
extern int work(void *);
void worker_main(void *argument)
{
    for (;;) {
        work(argument);
        HOTUPGRADE_SAFE_POINT();
    }
}
"""
DRIVERS = {"c": ["gcc", "clang"], "cpp": ["g++", "clang++"]}
COMPILERS = [
    (driver, suffix, *more)
    for suffix, drivers in DRIVERS.items()
    for driver in drivers
    for more in ([], ["-O0"], ["-fno-omit-frame-pointer"])
]


def built(folder: Path, words: tuple[str, ...], text: str, turns: int = 1) -> Build:
    driver, suffix, *more = words
    if not shutil.which(driver):
        pytest.fail(f"{driver} is needed to build the modules under test")
    source, module = folder / f"loop.{suffix}", folder / f"loop-{turns}.so"
    source.write_text(text)
    command = [driver, *FLAGS, *more, f"-DTURNS={turns}", f"-I{INCLUDE}", str(source), "-o", str(module)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Build.open(module)


def named(build: Build, word: str) -> int:
    return next(row for row, name in enumerate(build.entities.names) if word in name)


@pytest.mark.parametrize("words", [words for words in COMPILERS if "-O0" not in words], ids=" ".join)
@pytest.mark.parametrize("text", [LOOP, WITHOUT_RESULT], ids=["with-result", "without"])
def test_a_load_and_a_branch(tmp_path: Path, words: tuple[str, ...], text: str) -> None:
    """Nothing else is run while nobody asks."""
    build = built(tmp_path, words, text)
    flag = int(build.entities.address[named(build, "hotupgrade_safe_point")])
    row = named(build, "worker_main")
    entry = int(build.entities.address[row])
    code = list(iced_x86.Decoder(64, build.read(entry, int(build.entities.size[row])), ip=entry))
    looks = [k for k, i in enumerate(code) if i.memory_base == iced_x86.Register.RIP and i.memory_displacement == flag]
    assert len(looks) == 1, "the variable is looked at in one place"
    load, test, branch = code[looks[0] : looks[0] + 3]
    assert load.mnemonic == iced_x86.Mnemonic.MOV
    assert test.mnemonic == iced_x86.Mnemonic.TEST, "the flags for the branch"
    assert branch.flow_control == iced_x86.FlowControl.CONDITIONAL_BRANCH


@pytest.mark.parametrize("words", COMPILERS, ids=" ".join)
def test_it_is_found(tmp_path: Path, words: tuple[str, ...]) -> None:
    old, new = (built(tmp_path, words, LOOP, turns) for turns in (1, 4))
    plans, reasons = resolve_loops("loop.so", [Image(old, 1 << 44)], 0, new, [compare(old, new)], [])
    assert reasons == []
    assert [(plan.door, plan.changed) for plan in plans] == [(Door.FLAG, True)]
    assert plans[0].flag_vaddr == int(new.entities.address[named(new, "hotupgrade_safe_point")])
