"""``python -m hotupgrade.vswitch.compare``: measure, put the results together, write tables, picture and page.

A whole comparison takes hours.  It can be made in pieces: what each invocation has measured is merged into one document
as soon as it is there, and the page is written from all of that.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch import machine
from hotupgrade.vswitch.builds import SwitchBuild, find_build
from hotupgrade.vswitch.compare import (
    about,
    applications,
    beside,
    curves,
    distribution,
    growth,
    page,
    picture,
    results,
    run,
)
from hotupgrade.vswitch.compare.catalogue import ALL_WAYS

Document = dict[str, Any]
FLOWS = (0, 10_000, 100_000)
#: Runs of each part, in full and to see that everything works.
RUNS = {"ways": 20, "applications": 5, "growth": 20, "distribution": 200}
QUICK = {"ways": 2, "applications": 1, "growth": 3, "distribution": 5}
GROWTH_ROUNDS = 5  # of so many runs, at points at which fewer cannot tell
QUICK_MOST = 1_000  # of whatever grows
QUICK_FLOWS = (0,)
_RUNS_WORDS = ", ".join(f"{part} {runs}" for part, runs in RUNS.items())
_FLOWS_WORDS = ", ".join(map(str, FLOWS))


@dataclass(frozen=True)
class Session:
    """One invocation: where its results go, and what they are labelled with."""

    old: SwitchBuild
    new: SwitchBuild
    file: Path
    command: str
    say: Callable[[str], None]

    def keep(self, part: str, found: Iterable[tuple[str, Document]]) -> None:
        """Each result by its key, as soon as it is there: what is between two is the measuring."""
        versions = about.versions(self.old, self.new)
        entry = self._begun(versions)
        for key, result in found:
            results.save(self.file, results.merge(results.load(self.file), part, {key: entry(result)}))
            entry = self._begun(versions)

    def _begun(self, versions: Document) -> Callable[[Document], Document]:
        """The function makes an entry of what was measured from now on."""
        described, stolen, begin = machine.describe(), machine.stolen_s(), time.monotonic()

        def entry(result: Document) -> Document:
            return {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": time.monotonic() - begin,
                "stolen_s": machine.stolen_s() - stolen,
                "command": self.command,
                "machine": described,
                "versions": versions,
                "result": result,
            }

        return entry


@click.command()
@click.option(
    "--part", "parts", multiple=True, type=click.Choice(results.PARTS), help="Only this; several may be given."
)
@click.option("--builds", type=click.Path(path_type=Path), default=Path("build/ovs"), help="Where 'make ovs' put them.")
@click.option("--old", default="vulnerable", show_default=True, help="The build that runs.")
@click.option("--new", default="fixed", show_default=True, help="The build to be brought in.")
@click.option("--loops", help="A build in which threads' own loops changed too; without it that way is left out.")
@click.option("--runs", type=click.IntRange(1), help=f"Runs of each way, or point.  [default: {_RUNS_WORDS}]")
@click.option("--pps", type=click.IntRange(100, 100_000), default=10_000, show_default=True, help="Packets per second.")
@click.option(
    "--flows",
    multiple=True,
    type=click.IntRange(0, 1_000_000),
    help=f"Further flows.  [default: {_FLOWS_WORDS}]",
)
@click.option("--only", multiple=True, type=click.Choice([way.key for way in ALL_WAYS]), help="Only these ways.")
@click.option(
    "--application",
    multiple=True,
    type=click.Choice([one.key for one in applications.APPLICATIONS]),
    help="Only these.",
)
@click.option("--axis", multiple=True, type=click.Choice([one.key for one in growth.axes()]), help="Only this growth.")
@click.option("--quick", is_flag=True, help="A few runs of each, and little load, to see that everything works.")
@click.option("--resume", type=click.Path(exists=True, path_type=Path), help="Go on from the results beside a page.")
@click.option("--redraw", is_flag=True, help="Measure nothing: page and pictures of what has been measured.")
@click.option(
    "--page",
    "page_path",
    type=click.Path(path_type=Path),
    help="Write the page of all results there, too, with pictures and results.",
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/compare"), help="Where results go.")
def main(
    parts: tuple[str, ...],
    builds: Path,
    old: str,
    new: str,
    loops: str | None,
    runs: int | None,
    pps: int,
    flows: tuple[int, ...],
    only: tuple[str, ...],
    application: tuple[str, ...],
    axis: tuple[str, ...],
    quick: bool,
    resume: Path | None,
    redraw: bool,
    page_path: Path | None,
    output: Path,
) -> None:
    """Upgrade a virtual switch in every way on the same traffic, and compare.  Needs root and hugepages.

    All parts in full take hours; --part, --flows, --application and --axis choose, and results of several invocations
    are put together.
    """
    session = Session(find_build(old, builds), find_build(new, builds), output / "results.json", _command(), _say)
    moved = find_build(loops, builds) if loops else None
    if resume is not None:
        results.save(session.file, results.load(resume))
    wanted = () if redraw else parts or results.PARTS
    counts = {part: runs or (QUICK if quick else RUNS)[part] for part in results.PARTS}
    try:
        if "ways" in wanted:
            settings = run.Settings(runs=counts["ways"], pps=pps, only=only, loops=moved)
            _ways(session, settings, flows or (QUICK_FLOWS if quick else FLOWS))
        if "applications" in wanted:
            chosen = applications.Settings(counts["applications"], only, application, loops=moved)
            session.keep("applications", applications.measure(session.old, session.new, chosen, session.say))
        if "growth" in wanted:
            most = QUICK_MOST if quick else growth.Settings().most
            points = growth.Settings(counts["growth"], axis, most, 1 if runs or quick else GROWTH_ROUNDS)
            session.keep("growth", growth.measure(session.old, session.new, points, session.say))
        if "distribution" in wanted:
            many = distribution.Settings(counts["distribution"])
            session.keep("distribution", distribution.measure(session.old, session.new, many, session.say))
    except HotUpgradeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    _write(results.load(session.file), output, page_path)


def _ways(session: Session, settings: run.Settings, flows: tuple[int, ...]) -> None:
    for count in flows:
        session.say(f"ways, {count:,} flows")
        found = run.measure(session.old, session.new, replace(settings, flows=count), session.say)
        session.keep("ways", ((f"{count} {key}", result) for key, result in found))


def _write(document: Document, output: Path, page_path: Path | None) -> None:
    """The page on standard output and as a file, with pictures and results; and once more where it is asked for."""
    text = _page(document, output / "comparison.md", output)
    if page_path is not None:
        _page(document, page_path, page_path.parent / "images")
    click.echo(text)


def _page(document: Document, path: Path, folder: Path) -> str:
    """The page at ``path``, beside it what it was written of, its pictures in ``folder``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for name, draw in _pictures(document["parts"]):
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}.png"
        draw(file)
        drawn[name] = str(file.relative_to(path.parent))
    data = path.with_suffix(".json")
    results.publish(data, document)
    text = page.markdown(document, drawn, data.name)
    path.write_text(text, encoding="utf-8")
    return text


def _pictures(parts: Document) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """By name, what can be drawn of the parts that are there; of the ways, those with the fewest flows."""
    if "ways" in parts:
        ways = next(iter(beside.by_flows(parts["ways"]).values()))
        yield "comparison", partial(picture.draw, ways)
        yield "delays", partial(picture.draw_series, ways)
    if "growth" in parts:
        found = {key: entry["result"] for key, entry in parts["growth"].items()}
        yield "growth", partial(curves.draw_growth, found)
    for entry in parts.get("distribution", {}).values():
        yield "distribution", partial(curves.draw_distribution, entry["result"])


def _command() -> str:
    """What the user has typed, wherever it was typed from."""
    words = sys.argv[1:]
    return shlex.join(["hotupgrade", "compare", *(words[1:] if words[:1] == ["compare"] else words)])


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
