"""Pictures of hot upgrades are drawn, of points that could not be had as well."""

from __future__ import annotations

from pathlib import Path

from hotupgrade.vswitch.compare import curves
from unit.vswitch.compare import samples

PNG = b"\x89PNG"


def test_pictures(tmp_path: Path) -> None:
    failed = {"wanted": 100, "failed": "no"}
    found = {"flows": {"title": "flows", "points": [samples.point(10, 20.0), samples.point(1000, 25.0), failed]}}
    curves.draw_growth(found | {"ports": {"title": "ports", "points": [failed]}}, tmp_path / "growth.png")
    curves.draw_distribution(samples.distributed(), tmp_path / "distribution.png")
    for name in ("growth.png", "distribution.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)
