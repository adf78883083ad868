"""What a command took."""

from __future__ import annotations

import sys

import pytest

from hotupgrade.errors import NotNow
from hotupgrade.vswitch.compare.tool import run_tool

MIB = 40


def test_what_it_said_and_used() -> None:
    """However much this process holds itself."""
    ours = bytes(range(256)) * (4 * MIB * 4096)
    text = f"import sys, time; held = bytes(range(256)) * {MIB * 4096}; print('out'); time.sleep(0.5); sys.exit('err')"
    ran = run_tool([sys.executable, "-S", "-c", text], 20)
    del ours
    assert (ran.code, ran.output, ran.errors) == (1, "out\n", "err\n")
    assert MIB * 1024 < ran.memory_kb < 3 * MIB * 1024
    assert 0 < ran.cpu_s < 20


def test_one_that_does_not_end() -> None:
    with pytest.raises(NotNow, match="no end within"):
        run_tool(["sleep", "60"], 0.05)


def test_a_signal_is_a_code() -> None:
    assert run_tool(["sh", "-c", "kill -9 $$"], 20).code == -9
