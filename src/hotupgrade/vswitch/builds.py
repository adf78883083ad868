"""A built Open vSwitch on disk, as ``scripts/build-ovs`` lays it out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hotupgrade.errors import UsageError


@dataclass(frozen=True, slots=True)
class SwitchBuild:
    """One variant: ``bin``, ``lib`` and ``share`` under ``root``."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def schema(self) -> Path:
        return self.root / "share" / "vswitch.ovsschema"

    def program(self, name: str) -> Path:
        return self.root / "bin" / name

    def library(self, name: str) -> Path:
        """The shared library ``name`` (``libopenvswitch``), which goes by its SONAME."""
        found = sorted((self.root / "lib").glob(f"{name}-*.so.*"))
        if len(found) != 1:
            raise UsageError(f"{self.root / 'lib'} holds {len(found)} files for {name}, one is needed: run 'make ovs'")
        return found[0]

    def environment(self, run_directory: Path) -> dict[str, str]:
        """The environment in which the build's own programs find its libraries and ``run_directory``."""
        return {
            **os.environ,
            "LC_ALL": "C",
            "LD_LIBRARY_PATH": str(self.root / "lib"),
            "OVS_RUNDIR": str(run_directory),
            "OVS_LOGDIR": str(run_directory),
            "OVS_DBDIR": str(run_directory),
            "OVS_SYSCONFDIR": str(run_directory),
        }


def find_build(name: str, builds: Path) -> SwitchBuild:
    """The variant ``name`` below ``builds``, checked for being whole."""
    build = SwitchBuild((builds / name).resolve())
    if not build.program("ovs-vswitchd").is_file() or not build.schema.is_file():
        raise UsageError(f"there is no build of Open vSwitch in {build.root}: run 'make ovs'")
    return build
