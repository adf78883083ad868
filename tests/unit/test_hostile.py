"""Whatever files, records and processes hold, the outcome is data or an error of ours: soon, and in bounded memory.

The short form of ``make fuzz``: the same readers, a fixed choice of changes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.bombs import BOMBS
from fuzz.targets import TARGETS, elf_seeds, mutate

TESTS = Path(__file__).parents[1]
SLOW_S = 20.0
#: MiB beside what reading an ordinary small file takes; the largest of these files has 4.5 MB, and 2 GiB of .bss.
MOST_MB = 192
EXAMPLES = {
    "build": 300,
    "types": 300,
    "frames": 300,
    "plan": 100,
    "ledger": 500,
    "modules": 500,
    "maps": 200,
    "journal": 100,
    "cache": 60,
    "companion": 150,
    "shared": 200,
    "package": 300,
}


@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()

    @settings(max_examples=EXAMPLES[name], deadline=None, database=None, derandomize=True)
    @given(which=st.integers(0, len(seeds) - 1), seed=st.integers(0, 2**32 - 1))
    def each(which: int, seed: int) -> None:
        begin = time.monotonic()
        target.run(mutate(seeds[which], 1 << 16, seed))
        assert time.monotonic() - begin < SLOW_S

    each()


@pytest.mark.parametrize("name", ["ledger", "modules", "maps", "journal", "cache", "package"])
def test_anything(name: str) -> None:
    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @given(st.binary(max_size=4096))
    def each(data: bytes) -> None:
        TARGETS[name].run(data)

    each()


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent / 'src'}"}
    done = subprocess.run([sys.executable, "-m", "fuzz.measure"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_asks_for_much(measured: dict[str, Any], name: str) -> None:
    assert isinstance(measured[name], list), measured[name]
    outcome, seconds, grown = measured[name]
    assert outcome in ("read", "corrupt", "too-large"), outcome
    assert (outcome == "read") == (name in READ), outcome
    assert seconds < SLOW_S
    assert grown < MOST_MB


#: Those that say nothing wrong, but a lot.
READ = frozenset(
    (
        "plain", "bss_of_two_gib", "code_without_a_size", "notes_without_end", "versions_in_a_circle", "augmentations",
        "exception_tables_over_each_other", "actions_in_a_circle", "switch_tables",
        "switch_tables_beside_thread_locals", "texts_without_end",
    )
)  # fmt: skip


def test_the_seeds_are_good() -> None:
    """Else nothing behind the first check would be tested."""
    for content in elf_seeds():
        TARGETS["build"].run(content)
        assert content[:4] == b"\x7fELF"
