"""How far structure gets without symbols: strips real builds and compares with what their symbols say.

Run as ``PYTHONPATH=src:tests python -m crosscheck.stripped``, with ``--write`` to renew the table in docs/stripped.md;
``--debian`` adds the binary package of this Debian.  Ends with 1 if anything is paired that symbols do not pair.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.cache import Cache, load_build
from hotupgrade.binary.model import Kind
from hotupgrade.binary.separate.find import Search
from hotupgrade.errors import Reason
from hotupgrade.plan.cache import compare_cached
from hotupgrade.plan.case import open_case
from hotupgrade.plan.compare import compare
from hotupgrade.plan.model import Comparison, Image
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.refusals import refusals

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "stripped.md"
BEGIN, END = "<!-- table: tests/crosscheck/stripped.py -->", "<!-- end of the table -->"
STRUCTURE = Search(structure=True)
BASE = 0x10000000
OBJECTS = (Kind.OBJECT, Kind.RELRO)
LIBRARIES = ("libofproto-3.1.so.0", "libopenvswitch-3.1.so.0", "libovsdb-3.1.so.0", "libsflow-3.1.so.0")
DEBIAN = ("openvswitch-switch", "usr/lib/openvswitch-switch/ovs-vswitchd")

HEAD = """\
| file | stripped | functions | bounded | paired | objects | paired | wrong | changed | of these found | too many \
| objects that new code uses | proven | verdict |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|
"""


@dataclass(frozen=True)
class Subject:
    name: str
    old: Path
    new: Path


@dataclass(frozen=True)
class Row:
    """One line of the table; ``""`` where there are no symbols to ask."""

    subject: str
    stripped: str
    functions: int
    bounded: int | str
    functions_paired: int
    objects: int
    objects_paired: int
    wrong: int | str
    changed: int | str
    found: int | str
    extra: int | str
    used: int
    proven: int
    verdict: str

    def text(self) -> str:
        return "| " + " | ".join(str(getattr(self, name)) for name in self.__dataclass_fields__) + " |"


def subjects(builds: Path) -> list[Subject]:
    found = [Subject(name, builds / "vulnerable/lib" / name, builds / "fixed/lib" / name) for name in LIBRARIES]
    static = [builds / f"{side}-static/bin/ovs-vswitchd" for side in ("vulnerable", "fixed")]
    return [*found, Subject("ovs-vswitchd", static[0], static[1])]


def bare(path: Path, folder: Path) -> Build:
    """A stripped copy of a file, read without symbols."""
    target = folder / f"{path.parent.parent.name}-{path.name}"
    subprocess.run(["strip", "-o", str(target), str(path)], check=True)
    return Build.open(target, STRUCTURE)


# The oracle


@dataclass(frozen=True)
class Oracle:
    """Both builds with symbols, and their comparison."""

    old: Build
    new: Build
    comparison: Comparison

    def wrong(self, found: Comparison, *, strict: bool = True) -> list[str]:
        """What is paired without symbols and is not with them.

        Not ``strict``: a function that came may have the place of one that went, as if it were the same with another
        name and another body.
        """
        ours, theirs = found.old.entities, found.new.entities
        result = []
        for row in np.flatnonzero((found.new_of >= 0) & (ours.kind != Kind.TLS)).tolist():
            partner = int(found.new_of[row])
            first = _place(self.old, int(ours.address[row]))
            second = _place(self.new, int(theirs.address[partner]))
            if first is None and second is None:
                continue
            same = first is not None and second is not None and self._paired(first, second)
            if not same and (strict or not self._replaced(first, second)):
                result.append(f"{ours.names[row]} ({first}) and {theirs.names[partner]} ({second})")
        return result

    def _paired(self, first: tuple[int, int], second: tuple[int, int]) -> bool:
        paired = self.comparison.new_of[first[0]] == second[0] or self.comparison.old_of[second[0]] == first[0]
        return bool(paired) and first[1] == second[1]

    def _replaced(self, first: tuple[int, int] | None, second: tuple[int, int] | None) -> bool:
        """Whether a function took the place of another: symbols know a partner of neither."""
        if first is None or second is None or first[1] or second[1]:
            return False
        functions = self.old.entities.kind[first[0]] == Kind.FUNCTION == self.new.entities.kind[second[0]]
        return bool(functions) and self.comparison.new_of[first[0]] < 0 > self.comparison.old_of[second[0]]

    def changed(self) -> set[int]:
        """Addresses of the functions that must run from the new build."""
        return _addresses(self.new, self.comparison)

    def bounded(self, build: Build) -> int:
        """Functions of the old build, stripped, that begin where they do, and end there but for padding."""
        sizes = _functions(build)
        return sum(1 for at, size in _functions(self.old).items() if at in sizes and 0 <= size - sizes[at] < 16)


def _place(build: Build, vaddr: int) -> tuple[int, int] | None:
    row = build.row_at(vaddr)
    return None if row is None else (row, vaddr - int(build.entities.address[row]))


def _functions(build: Build) -> dict[int, int]:
    rows = np.flatnonzero(build.entities.kind == Kind.FUNCTION)
    return dict(zip(build.entities.address[rows].tolist(), build.extent[rows].tolist(), strict=True))


def _addresses(build: Build, comparison: Comparison) -> set[int]:
    functions = comparison.replaced | ((build.entities.kind == Kind.FUNCTION) & (comparison.old_of < 0))
    return set(build.entities.address[functions].tolist())


# One row


def check(subject: Subject, stripped: str, old: Build, new: Build, oracle: Oracle | None) -> tuple[Row, list[str]]:
    """The line, and what is wrong."""
    old, new = old.stripped, new.stripped
    found = compare(old, new)
    case = open_case([Image(old, BASE)], 0, new, [found], PlanOptions(trust_layout=True))
    used = np.isin(new.entities.kind, OBJECTS) & case.used
    is_function, is_object = old.entities.kind == Kind.FUNCTION, np.isin(old.entities.kind, OBJECTS)
    changed, wanted = _addresses(new, found), oracle.changed() if oracle else set()
    wrong = oracle.wrong(found) if oracle else []
    row = Row(
        subject=subject.name,
        stripped=stripped,
        functions=len(_functions(oracle.old if oracle else old)),
        bounded=oracle.bounded(old) if oracle else "",
        functions_paired=int((is_function & (found.new_of >= 0)).sum()),
        objects=int(is_object.sum()),
        objects_paired=int((is_object & (found.new_of >= 0)).sum()),
        wrong=len(wrong) if oracle else "",
        changed=len(wanted) if oracle else "",
        found=len(wanted & changed) if oracle else "",
        extra=len(changed - wanted),
        used=int(used.sum()),
        proven=int((used & ~case.homes.unproven).sum()),
        verdict=_verdict(refusals(case)),
    )
    return row, wrong


def _verdict(reasons: Sequence[Reason]) -> str:
    if not reasons:
        return "upgradable"
    counts = sorted(Counter(reason.code for reason in reasons).items())
    return "refused: " + ", ".join(f"{code} {count}×" for code, count in counts)


def rows(builds: Path, folder: Path, cache: Cache) -> Iterator[tuple[Row, list[str]]]:
    for subject in subjects(builds):
        originals = [load_build(path.read_bytes(), str(path), cache, path) for path in (subject.old, subject.new)]
        oracle = Oracle(originals[0], originals[1], compare_cached(originals[0], originals[1], cache))
        old, new = bare(subject.old, folder), bare(subject.new, folder)
        yield check(subject, "both", old, new, oracle)
        if old.build_id != new.build_id:  # else there is nothing to do
            yield check(subject, "running", old, originals[1], oracle)


def debian(builds: Path, folder: Path) -> Iterator[tuple[Row, list[str]]]:
    """Debian's binary, against itself and against our build of the same sources without the security patches."""
    package, inside = DEBIAN
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    archive = next(folder.glob(f"{package}_*.deb"))
    subprocess.run(["dpkg-deb", "-x", str(archive), str(folder / "debian")], check=True)
    path = folder / "debian" / inside
    theirs = Build.open(path, STRUCTURE)
    yield check(Subject(f"Debian's {path.name}", path, path), "both, the same", theirs, theirs, None)
    ours = builds / "vulnerable-static/bin/ovs-vswitchd"
    yield check(Subject(f"Debian's {path.name}, our build", path, ours), "running", theirs, Build.open(ours), None)


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="crosscheck.stripped", description=__doc__)
    parser.add_argument("--builds", type=Path, default=ROOT / "build" / "ovs")
    parser.add_argument("--cache", type=Path, help="keep what was read of the builds with symbols here")
    parser.add_argument("--debian", action="store_true", help="also Debian's own package (apt-get download)")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    chosen = parser.parse_args(words)
    table, errors = HEAD, []
    print(HEAD, end="")
    with tempfile.TemporaryDirectory(prefix="stripped-") as name:
        folder = Path(name)
        found = rows(chosen.builds, folder, Cache(chosen.cache or folder / "cache"))
        for row, wrong in chain(found, debian(chosen.builds, folder) if chosen.debian else ()):
            print(row.text(), flush=True)
            table += row.text() + "\n"
            errors += [f"{row.subject}: {each}" for each in wrong]
    for error in errors:
        print(f"wrong: {error}", file=sys.stderr)
    if chosen.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table}{END}{rest.partition(END)[2]}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
