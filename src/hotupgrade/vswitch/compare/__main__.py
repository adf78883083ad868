"""``python -m hotupgrade.vswitch.compare``: run it, print the table, write the document and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import click

from hotupgrade.vswitch.builds import find_build
from hotupgrade.vswitch.compare import picture, table
from hotupgrade.vswitch.compare.catalogue import ALL_WAYS
from hotupgrade.vswitch.compare.run import Settings, compare


@click.command()
@click.option("--builds", type=click.Path(path_type=Path), default=Path("build/ovs"), help="Where 'make ovs' put them.")
@click.option("--old", default="vulnerable", show_default=True, help="The build that runs.")
@click.option("--new", default="fixed", show_default=True, help="The build to be brought in.")
@click.option("--loops", help="A build in which threads' own loops changed too; without it that way is left out.")
@click.option("--runs", type=click.IntRange(1), default=20, show_default=True, help="Runs of each way.")
@click.option("--pps", type=click.IntRange(100, 100_000), default=10_000, show_default=True, help="Packets per second.")
@click.option("--flows", type=click.IntRange(0, 100_000), default=0, show_default=True, help="Further OpenFlow flows.")
@click.option("--only", multiple=True, type=click.Choice([way.key for way in ALL_WAYS]), help="Only these ways.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/compare"), help="Where results go.")
def main(
    builds: Path,
    old: str,
    new: str,
    loops: str | None,
    runs: int,
    pps: int,
    flows: int,
    only: tuple[str, ...],
    output: Path,
) -> None:
    """Upgrade a virtual switch in every way on the same traffic, and compare.  Needs root and hugepages."""
    settings = Settings(runs, pps, flows, only, find_build(loops, builds) if loops else None)
    document = compare(
        find_build(old, builds), find_build(new, builds), settings, lambda line: click.echo(line, err=True)
    )
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(document, indent=1))
    (output / "table.md").write_text(table.markdown(document))
    picture.draw(document, output / "comparison.png")
    picture.draw_series(document, output / "delays.png")
    for line in table.meter_lines(document):
        click.echo(line)
    click.echo(table.markdown(document))


if __name__ == "__main__":
    main()
