"""Types of the real switch: none differs between Debian's build and that without its security patches, and one that
is made to differ is told by its fields.  Compares files; starts nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.plan.compare import compare
from hotupgrade.plan.layouts import changes, compared_types
from hotupgrade.plan.model import Image
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.prototypes import changed_prototypes
from hotupgrade.plan.verdict import verdict
from hotupgrade.vswitch.builds import SwitchBuild

TREE = Path(__file__).resolve().parents[2] / "build" / "ovs" / "base"
BASE = 0x7F0000000000


@pytest.mark.parametrize("library", ["libopenvswitch", "libofproto", "libovsdb", "libsflow"])
def test_the_security_patches_change_no_type(vulnerable: SwitchBuild, fixed: SwitchBuild, library: str) -> None:
    old, new = (Build.open(build.library(library)) for build in (vulnerable, fixed))
    assert not old.debug.missing
    assert not new.debug.missing
    least = {"libopenvswitch": 1500, "libofproto": 700, "libovsdb": 100, "libsflow": 30}[library]
    assert compared_types(old.debug, new.debug) >= least
    assert changes(old.debug, new.debug) == changes(new.debug, old.debug) == []
    for one, other in ((old, new), (new, old)):
        comparison = compare(one, other)
        assert changed_prototypes(comparison) == []
        assert verdict([Image(one, BASE)], 0, other, [comparison], PlanOptions())[0] == []


def compiled(folder: Path, name: str, *changes: tuple[str, str]) -> Build:
    """The connection tracker alone, with changes to its private header."""
    place = folder / name
    place.mkdir()
    shutil.copy2(TREE / "lib" / "conntrack.c", place)
    header = (TREE / "lib" / "conntrack-private.h").read_text()
    for before, after in changes:
        assert header.count(before) == 1, before
        header = header.replace(before, after)
    (place / "conntrack-private.h").write_text(header)
    dpdk = subprocess.run(["pkg-config", "--cflags", "libdpdk"], capture_output=True, text=True, check=True).stdout
    include = [f"-I{path}" for path in (place, TREE, TREE / "include", TREE / "lib")]
    words = ["gcc", "-O2", "-g", "-w", "-fPIC", "-shared", "-DHAVE_CONFIG_H", *include, *dpdk.split(), "conntrack.c"]
    subprocess.run([*words, "-o", "conntrack.so"], cwd=place, check=True, capture_output=True)
    return Build.open(place / "conntrack.so")


def test_a_field_of_a_connection_and_a_renumbered_result(tmp_path: Path) -> None:
    old = compiled(tmp_path, "old")
    field = "uint32_t tp_id; /* Timeout policy ID. */\n", "uint32_t tp_id;\n    uint64_t alg_expectations[2];\n"
    number = "    CT_UPDATE_INVALID,\n", "    CT_UPDATE_NOTHING,\n    CT_UPDATE_INVALID,\n"
    new = compiled(tmp_path, "new", field, number)
    assert changes(old.debug, compiled(tmp_path, "again").debug) == []
    refusals, _ = verdict([Image(old, BASE)], 0, new, [compare(old, new)], PlanOptions())
    texts = {reason.subject: f"{reason.code}: {reason.text}" for reason in refusals}
    assert set(texts) == {"struct conn", "enum ct_update_res"}
    assert texts["struct conn"].startswith("type-changed: struct conn: 296 → 312 bytes, +alg_expectations at 296")
    assert texts["enum ct_update_res"].startswith("enumerator-changed: enum ct_update_res: CT_UPDATE_INVALID 0 → 1, ")
