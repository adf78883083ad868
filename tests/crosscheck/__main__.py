"""``make crosscheck``: builds the subjects, checks every reference in them, writes docs/references.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from crosscheck.check import Tally, check
from crosscheck.subjects import OTHERS, PLACE, ROOT, SWITCH, Subject

PAGE = ROOT / "docs" / "references.md"

HEAD = """\
# References: what disassembly finds, against what the linker knew

Written by `make crosscheck`; do not edit. Every file was linked with `-Wl,--emit-relocs`, and read as if it had not
been: references from disassembly alone, offsets of thread-locals from data flow alone. Then each record that the linker
left about code must have its reference, with the same target, and each reference its record.

- **records**: in functions, naming a place elsewhere (`PC32`, `PLT32`, `GOTPCREL`, `GOTPCRELX`, `GOTTPOFF`, `TLSGD`,
  `TLSLD`, TLS descriptors). **missing**: have no reference. **other**: the reference has another target.
- **assembler**: references without a record, because the assembler knew the answer: branches and addresses within one
  section. objdump finds each of them too. **false**: any other reference without a record.
- **outside**: records in code that no function symbol covers.
- **thread-local offsets**: fields (`DTPOFF32`, `TPOFF32`, and what the linker made of other models in executables) that
  hold one, as the records say; **found** by data flow; **open**: left unproven, and refused where it matters;
  **missing** and **false**: neither found nor left open, found but not recorded (or as another variable); **either**:
  found, but may mean the end of the neighbour, and refused if the two part.
- **seconds** of processor time for all of the analysis of a build, on the machine that wrote this.

| file | from | functions | references | records | missing | other | assembler | false | outside \
| thread-local offsets | found | open | missing | false | either | seconds |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
"""


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="crosscheck", description=__doc__)
    parser.add_argument("names", nargs="*", help="subjects; all of them without, and only then the page is written")
    wanted = parser.parse_args(words).names
    subjects = [subject for subject in (*SWITCH, *OTHERS) if not wanted or subject.name in wanted]
    lines, failures = [], 0
    for subject in subjects:
        print(f"{subject.name}: ", end="", flush=True)
        tally = check(subject.make(PLACE))
        lines.append(row(subject, tally))
        failures += len(tally.faults())
        print("fine" if not tally.faults() else "\n  ".join(["", *tally.faults()[:20]]))
    if not wanted:
        PAGE.write_text(HEAD + "".join(lines))
        print(f"written: {PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE}")
    return 1 if failures else 0


def row(subject: Subject, tally: Tally) -> str:
    cells = (
        subject.name,
        subject.source,
        tally.functions,
        tally.references,
        tally.records,
        len(tally.missing),
        len(tally.wrong),
        tally.by_assembler,
        len(tally.false),
        tally.nobodys,
        tally.thread_locals,
        tally.found,
        tally.unproven,
        len(tally.thread_locals_missing),
        len(tally.thread_locals_false) + len(tally.thread_locals_wrong),
        tally.doubtful,
        f"{tally.seconds:.1f}",
    )
    return f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else str(cell) for cell in cells)} |\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
