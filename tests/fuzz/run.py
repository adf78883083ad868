"""``make fuzz MINUTES=60``: every target for its share of the time, one after the other, on one core.

Findings are kept as files in build/fuzz/TARGET/findings, the inputs that reach new code in build/fuzz/TARGET/corpus,
the figures of the run in build/fuzz/report.json.  The exit code is 1 if there was a finding.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build/fuzz"
RESIDENT_MB = 1024  # more than this is a finding
RUNS = 10_000  # of one process: the fuzzer itself loses 3 to 40 KB with each
SLOW_S = 20  # an input that takes longer is a finding; with instrumentation everything takes about four times as long


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; without any, all")
    options = parser.parse_args()
    chosen = {name: TARGETS[name] for name in options.targets or TARGETS}
    whole = sum(target.share for target in chosen.values())
    report = {
        name: fuzz(name, max(5, round(60 * options.minutes * target.share / whole))) for name, target in chosen.items()
    }
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    for name, figures in report.items():
        print(f"{name:8} " + "  ".join(f"{key} {value}" for key, value in figures.items()))
    sys.exit(any(figures["findings"] for figures in report.values()))


def fuzz(name: str, seconds: int) -> dict[str, Any]:
    """Runs one target until its time is over, again after each finding; returns its figures."""
    corpus, findings = OUT / name / "corpus", OUT / name / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    before = set(findings.iterdir())
    begin = time.monotonic()
    executions = edges = features = inputs = 0
    while (left := seconds - int(time.monotonic() - begin)) > 2:
        text = _fuzzer(name, left, corpus, findings)
        executions += _last(r"stat::number_of_executed_units:\s+(\d+)", text)
        edges = max(edges, _last(r"cov: (\d+)", text))
        features = max(features, _last(r"ft: (\d+)", text))
        inputs = max(inputs, _last(r"corp: (\d+)", text))
    return {
        "seconds": round(time.monotonic() - begin),
        "executions": executions,
        "edges": edges,
        "features": features,
        "inputs": inputs,
        "findings": len(set(findings.iterdir()) - before),
    }


def _fuzzer(name: str, seconds: int, corpus: Path, findings: Path) -> str:
    command = [
        sys.executable, "-m", "fuzz.one", str(corpus), f"-max_total_time={seconds}", f"-artifact_prefix={findings}/",
        f"-rss_limit_mb={RESIDENT_MB}", f"-timeout={SLOW_S}", "-max_len=65536",
        f"-runs={RUNS}",
        "-print_final_stats=1", "-len_control=0",
    ]  # fmt: skip
    environment = {**os.environ, "FUZZ_TARGET": name, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'src'}"}
    done = subprocess.run(command, env=environment, stderr=subprocess.STDOUT, stdout=subprocess.PIPE)
    text = done.stdout.decode(errors="replace")
    with (OUT / name / "log.txt").open("a") as log:
        log.write(text)
    return text


def _last(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


if __name__ == "__main__":
    main()
