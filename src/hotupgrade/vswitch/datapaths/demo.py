"""Upgrades of a switch with the kernel's datapath and its kin, shown to a person; run by ``make demo-kernel``."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hotupgrade.errors import HotUpgradeError, NotNow, Reason
from hotupgrade.vswitch.datapaths.cases import CASES, Case, analyse
from hotupgrade.vswitch.datapaths.machine import run_in_machine
from hotupgrade.vswitch.processes import DIE_WITH_US

LAB = "hotupgrade.vswitch.datapaths.lab"
HERE_SECONDS = 300.0


def run_case(case: Case, builds: Path, kernel: Path, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run the case where it belongs, on this machine or in a guest; the lab's result.

    Raises:
        UsageError: a build or the guest is not there.
        NotNow: the guest or the lab did not come to an end.
    """
    request = msgspec.json.encode(case.request(builds.resolve()))
    analyse(case, builds)
    if case.in_guest:
        ended = run_in_machine(kernel, LAB, request, say=say)
        return {**ended.result, "output": ended.output, "kernel log": ended.kernel_log}
    return _run_here(request)


def _run_here(request: bytes) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="hotupgrade-lab-") as folder:
        files = Path(folder, "request.json"), Path(folder, "result.json")
        files[0].write_bytes(request)
        command = [*DIE_WITH_US, sys.executable, "-m", LAB, *map(str, files)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=HERE_SECONDS)
        except subprocess.TimeoutExpired:
            raise NotNow(Reason("time-limit", "lab", f"the lab did not end within {HERE_SECONDS:g} s")) from None
        if not files[1].is_file():
            raise NotNow(Reason("lab", "datapath", f"the lab ended without a result:\n{done.stderr}"))
        result: dict[str, Any] = json.loads(files[1].read_text())
        return {**result, "output": done.stdout + done.stderr}


def wrong(result: Mapping[str, Any]) -> list[str]:
    """Everything that is not as it should be, a line each."""
    if "error" in result:
        return [f"{result['error']}\n{result['output']}"]
    kernel = [line for line in result.get("kernel log", "").splitlines() if "BUG:" in line or "Oops" in line]
    return kernel + [
        f"{step['name']}: {fact['name']}: {fact['before']} → {fact['after']}"
        for step in result["steps"]
        for fact in step["facts"]
        if not fact["ok"]
    ]


def show(case: Case, result: Mapping[str, Any], console: Console) -> None:
    """Each step as a table of facts."""
    for step in result["steps"]:
        table = Table(title=f"{case.title}: {step['name']}", title_justify="left", title_style="bold")
        for heading in ("", "", "before", "after"):
            table.add_column(heading, overflow="fold")
        for fact in step["facts"]:
            mark = Text("✓", "green") if fact["ok"] else Text("✗", "bold red")
            table.add_row(mark, fact["name"], fact["before"], fact["after"])
        console.print(table)
    if "error" in result:
        console.print(Text(f"{case.title}: {result['error']}", "bold red"), soft_wrap=True)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(sorted(CASES)))
@click.option("--builds", type=click.Path(path_type=Path), default=Path("build/ovs"), show_default=True)
@click.option("--kernel", type=click.Path(path_type=Path), default=Path("build/kernel"), show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/demo-kernel"), show_default=True)
def main(names: Sequence[str], builds: Path, kernel: Path, output: Path) -> None:
    """Upgrade a switch with the kernel's datapath in a guest; or what NAMES say."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    results = {}
    output.mkdir(parents=True, exist_ok=True)
    for name in names or ("kernel", "kernel-static"):
        case, begin = CASES[name], time.monotonic()
        console.print(f"[bold]{case.title}[/bold]: {case.old} → {case.new}")
        try:
            result = run_case(case, builds, kernel, lambda line: console.print(Text(f"  {line}"), soft_wrap=True))
        except HotUpgradeError as error:
            Console(stderr=True, highlight=False).print(Text(f"error: {error}", "bold red"), soft_wrap=True)
            sys.exit(error.exit_code)
        results[name] = result
        show(case, result, console)
        console.print(f"Done in {time.monotonic() - begin:.0f} s")
    report = output / "report.json"
    report.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    console.print(f"What was seen, in full: {report}")
    sys.exit(0 if all(result["ok"] for result in results.values()) else 1)


if __name__ == "__main__":
    main()
