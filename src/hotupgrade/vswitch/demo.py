"""The demonstration: a vulnerable switch at full speed is upgraded, rolled back and upgraded again, without a restart.

Run by ``make demo``.  It drives the command line as an operator would, looks at the switch from outside before and
after each step, and writes what it saw to ``report.json``, ``timeline.png`` and ``report.html``.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hotupgrade.errors import HotUpgradeError
from hotupgrade.report.document import duration, names, number, plural, rows, text
from hotupgrade.vswitch import baseline, vulnerability
from hotupgrade.vswitch.baseline import Baseline, Fact
from hotupgrade.vswitch.builds import SwitchBuild, find_build
from hotupgrade.vswitch.statistics import Rate
from hotupgrade.vswitch.switch import BRIDGE, Switch, SwitchOptions
from hotupgrade.vswitch.vulnerability import Finding

TITLE = "Open vSwitch with DPDK, upgraded at full speed"
LIBRARIES = ("libopenvswitch", "libofproto")
OPERATOR_FLOWS = 500  # beside the two that carry the traffic, so that "the flows are the same" says something
WINDOWS, WINDOW_SECONDS = 5, 0.4
# The fastest of several windows: what others on the machine take away only ever makes a window slower.
RATE_KEPT = 0.9
NAMES_SHOWN = 12
COMMAND_SECONDS = 60.0

Document = dict[str, Any]
T = TypeVar("T")


@dataclass
class Demonstration:
    """One run: the steps as they were, in order, and the facts that they establish."""

    switch: Switch
    fixed: SwitchBuild
    console: Console
    steps: list[Document] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)

    def run(self) -> None:
        self._step("The switch under load", self._describe)
        before = self._look("Before the upgrade", vulnerable=True)
        self._hotupgrade("What would be upgraded", "check", *self._new_files())
        self._hotupgrade("Upgrade under load", "upgrade", *self._new_files(), "--measure-empty")
        after = self._look("After the upgrade", vulnerable=False)
        self.facts += baseline.compare(before.baseline, after.baseline)
        self.facts += [_rate_fact(before.rate, after.rate), _security_fact("by the upgrade", before, after)]
        self._hotupgrade("What is active", "status")
        self._hotupgrade("Roll back", "rollback")
        back = self._look("After the roll-back", vulnerable=True)
        self._hotupgrade("Upgrade again", "upgrade", *self._new_files())
        last = self._look("After the second upgrade", vulnerable=False)
        self.facts += [
            _security_fact("by the roll-back", after, back),
            _security_fact("by the second upgrade", back, last),
            _summed_up("all of it over three switches", baseline.compare(before.baseline, last.baseline)),
        ]

    def report(self) -> Document:
        """Everything, for ``report.json`` and the page."""
        return {
            "version": 1,
            "title": TITLE,
            "ok": self.ok,
            "machine": _machine(self.switch.options),
            "facts": [asdict(fact) for fact in self.facts],
            "steps": self.steps,
        }

    @property
    def ok(self) -> bool:
        return bool(self.facts) and all(fact.ok for fact in self.facts)

    # Steps.

    def _describe(self) -> Document:
        words = f"{plural(len(self.switch.flows()), 'flow')}, {plural(self.switch.options.ports, 'DPDK port')}"
        self._say(f"ovs-vswitchd, process {self.switch.pid}: {words}")
        return {
            "pid": self.switch.pid,
            "build": self.switch.build.name,
            "bridges": list(self.switch.bridges()),
            "ports": list(self.switch.ports()),
            "threads": sorted(self.switch.threads().values()),
        }

    def _look(self, moment: str, *, vulnerable: bool) -> _Look:
        return self._step(moment, lambda: self._look_now(vulnerable), _Look.document)

    def _look_now(self, expected_vulnerable: bool) -> _Look:
        findings = vulnerability.examine(self.switch)
        for finding in findings:
            self._show_finding(finding)
        rate = _best_rate(self.switch)
        self._say(f"full speed: {_mpps(rate)}")
        return _Look(expected_vulnerable, findings, baseline.take(self.switch), rate)

    def _hotupgrade(self, title: str, command: str, *arguments: str) -> Document:
        return self._step(title, lambda: self._run_command(command, *arguments))

    def _run_command(self, command: str, *arguments: str) -> Document:
        words = [command, str(self.switch.pid), *arguments]
        self._say(" ".join(["$ hotupgrade", *map(_short, words)]))
        document = run_hotupgrade([*words, "--json"])
        self._say(_summary(document))
        for module in rows(document, "modules") if command == "check" else ():
            self._say(f"{text(module, 'name')}: {', '.join(names(module, 'functions', 'changed')[:NAMES_SHOWN])}")
        return document

    def _step(self, title: str, action: Callable[[], T], document: Callable[[T], Document] | None = None) -> T:
        self.console.print(f"[bold]{title}[/bold]")
        begin = time.monotonic()
        result = action()
        shown = document(result) if document else result
        self.steps.append({"title": title, "seconds": round(time.monotonic() - begin, 3), "document": shown})
        return result

    # Words.

    def _say(self, words: str) -> None:
        self.console.print(Text(f"  {words}"), soft_wrap=True)

    def _show_finding(self, finding: Finding) -> None:
        line = Text("  ")
        line.append(
            "vulnerable " if finding.vulnerable else "fixed      ", "bold red" if finding.vulnerable else "green"
        )
        line.append(f"{finding.cve}: megaflow {'lacks' if finding.vulnerable else 'has'} {finding.needed}\n", "bold")
        megaflow = Text(f"             {finding.megaflow}", "dim")
        megaflow.highlight_regex(rf"{finding.needed}=[^,]*", "bold green")
        self.console.print(line + megaflow, soft_wrap=True)

    def _new_files(self) -> list[str]:
        return [str(self.fixed.library(name)) for name in LIBRARIES]


@dataclass(frozen=True, slots=True)
class _Look:
    """The switch from outside, at one moment."""

    expected_vulnerable: bool
    findings: tuple[Finding, ...]
    baseline: Baseline
    rate: Rate

    @property
    def as_expected(self) -> bool:
        return all(finding.vulnerable == self.expected_vulnerable for finding in self.findings)

    @property
    def seen(self) -> str:
        words = {"vulnerable" if finding.vulnerable else "fixed" for finding in self.findings}
        return " and ".join(sorted(words))

    def document(self) -> Document:
        return {
            "ok": self.as_expected,
            "findings": [asdict(finding) for finding in self.findings],
            "packets_per_second": round(self.rate.per_second),
            "flows": len(self.baseline.rules),
            "ports": sorted(self.baseline.ports),
            "port_packets": dict(self.baseline.port_packets),
            "pmd_packets": dict(self.baseline.pmd_packets),
        }


def run_hotupgrade(arguments: Sequence[str], seconds: float = COMMAND_SECONDS) -> Document:
    """Run the command line; its JSON document, or an error with all that it said.  It may take ``seconds``."""
    program = Path(sys.executable).with_name("hotupgrade")
    command = [str(program)] if program.is_file() else [sys.executable, "-m", "hotupgrade"]
    try:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise _failure(arguments, f"no answer within {seconds:g} s") from None
    if done.returncode != 0:
        raise _failure(arguments, f"exit code {done.returncode}\n{done.stderr.strip()}")
    try:
        document = json.loads(done.stdout)
    except json.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise _failure(arguments, f"this is no JSON document: {done.stdout[:200]!r}")
    return document


def prepare(switch: Switch) -> None:
    """Give the switch what an operator's switch has: the probes' bridge and a few hundred flows."""
    vulnerability.prepare(switch)
    flows = (
        f"table=1,priority={100 + i % 7},ip,nw_dst=10.{i // 250}.{i % 250}.0/24,actions=dec_ttl,output:{1 + i % 2}\n"
        for i in range(OPERATOR_FLOWS)
    )
    switch.ofctl("add-flows", BRIDGE, "-", text="".join(flows))


def write(demonstration: Demonstration, output: Path) -> Iterable[Path]:
    """Write the report, the picture and the page; the files, in this order."""
    # Plotting takes a second to load: not before the switch is done with.
    from hotupgrade.report import page, timeline

    output.mkdir(parents=True, exist_ok=True)
    report = demonstration.report()
    documents = (step["document"] for step in demonstration.steps)
    upgrade = next(document for document in documents if document.get("command") == "upgrade")
    data, picture, html = output / "report.json", output / "timeline.png", output / "report.html"
    data.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    timeline.draw(upgrade, picture)
    page.write(report, picture, html)
    return data, picture, html


def show(demonstration: Demonstration) -> None:
    """The result, as a person wants to read it."""
    table = Table(title=TITLE, title_justify="left", title_style="bold", header_style="dim")
    for heading in ("", "", "before", "after"):
        table.add_column(heading, overflow="fold")
    for fact in demonstration.facts:
        mark = Text("✓", "green") if fact.ok else Text("✗", "bold red")
        table.add_row(mark, fact.name, fact.before, fact.after)
    demonstration.console.print()
    demonstration.console.print(table)
    for step in demonstration.steps:
        if step["document"].get("command") in ("upgrade", "rollback"):
            demonstration.console.print(Text(f"{step['title']}: {_summary(step['document'])}"), soft_wrap=True)


@click.command()
@click.option("--builds", type=click.Path(path_type=Path), default=Path("build/ovs"), show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/demo"), show_default=True)
def main(builds: Path, output: Path) -> None:
    """Upgrade a running Open vSwitch under full load, roll back, upgrade again."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    begin = time.monotonic()
    try:
        with _signals_unwind():
            demonstration = _run(builds, console)
    except HotUpgradeError as error:
        Console(stderr=True, highlight=False).print(Text(f"error: {error}", "bold red"), soft_wrap=True)
        sys.exit(error.exit_code)
    files = write(demonstration, output)
    show(demonstration)
    written = ", ".join(_short(str(path)) for path in files)
    console.print(f"Done in {time.monotonic() - begin:.0f} s: {written}", soft_wrap=True)
    sys.exit(0 if demonstration.ok else 1)


