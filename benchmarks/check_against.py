"""Whether ``hotupgrade check`` has become slower since an earlier commit: both in one run, in turn, on one switch.

usage: check_against.py COMMIT [--now COMMIT] [--turns N]

Both commits are checked out (``git worktree``) and removed afterwards, as the working tree may be in motion.  Two
questions are asked of each: of a build whose loops are the same, and of one whose loops have changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import table
from restarts import BUILD_LOOPS
from rich.console import Console
from samples import Effort, Result, Row

from hotupgrade.vswitch import demo
from hotupgrade.vswitch.builds import find_build
from hotupgrade.vswitch.switch import Switch

BUILDS = Path("build/ovs")
#: What is asked: the build that runs, the new one, and in words.
QUESTIONS = (
    ("same", "vulnerable", "fixed", "loops the same"),
    ("changed", "fixed", "loops", "loops changed"),
)
KINDS = ("cold", "warm")


@click.command()
@click.argument("commit")
@click.option("--now", default="HEAD", show_default=True)
@click.option("--turns", default=7, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/bench"), show_default=True)
def main(commit: str, now: str, turns: int, output: Path) -> None:
    """Compare how long a check takes with how long it took at COMMIT."""
    signal.signal(signal.SIGTERM, _leave)  # the trees and the switch are removed, however the run ends
    commit, now = _short(commit), _short(now)
    subprocess.run(BUILD_LOOPS, check=True)
    results = []
    with _checked_out(commit) as then_tree, _checked_out(now) as now_tree:
        sources = {"now": now_tree / "src", "then": then_tree / "src"}
        for name, old, new, words in QUESTIONS:
            with Switch(find_build(old, BUILDS)) as switch:
                # Without load: it is not what is measured, and takes a core.
                switch.vsctl("del-port", "null1", "--", "del-port", "null2")
                files = [find_build(new, BUILDS).library(library) for library in demo.LIBRARIES]
                results.append(compare(name, switch.pid, files, sources, Effort(turns, 300)))
                results[-1].rows = rows(results[-1], words, commit)
    output.mkdir(parents=True, exist_ok=True)
    path = output / "check-against.json"
    document = {"then": commit, "now": now, "results": [result.document() for result in results]}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    table.show(results, console)
    console.print(f"written: {path}")


def compare(name: str, pid: int, files: list[Path], sources: dict[str, Path], effort: Effort) -> Result:
    """Cold and warm, by both, in turn; who comes first changes from turn to turn."""
    result, begin = Result(f"check_{name}"), time.monotonic()
    for turn in effort.turns():
        for who in sorted(sources, reverse=bool(turn % 2)):
            with tempfile.TemporaryDirectory(prefix="hotupgrade-bench-") as cache:
                for kind in KINDS:
                    found = _check(pid, Path(cache), files, sources[who])
                    result.facts[f"{who}_verdict"] = found["verdict"]
                    result.take(f"{who}_{kind}", "s", found["seconds"])
                    result.take(f"{who}_{kind}_processor", "s", found["processor_seconds"])
    result.seconds = time.monotonic() - begin
    return result


def rows(result: Result, words: str, commit: str) -> list[Row]:
    found = []
    for kind in KINDS:
        now, then = result[f"now_{kind}"], result[f"then_{kind}"]
        now_cpu, then_cpu = result[f"now_{kind}_processor"], result[f"then_{kind}_processor"]
        found += [
            Row(
                f"check, {words}, {kind} cache",
                f"{now.median:.2f} s",
                f"at {commit} {then.median:.2f} s",
                count=len(now.values),
                note=f"fastest {min(now.values):.2f} and {min(then.values):.2f} s; "
                f"verdicts {result.facts['now_verdict']} and {result.facts['then_verdict']}",
            ),
            Row(
                "  processor time",
                f"{now_cpu.median:.2f} s",
                f"at {commit} {then_cpu.median:.2f} s",
                count=len(now_cpu.values),
                note=f"× {now_cpu.median / then_cpu.median:.2f}; "
                f"fastest {min(now_cpu.values):.2f} and {min(then_cpu.values):.2f} s",
            ),
        ]
    return found


def _check(pid: int, cache: Path, files: list[Path], source: Path) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("check_once.py")), str(pid), str(cache), *map(str, files)]
    environment = os.environ | {"PYTHONPATH": str(source)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    if Path(found["from"]).parent != source:
        raise RuntimeError(f"it was {found['from']} that was asked, not {source}")
    return found


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _short(commit: str) -> str:
    done = subprocess.run(["git", "rev-parse", "--short", commit], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@contextlib.contextmanager
def _checked_out(commit: str) -> Iterator[Path]:
    """The sources as of a commit, with their native parts."""
    with tempfile.TemporaryDirectory(prefix="hotupgrade-then-") as directory:
        tree = Path(directory) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            subprocess.run(["make", "--silent", "-C", str(tree / "src" / "agent")], check=True)
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], check=True)


if __name__ == "__main__":
    main()
