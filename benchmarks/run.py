"""Measure hotupgrade: a table for a person, ``results.json`` with every sample, and pictures of the curves.

Run by ``make bench``.  Every figure stands beside a control of the same run, for the machine is never quite quiet.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import curves
import machine
import pictures
import preparations
import restart_meter
import restart_picture
import restarts
import table
from rich.console import Console
from rich.text import Text
from samples import Effort, Result

import ovs
from hotupgrade.errors import HotUpgradeError

CURVES: dict[str, Callable[[Path, Effort], Result]] = {
    "meter": curves.meter,
    "sleepers": curves.sleepers,
    "busy": curves.busy,
    "functions": curves.functions,
    "restart_meter": restart_meter.restart_meter,
}
#: How often, and for how many seconds at most; for a curve: each point.
FULL = {
    "prepare": Effort(5, 30),
    "prepare_program": Effort(5, 40),
    "prepare_libcrypto": Effort(5, 60),
    "patches": Effort(30, 120),
    "whole": Effort(30, 100),
    "imports": Effort(30, 25),
    "restarts": Effort(100, 400, least=50),
    "restart_meter": Effort(10, 60),
    "meter": Effort(10, 5),
    "sleepers": Effort(12, 5),
    "busy": Effort(12, 6),
    "functions": Effort(12, 7),
}
NICENESS = -5
QUICK = {name: Effort(3, 8) for name in FULL}


@click.command()
@click.option("--quick", is_flag=True, help="A few runs of each, to see that everything works.")
@click.option("--only", type=click.Choice(list(FULL)), multiple=True, help="Only this; may be given several times.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/bench"), show_default=True)
def main(quick: bool, only: tuple[str, ...], output: Path) -> None:
    """Measure hotupgrade on Open vSwitch and on a small program."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)  # what was started is ended, however the run ends
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    about = machine.describe()
    about["niceness"] = _prefer_us()
    output.mkdir(parents=True, exist_ok=True)
    efforts = QUICK if quick else FULL
    stolen, busy = machine.stolen_and_busy()
    begin = time.monotonic()
    try:
        results = _run(efforts, lambda name: not only or name in only, console)
    except HotUpgradeError as error:
        Console(stderr=True, highlight=False).print(Text(f"error: {error}", "bold red"), soft_wrap=True)
        sys.exit(error.exit_code)
    seconds = time.monotonic() - begin
    ticks = os.sysconf("SC_CLK_TCK") * seconds
    about["stolen_cores"] = round((machine.stolen_and_busy()[0] - stolen) / ticks, 3)
    about["busy_cores"] = round((machine.stolen_and_busy()[1] - busy) / ticks, 3)
    written = [pictures.draw(result, output) for result in results if result.name in pictures.AXES]
    written += [
        path for result in results if result.name == "restarts" for path in restart_picture.draw(result, output)
    ]
    written.append(output / "results.json")
    document = {
        "version": 1,
        "quick": quick,
        "seconds": seconds,
        "machine": about,
        "results": [result.document() for result in results],
    }
    written[-1].write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    table.show(results, console)
    console.print(
        f"{about['processor']}, {about['cores']} cores, of which {about['busy_cores']:.2f} were busy and "
        f"{about['stolen_cores']:.2f} taken by the hypervisor; load {about['load']:.1f} before; "
        f"kernel {about['kernel']}",
        soft_wrap=True,
    )
    table.verdict(results, console)
    console.print(f"Done in {seconds:.0f} s: {', '.join(map(str, written))}", soft_wrap=True)


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _prefer_us() -> int:
    """Let others on the machine wait for us and for what we start: it is not them that are measured."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    return os.getpriority(os.PRIO_PROCESS, 0)


def _run(efforts: dict[str, Effort], wanted: Callable[[str], bool], console: Console) -> list[Result]:
    def say(words: str) -> None:
        console.print(Text(words, "dim"), soft_wrap=True)

    results = []
    with tempfile.TemporaryDirectory(prefix="hotupgrade-bench-") as name:
        for title, measure in CURVES.items():
            if wanted(title):
                say(f"{title}: a small program")
                begin = time.monotonic()
                results.append(measure(Path(name), efforts[title]))
                results[-1].seconds = time.monotonic() - begin
    prepared = preparations.run(efforts, wanted, say)
    return ovs.run(efforts, wanted, say) + prepared + restarts.run(efforts, wanted, say) + results


if __name__ == "__main__":
    main()