def _run(builds: Path, console: Console) -> Demonstration:
    vulnerable, fixed = find_build("vulnerable", builds), find_build("fixed", builds)
    console.print("[bold]Starting Open vSwitch 3.1.0 with DPDK, without its security patches[/bold]")
    with Switch(vulnerable) as switch:
        prepare(switch)
        demonstration = Demonstration(switch, fixed, console)
        demonstration.run()
    return demonstration


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """Let the polite signals end the run like an error does: everything that was started is cleaned up."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    earlier = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _best_rate(switch: Switch) -> Rate:
    return max((switch.rate(WINDOW_SECONDS) for _ in range(WINDOWS)), key=lambda rate: rate.per_kilocycle)


def _rate_fact(before: Rate, after: Rate) -> Fact:
    ratio = after.ratio_to(before)
    name = f"speed of the polling thread (best of {WINDOWS} windows)"
    return Fact(name, _mpps(before), f"{_mpps(after)} (× {ratio:.3f})", ratio >= RATE_KEPT)


def _security_fact(switch: str, before: _Look, after: _Look) -> Fact:
    cves = " and ".join(sorted({finding.cve for finding in before.findings}))
    return Fact(f"{cves}, {switch}", before.seen, after.seen, before.as_expected and after.as_expected)


def _summed_up(name: str, facts: Iterable[Fact]) -> Fact:
    wrong = [fact.name for fact in facts if not fact.ok]
    return Fact(name, "–", ", ".join(wrong) or "the same, or went on", not wrong)


def _summary(document: Document) -> str:
    """One line of what a command reported; what it did not report is left out."""
    busy, empty = number(document, "break_us", "busy_max"), number(document, "empty_stop_us", "busy_max")
    parts = [
        text(document, "verdict") or text(document, "outcome"),
        f"busy threads stopped for {duration(busy)}" if busy is not None else "",
        f"{duration(empty)} for a stop that changes nothing" if empty is not None else "",
        plural(number(document, "functions", "changed"), "function") + " changed" if "functions" in document else "",
        plural(number(document, "edits", "count"), "edit"),
    ]
    return ", ".join(part for part in parts if part) or text(document, "command")


def _machine(options: SwitchOptions) -> Document:
    _, polling = options.cores()
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "polling cores": len(polling),
        "kernel": platform.release(),
        "hugepages": f"{options.memory_mib} MiB",
        "python": platform.python_version(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _mpps(rate: Rate) -> str:
    return f"{rate.per_second / 1e6:.1f} million packets/s"


def _short(argument: str) -> str:
    """A path below the working directory without what everyone sees in the prompt."""
    return argument.removeprefix(f"{Path.cwd()}/")


def _failure(arguments: Sequence[str], words: str) -> HotUpgradeError:
    return HotUpgradeError(f"hotupgrade {' '.join(map(_short, arguments))}: {words}")


if __name__ == "__main__":
    main()
