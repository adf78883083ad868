"""The agent's own code as part of ordinary programs, under the sanitizers: its steps one by one, and whole stops."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
AGENT = HERE.parents[2] / "src/agent"
#: As the agent is built, but for what a program cannot have.  Stacks without red zones: the agent reads all of them.
FLAGS = ("-std=gnu11", "-g", "-O1", "-mno-red-zone", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function")
SANITIZERS = {
    "address": ("-fsanitize=address", "--param=asan-stack=0"),
    "undefined": ("-fsanitize=undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
ROUNDS = {"address": 6, "undefined": 8, "thread": 5}


def run(folder: Path, name: str, sanitizer: str, *arguments: str) -> str:
    program = folder / name
    command = ["gcc", *FLAGS, *SANITIZERS[sanitizer], f"-I{AGENT}", str(HERE / f"{name}.c"), "-o", str(program)]
    subprocess.run(command, check=True)
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_every_step(tmp_path: Path, sanitizer: str) -> None:
    assert run(tmp_path, "steps", sanitizer) == "sound\n"


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_whole_stops(tmp_path: Path, sanitizer: str) -> None:
    """Threads that arrive together, late, never or too many; failing system calls; a tool that gives up at any time."""
    said = run(tmp_path, "protocol", sanitizer, str(ROUNDS[sanitizer]))
    assert said.startswith("sound")


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_threads_that_are_led_out_of_loops(tmp_path: Path, sanitizer: str) -> None:
    """Each step by itself; then threads that leave at once, too late by a little, never, or for good."""
    said = run(tmp_path, "moves", sanitizer, str(16 * ROUNDS[sanitizer]))
    assert said.startswith("sound")
    came, stayed = (int(word) for word in re.findall(r"\d+", said))
    assert came > 10
    assert stayed > 10
