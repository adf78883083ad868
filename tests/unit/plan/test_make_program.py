"""Executables: copy relocations, direct references.  Once a flag is gone, a program can be loaded like a library."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from pathlib import Path

import pytest

from hotupgrade.plan.model import EditKind, ModulePlan
from hotupgrade.plan.options import PlanOptions
from unit.plan.inprocess import RTLD_GLOBAL, RTLD_NOW, World, compile_library, in_child

_DT_FLAGS_1 = 0x6FFFFFFB
_DF_1_PIE = 0x08000000

LIBRARY = """
struct entry { const char *name; int value; };
const struct entry shared_table[2] = { { "one", %(first)d }, { "two", 2 } };
int shared_counter = 5;
int library_sum(void) { return shared_table[0].value + shared_counter; }
"""

PROGRAM = """
#include <stdio.h>
struct entry { const char *name; int value; };
extern const struct entry shared_table[2];
extern int shared_counter;
extern int library_sum(void);
static int own = 1;
int run(int x) {
    own += x; shared_counter++;
    return own * %(factor)d + shared_table[0].value + library_sum();
}
const struct entry *table(void) { return shared_table; }
int *counter(void) { return &shared_counter; }
int (*taken(void))(int) { return run; }
int main(void) { printf("%%d\\n", run(1)); return 0; }
"""


def program(directory: Path, source: str, library: Path) -> Path:
    """A position-independent executable that ``dlopen`` takes."""
    place = directory / f"program-{abs(hash(source))}"
    place.mkdir(exist_ok=True)
    (place / "program.c").write_text(source)
    output = place / "program"
    flags = ["-O2", "-g", "-fPIE", "-pie", "-rdynamic", "-Wl,--build-id", f"-Wl,-rpath,{library.parent}"]
    command = ["gcc", *flags, "-o", str(output), "program.c", str(library)]
    subprocess.run(command, check=True, cwd=place)
    content = bytearray(output.read_bytes())
    tag = content.index(struct.pack("<Q", _DT_FLAGS_1))
    value = struct.unpack_from("<Q", content, tag + 8)[0]
    struct.pack_into("<Q", content, tag + 8, value & ~_DF_1_PIE)
    output.write_bytes(content)
    return output


def start(directory: Path, factor: int, library: Path) -> tuple[World, World]:
    """The program and the library, with the variables copied as the loader does it at start (not in ``dlopen``)."""
    started = World(directory, program(directory, PROGRAM % {"factor": factor}, library), mode=RTLD_NOW | RTLD_GLOBAL)
    loaded = World(directory, library)
    for name in ("shared_table", "shared_counter"):
        (theirs, size), (own, _) = place(loaded, name), place(started, name)
        started.write([(own, ctypes.string_at(theirs, size))])
    return started, loaded


def place(world: World, name: str) -> tuple[int, int]:
    """Where the module itself has an object, and its size."""
    image = world.images[0]
    row = image.build.by_name[name]
    return image.base + int(image.build.entities.address[row]), int(image.build.entities.size[row])


def constants(plan: ModulePlan) -> list[int]:
    return [edit.address for edit in plan.edits if edit.kind is EditKind.CONSTANT]


@pytest.mark.parametrize(
    "options", [PlanOptions(trust_layout=True), PlanOptions(whole=True, trust_layout=True)], ids=["changed", "whole"]
)
@in_child
def test_a_program_with_copied_variables(tmp_path: Path, options: PlanOptions) -> None:
    library = compile_library(tmp_path, LIBRARY % {"first": 1})
    world, _ = start(tmp_path, 1, library)
    assert world.images[0].build.executable
    assert world.call("run", 1) == 2 + 1 + 7
    counter, taken = world.call("counter", result=ctypes.c_void_p), world.call("taken", result=ctypes.c_void_p)
    new = program(tmp_path, PROGRAM % {"factor": 100}, library)
    world.upgrade(new, options)
    assert world.call("run", 1) == 300 + 1 + 8
    assert world.call("counter", result=ctypes.c_void_p) == counter
    assert world.call("taken", result=ctypes.c_void_p) == taken
    assert world.call_at(taken, 1) == 400 + 1 + 9
    world.upgrade(world.library)
    assert world.call("run", 1) == 5 + 1 + 10


@in_child
def test_new_contents_of_a_constant_that_the_program_copied(tmp_path: Path) -> None:
    old = compile_library(tmp_path, LIBRARY % {"first": 1})
    started, world = start(tmp_path, 1, old)
    assert started.call("run", 1) == 2 + 1 + 7
    table = started.call("table", result=ctypes.c_void_p)
    assert table == place(started, "shared_table")[0]
    assert table != place(world, "shared_table")[0]
    plan = world.upgrade(compile_library(tmp_path, LIBRARY % {"first": 1000}))
    assert plan.objects["constants-updated"] == ("shared_table",)
    assert len(constants(plan)) == 2
    assert started.call("table", result=ctypes.c_void_p) == table
    assert started.call("run", 1) == 3 + 1000 + 1000 + 7
    back = world.upgrade(old)
    assert constants(back) == constants(plan)
    assert started.call("run", 1) == 4 + 1 + 9
