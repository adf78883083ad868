"""Build hook: compiles the C parts into the package, so that an operator's machine needs no compiler."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface[Any]):
    """Runs ``src/agent/Makefile``; wheels and editable installs alike."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 (hatchling names it)
        """Compile before the files are collected, and say for which machines the result is."""
        if self.target_name != "wheel":
            return
        sources = Path(self.root) / "src" / "agent"
        native = Path(self.root) / "src" / "hotupgrade" / "native"
        if (sources / "Makefile").is_file():
            native.mkdir(exist_ok=True)
            # The output goes to standard error: a build front end may read standard output.
            command = ["make", "-C", str(sources), f"OUT={native}", "all"]
            subprocess.run(command, check=True, stdout=2)
        # The C parts talk to the kernel, not to Python: one wheel for every version of it.
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"
