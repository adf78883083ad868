"""The Python mirror of abi.h has the sizes and offsets that the compiler gives the original."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from hotupgrade.target import abi

SOURCE = Path(__file__).parents[3] / "src/agent"
PAIRS = {
    "hu_mailbox": abi.Mailbox,
    "hu_thread": abi.Thread,
    "hu_watch": abi.Range,
    "hu_edit": abi.Edit,
    "hu_op": abi.Op,
    "hu_header": abi.Header,
    "hu_frame": abi.Frame,
    "hu_move": abi.Move,
    "hu_site": abi.Site,
}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Offsets and sizes as gcc sees them, by "struct.field"."""
    folder = tmp_path_factory.mktemp("abi")
    lines = []
    for name, mirror in PAIRS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        lines += [
            f'printf("{name}.{field} %zu\\n", __builtin_offsetof(struct {name}, {field}));'
            for field, *_ in mirror._fields_
        ]
    for constant in (
        "HU_MAGIC",
        "HU_ABI",
        "HU_STAMPS",
        "HU_COMMITTED",
        "HU_ABORTED",
        "HU_OP_STOP",
        "HU_ASLEEP",
        "HU_ELSEWHERE",
        "HU_OP_END",
        "HU_MOVE_REVOKED",
        "HU_SITE_WORK",
        "HU_ON_ALTERNATE",
    ):
        lines.append(f'printf("{constant} %llu\\n", (unsigned long long){constant});')
    program = folder / "layout.c"
    program.write_text('#include <stdio.h>\n#include "abi.h"\nint main(void) {' + "\n".join(lines) + "}\n")
    subprocess.run(["gcc", f"-I{SOURCE}", "-o", folder / "layout", program], check=True)
    text = subprocess.run([folder / "layout"], check=True, capture_output=True, text=True).stdout
    return {line.split()[0]: int(line.split()[1]) for line in text.splitlines()}


@pytest.mark.parametrize("name", PAIRS)
def test_structures_match(layout: dict[str, int], name: str) -> None:
    mirror = PAIRS[name]
    assert ctypes.sizeof(mirror) == layout[name]
    for field, *_ in mirror._fields_:
        assert getattr(mirror, field).offset == layout[f"{name}.{field}"], field


def test_constants_match(layout: dict[str, int]) -> None:
    assert layout["HU_MAGIC"] == abi.MAGIC
    assert layout["HU_ABI"] == abi.ABI
    assert layout["HU_STAMPS"] == len(abi.Stamp)
    assert layout["HU_COMMITTED"] == abi.State.COMMITTED
    assert layout["HU_ABORTED"] == abi.State.ABORTED
    assert layout["HU_OP_STOP"] == abi.OpKind.STOP
    assert layout["HU_ASLEEP"] == abi.StopReason.ASLEEP
    assert layout["HU_ON_ALTERNATE"] == abi.ON_ALTERNATE
    assert layout["HU_ELSEWHERE"] == abi.StopReason.ELSEWHERE
    assert layout["HU_OP_END"] == abi.OpKind.END
    assert layout["HU_MOVE_REVOKED"] == abi.MoveState.REVOKED
    assert layout["HU_SITE_WORK"] == abi.SiteKind.WORK


def test_mailbox_leaves_room_for_operations() -> None:
    assert ctypes.sizeof(abi.Mailbox) <= 1024
