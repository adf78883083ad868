"""One run of a way as the comparison writes it down."""

from __future__ import annotations

from typing import Any


def row(break_ms: float = 1.0, lost: int = 0) -> dict[str, Any]:
    return {
        "traffic": {"break_ms": break_ms, "lost": lost, "loss_ms": lost / 10, "control_ms": 0.5},
        "series": {"span_ms": 10, "begin_ms": -10, "delay_ms": [0.1, None, 5.0], "lost": [0, 10, 1]},
        "command_s": 2.0,
        "back_s": 1.0,
        "kept": {"process id": True, "megaflows": True},
        "extra": {"private_kb": 4096, "hugepages_kb": 2048, "polling": 1},
        "left": {"private_kb": 1024, "hugepages_kb": 0, "polling": 0},
        "tool": {"memory_kb": 1024, "cpu_s": 0.5},
        "break_us": 20.5,
    }
